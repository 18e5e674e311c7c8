"""Where the tensors of one run lie: a block of the GPU's memory, and a pinned one of the host's, made once.

Experimental: no GPU has run it yet.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kservekit.cuda import Cuda
from kservekit.errors import ModelError

ALIGNMENT = 256
"""Bytes; what cudaMalloc itself gives, and all that kernels ask for."""


@dataclass(frozen=True)
class Layout:
    """A place in one block for each tensor at its largest."""

    offsets: dict[str, int]
    rooms: dict[str, int]
    """Bytes of each place."""
    total: int


def layout(sizes: Mapping[str, int]) -> Layout:
    """Aligned places, one after the other; an empty tensor has one too, because it needs an address."""
    offsets, rooms, end = {}, {}, 0
    for name, size in sizes.items():
        offsets[name] = end
        rooms[name] = -(-max(size, 1) // ALIGNMENT) * ALIGNMENT
        end += rooms[name]
    return Layout(offsets, rooms, end)


class Buffers:
    """The two blocks; CudaError where there is no memory for them."""

    def __init__(self, cuda: Cuda, plan: Layout) -> None:
        self.plan = plan
        with contextlib.ExitStack() as undo:
            self._device = int(cuda(cuda.runtime.cudaMalloc, plan.total))
            undo.callback(cuda.release, cuda.runtime.cudaFree, self._device)
            # Pinned: else the copies would not run beside the computation of another stream.
            self._host = int(cuda(cuda.runtime.cudaHostAlloc, plan.total, cuda.runtime.cudaHostAllocDefault))
            undo.callback(cuda.release, cuda.runtime.cudaFreeHost, self._host)
            self._undo = undo.pop_all()
        self._bytes = np.ctypeslib.as_array((ctypes.c_uint8 * plan.total).from_address(self._host))

    def device(self, name: str) -> int:
        """A tensor's address on the GPU."""
        return self._device + self.plan.offsets[name]

    def host_address(self, name: str) -> int:
        return self._host + self.plan.offsets[name]

    def host(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
        """A tensor's place on the host, as an array; ModelError where it has not so much room."""
        start, count = self.plan.offsets[name], math.prod(shape) * dtype.itemsize
        if count > self.plan.rooms[name]:
            raise ModelError(f"{name!r} takes {count} bytes, and the engine said {self.plan.rooms[name]} at most")
        return self._bytes[start : start + count].view(dtype).reshape(shape)

    def free(self) -> None:
        """No array of `host` may be used after it."""
        self._undo.close()
