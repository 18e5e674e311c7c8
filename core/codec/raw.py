"""The protocol's raw form of a tensor: little-endian elements in row-major order, BYTES with a length before each.

Shared by REST's binary extension and gRPC's raw contents (Open Inference Protocol, "Raw Tensor Contents").
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from kservekit.errors import InvalidInput
from kservekit.tensors import as_bytes, numpy_dtype, object_array

MAX_DIMENSIONS = 32
"""As many as NumPy 1.26 knows."""

MOST_ELEMENTS = 2**40
"""Of a shape without its zeros, which NumPy multiplies too."""

_LENGTH = struct.Struct("<I")

_LITTLE = sys.byteorder == "little"


def element_count(shape: Sequence[Any], label: str) -> int:
    """How many elements a shape from outside holds; InvalidInput where it is no shape."""
    if len(shape) > MAX_DIMENSIONS:
        raise InvalidInput(f"{label} has over {MAX_DIMENSIONS} dimensions, the most there may be")
    for size in shape:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InvalidInput(f"{label} has shape {_shown(shape)}: expected whole numbers from 0 up")
    count: int = math.prod(shape)
    if (count or math.prod(filter(None, shape))) > MOST_ELEMENTS:
        raise InvalidInput(f"{label} has shape {_shown(shape)}: expected at most {MOST_ELEMENTS} elements")
    return count


@dataclass(frozen=True, slots=True)
class RawLayout:
    """How a tensor lies in its raw form. Made by `of`, and good for every tensor of that datatype and shape."""

    label: str
    datatype: str
    shape: tuple[int, ...]
    dtype: np.dtype
    """In this machine's byte order."""
    count: int

    @classmethod
    def of(cls, datatype: str, shape: Sequence[Any], label: str) -> RawLayout:
        """InvalidInput names `label` where the datatype or the shape is none."""
        count = element_count(shape, label)
        return cls(label, datatype, tuple(shape), numpy_dtype(datatype, label), count)

    def lengths_in(self, data: bytes | memoryview) -> int:
        """How many of its bytes are the lengths of BYTES elements, which are read one by one."""
        return min(self.count * _LENGTH.size, len(data)) if self.datatype == "BYTES" else 0

    def tensor(self, data: bytes | memoryview) -> np.ndarray:
        """A view of `data` (BYTES: an array of `bytes`); InvalidInput where length and shape disagree.

        Any byte of a BOOL that is not 0 is true, as it is in C, in NumPy's casts and in protobuf's own booleans; only
        where there is one other than 1 is that a copy.
        """
        if self.datatype == "BYTES":
            return _bytes_elements(data, self.count, self.label).reshape(self.shape)
        size = self.count * self.dtype.itemsize
        if len(data) != size:
            raise InvalidInput(
                f"{self.label} is {self.datatype} of shape {list(self.shape)}, which is {size} bytes, "
                f"and has {len(data)}"
            )
        found = np.frombuffer(data, self.dtype)
        if not _LITTLE:
            found = found.byteswap()
        if self.datatype == "BOOL" and size and found.view(np.uint8).max() > 1:
            found = found.view(np.uint8) != 0
        return found.reshape(self.shape)


def tensor_from_raw(data: bytes | memoryview, datatype: str, shape: Sequence[Any], label: str) -> np.ndarray:
    """The same in one step."""
    return RawLayout.of(datatype, shape, label).tensor(data)


def raw_bytes(values: np.ndarray, label: str = "a BYTES tensor") -> bytes | memoryview:
    """A tensor's raw form: a view of the array where its memory has that form already, else one copy."""
    if values.dtype.kind in "OUS":
        elements = as_bytes(values, label).ravel().tolist()
        return b"".join(chain.from_iterable(zip(map(_LENGTH.pack, map(len, elements)), elements, strict=True)))
    values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return values.reshape(-1).view(np.uint8).data if values.size else b""


def _bytes_elements(data: bytes | memoryview, count: int, label: str) -> np.ndarray:
    end = len(data)
    if count * 4 > end:
        raise InvalidInput(f"{label} has {count} elements, each with 4 bytes of length, and only {end} bytes")
    if end < count * 512:  # bytes are cut faster than a view of them, which pays where the pieces are small
        data = bytes(data)
    pieces: list[bytes | memoryview] = []
    add, size_at = pieces.append, _LENGTH.unpack_from
    start = at = 0
    try:
        for _ in range(count):
            (size,) = size_at(data, at)
            start = at + 4
            at = start + size
            add(data[start:at])
    except struct.error:  # not even the length is there
        pass
    if at > end:
        raise InvalidInput(f"{label} element {len(pieces) - 1} is {at - start} bytes long, and {end - start} are left")
    if len(pieces) < count:
        raise InvalidInput(f"{label} ends within the length of element {len(pieces)}")
    if at < end:
        raise InvalidInput(f"{label} has {end - at} bytes after the {count} elements that its shape holds")
    return object_array(pieces if isinstance(data, bytes) else list(map(bytes, pieces)))


def _shown(shape: Sequence[Any]) -> str:
    return f"[{', '.join(str(size) if isinstance(size, (int, float)) else type(size).__name__ for size in shape)}]"
