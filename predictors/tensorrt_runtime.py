"""TensorRT or TensorRT for RTX: imported here and nowhere else."""

from __future__ import annotations

import functools
import logging
import re
from collections import deque
from dataclasses import dataclass
from typing import Any

from kservekit.cuda import Cuda, CudaError
from kservekit.errors import CannotStart

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Library:
    """Whichever of the two is installed; their APIs differ in little."""

    api: Any
    """The Python module."""
    name: str

    def __str__(self) -> str:
        return f"{self.name} {self.api.__version__}"


def tensorrt() -> Library:
    """TensorRT where it can be imported, else TensorRT for RTX; CannotStart where neither can."""
    for name, module in (("TensorRT", _tensorrt), ("TensorRT for RTX", _archive), ("TensorRT for RTX", _wheel)):
        try:
            return Library(module(), name)
        except ImportError as error:
            log.debug("not imported: %s", error)
    raise CannotStart(
        "TensorRT is not installed: pip install 'kservekit[tensorrt]', "
        "or 'kservekit[tensorrt-rtx]' for TensorRT for RTX"
    )


def _tensorrt() -> Any:
    import tensorrt

    return tensorrt


def _archive() -> Any:
    """As NVIDIA's own archive of TensorRT for RTX installs it."""
    import tensorrt_rtx

    return tensorrt_rtx


def _wheel() -> Any:
    import tensorrt_rtx_bindings

    return tensorrt_rtx_bindings


@dataclass(frozen=True)
class Gpu:
    name: str
    compute_capability: str
    """Such as 9.0."""

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability})"


def gpu(cuda: Cuda) -> Gpu:
    """The GPU that this process sees first; CannotStart where there is none."""
    try:
        count = cuda(cuda.runtime.cudaGetDeviceCount)
    except CudaError as error:
        raise CannotStart(f"no NVIDIA GPU with a driver that CUDA can use, {_WAY_OUT}: {error}") from None
    if not count:
        raise CannotStart(f"CUDA sees no GPU, {_WAY_OUT}; see also CUDA_VISIBLE_DEVICES")
    found = cuda(cuda.runtime.cudaGetDeviceProperties, 0)
    return Gpu(found.name.partition(b"\0")[0].decode(), f"{found.major}.{found.minor}")


_WAY_OUT = "and TensorRT runs on nothing else (OnnxPredictor serves ONNX files without one)"


def recorder(api: Any) -> Any:
    """A logger for TensorRT that passes its lines to Python's, and keeps errors: its calls say only that they failed.

    `reason()` gives the first error since it was last asked. One for the process, because TensorRT takes no second.
    """
    return _recorder(api.ILogger)


@functools.cache
def _recorder(base: Any) -> Any:
    levels = {"INTERNAL_ERROR": logging.ERROR, "ERROR": logging.ERROR, "WARNING": logging.WARNING}

    class Recorder(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: deque[str] = deque(maxlen=64)

        def log(self, severity: Any, text: str) -> None:
            level = levels.get(severity.name, logging.DEBUG)
            log.log(level, "%s", text)
            if level == logging.ERROR:
                self.errors.append(text)

        def reason(self) -> str:
            errors, self.errors = self.errors, deque(maxlen=64)
            return _plain(errors[0]) if errors else "it gives no reason"

    return Recorder()


def _plain(error: str) -> str:
    """Without the function and the place in the library's sources."""
    error = re.sub(r"^.*?Error Code \d+: ", "", error, flags=re.S)
    return re.sub(r"\.?\s*\bIn \w+ at \S+:\d+", "", error).strip()
