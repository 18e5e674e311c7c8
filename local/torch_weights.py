"""Reads PyTorch weights without PyTorch: what torch.save wrote before the zip format.

Five pickles (magic number, protocol, machine, tensors, order of the storages), then the storages' bytes, each behind
its element count.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from kservekit.errors import CannotStart

Arrays = dict[str, np.ndarray[Any, Any]]

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


class _Storage(NamedTuple):
    key: str
    dtype: str
    length: int


class _Tensor(NamedTuple):
    """A view of a storage, in elements and not in bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_training: Any) -> _Tensor:
    counts = all(type(number) is int and number >= 0 for number in (offset, *shape, *strides))
    if not (counts and isinstance(storage, _Storage) and len(shape) == len(strides)):
        raise pickle.UnpicklingError(f"a tensor with shape {shape!r}, strides {strides!r} and offset {offset!r}")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


# A pickle is a program, and these are all the words that it may use.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch", "FloatStorage"): "<f4",
    ("torch", "LongStorage"): "<i8",
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _device, length, view = pid
        known = kind == "storage" and dtype in ("<f4", "<i8") and view is None
        if not (known and isinstance(key, str) and type(length) is int and length >= 0):
            raise pickle.UnpicklingError(f"it refers to {pid!r}")
        return _Storage(key, dtype, length)


def read_weights(path: Path) -> Arrays:
    """The state dict of a legacy PyTorch file, as NumPy arrays in C order; nothing in the file is ever executed."""
    try:
        with path.open("rb") as file:
            return _read(file)
    except OSError as error:
        raise CannotStart(f"{path} cannot be read: {error}") from error
    except Exception as error:  # a damaged pickle raises what it likes
        raise CannotStart(f"{path} is not a state dict in PyTorch's legacy format: {error!r}") from error


def _read(file: IO[bytes]) -> Arrays:
    magic, protocol, machine = (_Unpickler(file).load() for _ in range(3))
    if magic != MAGIC or protocol != PROTOCOL or not machine["little_endian"]:
        raise ValueError("another magic number, protocol or byte order")
    tensors: dict[str, _Tensor] = _Unpickler(file).load()
    order: list[str] = _Unpickler(file).load()

    declared = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    if sorted(declared) != sorted(order):
        raise ValueError("the storages that the tensors use are not the storages that follow")
    stored = {key: _read_storage(file, declared[key]) for key in order}
    if file.read(1):
        raise ValueError("bytes follow the last storage")
    return {name: _view(stored[tensor.storage.key], tensor) for name, tensor in tensors.items()}


def _read_storage(file: IO[bytes], storage: _Storage) -> np.ndarray[Any, Any]:
    length = int.from_bytes(file.read(8), "little", signed=True)
    if length != storage.length:
        raise ValueError(f"storage {storage.key} has {length} elements, {storage.length} were declared")
    dtype = np.dtype(storage.dtype)
    data = file.read(length * dtype.itemsize)
    if len(data) != length * dtype.itemsize:
        raise ValueError(f"the file ends within storage {storage.key}")
    return np.frombuffer(data, dtype)


def _view(data: np.ndarray[Any, Any], tensor: _Tensor) -> np.ndarray[Any, Any]:
    # An index array instead of as_strided: strides that lie end in an IndexError, not in foreign memory.
    if math.prod(tensor.shape) > data.size:
        raise ValueError(f"shape {tensor.shape} is larger than its storage of {data.size}")
    index = np.array(tensor.offset)
    for length, stride in zip(tensor.shape, tensor.strides, strict=True):
        index = index[..., None] + np.arange(length) * stride
    return np.ascontiguousarray(data[index]).reshape(tensor.shape)
