"""CUDA's runtime: imported here and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kservekit.errors import CannotStart, KServeKitError

log = logging.getLogger(__name__)


class CudaError(KServeKitError):
    """What CUDA answered; after most of these the process can use its GPU no more."""


class Cuda:
    """CUDA's runtime with results or a CudaError, where its own Python has a status in every answer."""

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime

    def __call__(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
        status, *results = function(*arguments)
        if status != self.runtime.cudaError_t.cudaSuccess:
            _, text = self.runtime.cudaGetErrorString(status)
            raise CudaError(f"{function.__name__}: {text.decode()} ({status.name})")
        return results[0] if results else None

    def release(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> None:
        """The same for what gives something back: a failure is logged, and keeps nothing else from being given back."""
        try:
            self(function, *arguments)
        except CudaError as error:
            log.warning("%s", error)

    @contextmanager
    def on(self, device: int) -> Iterator[None]:
        """This thread's calls go to that GPU, and afterwards to the one that they went to before."""
        before = self(self.runtime.cudaGetDevice)
        self(self.runtime.cudaSetDevice, device)
        try:
            yield
        finally:
            if before != device:
                self.release(self.runtime.cudaSetDevice, before)


def load(extra: str) -> Cuda:
    """CannotStart where CUDA's Python is not installed; it names the extra of ours that brings it."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        raise CannotStart(f"CUDA's Python is not installed: pip install 'kservekit[{extra}]'") from None
    return Cuda(runtime)
