"""Arrays that lie on a GPU: where, and what they hold, as DLPack or the CUDA array interface says it.

Experimental: no GPU has run it yet. DLPack comes first, because PyTorch's array interface names no stream and knows no
bfloat16. It is read by hand, because cuda-core, which could, reads a torch.Tensor by its layout in C instead.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

import kservekit.cuda
from kservekit.cuda import Cuda, CudaError
from kservekit.errors import CannotStart, ModelError
from kservekit.tensors import DATATYPES, Tensors

UNORDERED = -1
"""DLPack's stream for: whoever asks reads nothing yet."""

_ON_GPU = (2, 13)
"""DLPack's kDLCUDA and kDLCUDAManaged."""

_KINDS = {"i": 0, "u": 1, "f": 2, "V": 4, "b": 6}
"""DLPack's numbers for them; V is bfloat16."""

_NUMBERS = {name: dtype for name, dtype in DATATYPES.items() if name != "BYTES"}
_BY_DLPACK = {(_KINDS[dtype.kind], dtype.itemsize * 8): name for name, dtype in _NUMBERS.items()}
_BY_DTYPE = {dtype: name for name, dtype in _NUMBERS.items()}

_PER_THREAD_STREAM = 2


def apart(tensors: Mapping[Any, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those on the host, or no arrays at all, and those that lie on a GPU."""
    gpu = {name: value for name, value in tensors.items() if not isinstance(value, np.ndarray) and _is_on_gpu(value)}
    return ({name: value for name, value in tensors.items() if name not in gpu} if gpu else dict(tensors)), gpu


def _is_on_gpu(value: Any) -> bool:
    if hasattr(value, "__dlpack_device__"):
        return value.__dlpack_device__()[0] in _ON_GPU
    return hasattr(value, "__cuda_array_interface__")


@dataclass(frozen=True)
class GpuArray:
    """Row-major, in this machine's byte order."""

    address: int
    datatype: str
    shape: tuple[int, ...]
    device: int
    """CUDA's number of it."""
    owner: Any
    """What keeps the memory."""

    @property
    def dtype(self) -> np.dtype:
        return DATATYPES[self.datatype]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def look(name: str, array: Any, cuda: Cuda, stream: int = UNORDERED) -> GpuArray:
    """Where it lies. What comes on `stream` after this sees what was put on the array's own stream before it.

    ModelError for what is not row-major, or of a datatype that the protocol has not.
    """
    found = _by_dlpack if hasattr(array, "__dlpack_device__") else _by_array_interface
    try:
        return found(name, array, cuda, stream)
    except (
        BufferError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:  # of the array's library: it needs a gradient, say
        raise ModelError(f"tensor {name!r} on the GPU cannot be read: {error}") from error


def cuda() -> Cuda:
    """ModelError where CUDA's Python is not installed."""
    try:
        return kservekit.cuda.load("cuda")
    except CannotStart as error:
        raise ModelError(f"a tensor lies on a GPU, and {error}") from None


def copy(arrays: Mapping[str, Any], to: Mapping[str, int], device: int, cuda: Cuda, *, host: bool = False) -> None:
    """Each of that GPU's arrays to its address, there or on the host; returns when they have got there."""
    runtime = cuda.runtime
    kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost if host else runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    with cuda.on(device), ExitStack() as undo:
        # One that waits for the default stream, as the libraries that name no stream mean it.
        stream = cuda(runtime.cudaStreamCreate)
        undo.callback(cuda.release, runtime.cudaStreamDestroy, stream)
        found = {name: look(name, arrays[name], cuda, int(stream)) for name in to}  # and kept until they are read
        for name, address in to.items():
            cuda(runtime.cudaMemcpyAsync, address, found[name].address, found[name].nbytes, kind, stream)
        cuda(runtime.cudaStreamSynchronize, stream)


def on_host(arrays: Mapping[str, Any]) -> Tensors:
    """Copies of them; ModelError where they cannot be had. It waits for the GPU: call it in a thread."""
    driver, tensors = cuda(), {}
    try:
        for name, array in arrays.items():
            seen = look(name, array, driver)
            tensors[name] = np.empty(seen.shape, seen.dtype)
            if seen.nbytes:
                copy(arrays, {name: tensors[name].ctypes.data}, seen.device, driver, host=True)
    except CudaError as error:
        raise ModelError(f"tensor {name!r} cannot be copied from the GPU: {error}") from error
    return tensors


def _by_array_interface(name: str, array: Any, cuda: Cuda, stream: int) -> GpuArray:
    """Its version 3; the second has no stream."""
    said = array.__cuda_array_interface__
    dtype, shape, address = np.dtype(said["typestr"]), tuple(said["shape"]), said["data"][0]
    if said.get("mask") is not None or dtype not in _BY_DTYPE:
        raise ModelError(f"tensor {name!r} on the GPU is masked, or of type {dtype.str}, which the protocol has not")
    _check_order(name, shape, said.get("strides"), dtype.itemsize)
    if stream != UNORDERED and (producer := said.get("stream")) is not None:
        if producer == _PER_THREAD_STREAM:  # of another thread than this one
            cuda(cuda.runtime.cudaDeviceSynchronize)
        else:
            cuda(cuda.runtime.cudaStreamSynchronize, producer)
    device = cuda(cuda.runtime.cudaPointerGetAttributes, address).device if address else 0
    return GpuArray(address, _BY_DTYPE[dtype], shape, device, said)


def _by_dlpack(name: str, array: Any, _: Cuda, stream: int) -> GpuArray:
    capsule = array.__dlpack__(stream=stream)  # frees what it holds when it goes, because nobody takes it over
    said = _DLTensor.from_address(_pointer(capsule, b"dltensor"))
    datatype = _BY_DLPACK.get((said.code, said.bits)) if said.lanes == 1 else None
    if datatype is None:
        raise ModelError(
            f"tensor {name!r} on the GPU is of DLPack's type {said.code} with {said.lanes} times {said.bits} bits, "
            "which the protocol has no datatype for"
        )
    shape = tuple(said.shape[: said.ndim])
    _check_order(name, shape, said.strides[: said.ndim] if said.strides else None, 1)
    return GpuArray((said.data or 0) + said.byte_offset, datatype, shape, array.__dlpack_device__()[1], capsule)


def _check_order(name: str, shape: Sequence[int], strides: Sequence[int] | None, step: int) -> None:
    if strides is None or 0 in shape:
        return
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != step:
            raise ModelError(
                f"tensor {name!r} on the GPU has shape {list(shape)} and strides {list(strides)}, and is not "
                "row-major: expected x.contiguous() of PyTorch, or ascontiguousarray(x) of CuPy"
            )
        step *= size


class _DLTensor(ctypes.Structure):
    """DLPack's DLTensor (dlpack.h), with which a DLManagedTensor begins."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
