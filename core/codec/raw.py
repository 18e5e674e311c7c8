"""The protocol's raw form of a tensor: little-endian elements in row-major order, BYTES with a length before each.

Shared by REST's binary extension and gRPC's raw contents (Open Inference Protocol, "Raw Tensor Contents").
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from kservekit.errors import InvalidInput
from kservekit.tensors import as_bytes, numpy_dtype

MAX_DIMENSIONS = 32


def element_count(shape: Sequence[Any], label: str) -> int:
    """How many elements a shape from outside holds; InvalidInput where it is no shape."""
    if len(shape) > MAX_DIMENSIONS:
        raise InvalidInput(f"{label} has {len(shape)} dimensions: expected at most {MAX_DIMENSIONS}")
    for size in shape:
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**40:
            raise InvalidInput(f"{label} has shape {list(shape)}: expected whole numbers from 0 up")
    return math.prod(shape)


def tensor_from_raw(data: bytes | memoryview, datatype: str, shape: Sequence[Any], label: str) -> np.ndarray:
    """A tensor as a view of `data` (BYTES: an array of `bytes`); InvalidInput where length and shape disagree."""
    count = element_count(shape, label)
    dtype = numpy_dtype(datatype, label)
    if datatype == "BYTES":
        return _bytes_elements(data, count, label).reshape(shape)
    size = count * dtype.itemsize
    if len(data) != size:
        raise InvalidInput(f"{label} is {datatype} of shape {list(shape)}, which is {size} bytes, and has {len(data)}")
    return np.frombuffer(data, dtype=dtype.newbyteorder("<")).view(dtype).reshape(shape)


def raw_bytes(values: np.ndarray) -> bytes | memoryview:
    """A tensor's raw form: a view of the array where its memory has that form already, else one copy."""
    if values.dtype.kind in "OUS":
        parts: list[bytes] = []
        for element in as_bytes(values).ravel().tolist():
            parts += (struct.pack("<I", len(element)), element)
        return b"".join(parts)
    values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return values.reshape(-1).view(np.uint8).data if values.size else b""


def _bytes_elements(data: bytes | memoryview, count: int, label: str) -> np.ndarray:
    data = memoryview(data)
    if count * 4 > len(data):
        raise InvalidInput(f"{label} has {count} elements, each with 4 bytes of length, and only {len(data)} bytes")
    elements: list[bytes] = []
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise InvalidInput(f"{label} ends within the length of element {len(elements)}")
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if size > len(data) - at:
            raise InvalidInput(f"{label} element {len(elements)} is {size} bytes long, and {len(data) - at} are left")
        elements.append(bytes(data[at : at + size]))
        at += size
    if len(elements) != count:
        raise InvalidInput(f"{label} has {len(elements)} elements, and its shape holds {count}")
    result = np.empty(count, dtype=np.object_)
    result[:] = elements
    return result
