"""JSON values to arrays and back, with every cast checked: 300 never becomes a UINT8.

What is done to every value is done in C (map, itertools, NumPy), at some 50 ns each; Python itself looks only for the
one that is wrong.
"""

from __future__ import annotations

import base64
import binascii
import gc
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, compress
from operator import indexOf
from typing import Any, NamedTuple

import numpy as np
import orjson

from kservekit.codec.raw import MAX_DIMENSIONS, element_count
from kservekit.errors import InvalidInput, ModelError
from kservekit.tensors import DATATYPES, as_bytes, datatype_of, numpy_dtype, object_array

_EXACT_FLOAT = 2.0**53
"""From here on a float stands for several whole numbers. orjson reads those beyond 64 bits as floats, too."""

DEEPEST = 64
"""Levels of lists and objects. orjson reads 1,024 of them and writes 254: what comes in must go out again."""

_LEAF_TYPES: dict[str, tuple[set[type], str]] = {
    "BOOL": ({bool}, "true or false"),
    "BYTES": ({str, dict}, "a string"),
}
_NUMBERS: tuple[set[type], str] = ({int, float}, "a number")


def loads(body: bytes | bytearray | memoryview) -> Any:
    # A million lists set off the garbage collector, which finds nothing and takes five times as long as reading them.
    pauses = len(body) > _LARGE and gc.isenabled()
    if pauses:
        gc.disable()
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"malformed JSON: {error}") from None
    finally:
        if pauses:
            gc.enable()


_LARGE = 65_536
"""Bytes of JSON."""


def check_depth(value: Any, label: str) -> Any:
    """The value, where nothing in it lies deeper than is handed on; InvalidInput names `label`.

    For what nobody looks into who could say more: parameters, events, the body of a model that takes JSON itself.
    """
    containers = [value] if type(value) in _CONTAINERS else []
    for _ in range(DEEPEST):
        if not containers:
            return value
        inside = chain.from_iterable(each.values() if type(each) is dict else each for each in containers)
        containers = [each for each in inside if type(each) in _CONTAINERS]
    if containers:
        raise InvalidInput(f"{label}: nested over {DEEPEST} levels deep, the most there may be")
    return value


_CONTAINERS = (dict, list)


def dumps(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def array(
    values: Any,
    datatype: str | None,
    label: str,
    *,
    shape: Sequence[Any] | None = None,
    is_base64: bool = False,
) -> np.ndarray:
    """Nested lists (or a single value) as an array of `datatype`, or of what the JSON types say.

    Without a datatype booleans become BOOL, whole numbers INT64 (UINT64 where they are beyond), other numbers FP64 and
    strings BYTES. `shape` is the declared one, which flat lists get too, and which is compared first.
    Raises InvalidInput with `label` and the position of the first value that does not fit.
    """
    dtype = None if datatype is None else numpy_dtype(datatype, label)
    if shape is not None:
        check_fits(_first_shape(values), shape, label)
    found = _flattened(values, label)
    if not found.leaves:
        result = np.empty(0, np.float64 if dtype is None else dtype)
    else:
        result = _array(found, datatype, is_base64)
    return result.reshape(found.shape if shape is None else shape)


def check_fits(found: tuple[int, ...], shape: Sequence[Any], label: str) -> None:
    """InvalidInput unless data of shape `found` is flat, or nested as `shape` is."""
    count = element_count(shape, label)
    if not found:
        fits = count == 1
    elif len(found) == 1:
        fits = found == (count,)
    else:  # empty lists end the nesting: [[], []] is [2, 0, 3], too
        fits = found == tuple(shape[: len(found)]) and (len(found) == len(shape) or found[-1] == 0)
    if not fits:
        raise InvalidInput(
            f"{label} has shape {list(shape)}, which is {count} elements, and data of shape {list(found)}"
        )


def flat_list(
    values: np.ndarray, label: str, *, as_base64: bool = False, error: type[InvalidInput | ModelError] = ModelError
) -> Any:
    """An array as what orjson writes as a JSON list of its elements in row-major order."""
    return plain(values.reshape(-1), label, as_base64=as_base64, error=error)


def plain(
    values: np.ndarray, label: str, *, as_base64: bool = False, error: type[InvalidInput | ModelError] = ModelError
) -> Any:
    """An array as what orjson writes as nested JSON lists; `error` for what JSON cannot hold.

    That is a model's fault in an answer, and a caller's in a request that goes on to somebody's server.
    """
    if datatype_of(values, label) == "BYTES":
        elements = as_bytes(values, label).ravel().tolist()
        try:
            texts = list(map(bytes.decode, map(base64.b64encode, elements) if as_base64 else elements))
        except UnicodeDecodeError:
            raise error(f"{label} holds bytes that are not UTF-8; declare its content_type as base64") from None
        return object_array(texts).reshape(values.shape).tolist()
    if values.dtype.kind not in "biu":
        if values.dtype.itemsize < 4:  # FP16 and BF16, which JSON writers do not know
            values = values.astype(np.float32)
        if np.count_nonzero(np.isfinite(values)) < values.size:  # NumPy's .all() takes five times as long for a few
            raise error(f"{label} holds NaN or Inf, which JSON has no form for; {_WAY_OUT[error]}")
    if values.dtype.isnative and values.flags.c_contiguous:
        return values
    return np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="), copy=False))


_WAY_OUT = {
    ModelError: "ask for binary data or by gRPC",
    InvalidInput: "the predictor of this model is reached by JSON",
}


class _Found(NamedTuple):
    """Values on one level of nested lists, in row-major order."""

    leaves: list[Any]
    shape: tuple[int, ...]
    label: str

    def refused(self, index: int, expected: str) -> InvalidInput:
        where = "".join(f"[{at}]" for at in np.unravel_index(index, self.shape))
        return InvalidInput(f"{self.label}{where} is {shown(self.leaves[index])}: expected {expected}")


def _first_shape(values: Any) -> tuple[int, ...]:
    """The shape as the first lists have it: what the others must have, too."""
    shape: list[int] = []
    while type(values) is list and len(shape) <= MAX_DIMENSIONS:
        shape.append(len(values))
        values = values[0] if values else None
    return tuple(shape)


def _flattened(values: Any, label: str) -> _Found:
    found = _Found([values], (), label)
    while found.leaves and type(found.leaves[0]) is list:
        lists = found.leaves
        if len(found.shape) == MAX_DIMENSIONS:
            raise InvalidInput(f"{label} is nested too deep: expected at most {MAX_DIMENSIONS} dimensions")
        length = len(lists[0])
        if len(lists) > 1:
            if odd := set(map(type, lists)) - {list}:
                raise found.refused(_first_of(odd, lists), f"a list of {length}")
            lengths = np.fromiter(map(len, lists), np.int64, len(lists))
            if (lengths != length).any():
                raise found.refused(int((lengths != length).argmax()), f"a list of {length}")
        inner = lists[0] if len(lists) == 1 else list(chain.from_iterable(lists))
        found = _Found(inner, (*found.shape, length), label)
    return found


def _first_of(types: set[type], leaves: list[Any]) -> int:
    return min(indexOf(map(type, leaves), kind) for kind in types)


def _array(found: _Found, datatype: str | None, is_base64: bool) -> np.ndarray:
    leaves = found.leaves
    like = datatype or {bool: "BOOL", str: "BYTES", dict: "BYTES"}.get(type(leaves[0]), "")
    allowed, expected = _LEAF_TYPES.get(like, _NUMBERS)
    types = set(map(type, leaves))
    if odd := types - allowed:
        raise found.refused(_first_of(odd, leaves), expected)
    if bool in types:
        return np.fromiter(leaves, np.bool_, len(leaves))
    if allowed is not _NUMBERS[0]:
        return _bytes(found, types, is_base64)
    numbers = _numbers(found, types, datatype)
    return numbers if datatype is None else _cast(numbers, datatype, found)


def _bytes(found: _Found, types: set[type], is_base64: bool) -> np.ndarray:
    read = _from_base64 if is_base64 else str.encode
    try:
        if types == {str}:
            return object_array(list(map(read, found.leaves)))
        return object_array([_element(value, read) for value in found.leaves])
    except ValueError:
        pass
    for index, value in enumerate(found.leaves):
        try:
            _element(value, read)
        except ValueError:
            if type(value) is dict:
                raise found.refused(index, 'a string, or {"b64": ...} with base64') from None
            raise found.refused(index, "base64" if is_base64 else "text that UTF-8 has a form for") from None
    raise AssertionError("one of the values was refused")


_from_base64: Callable[[str], bytes] = partial(binascii.a2b_base64, strict_mode=True)


def _element(value: Any, read: Callable[[str], bytes]) -> bytes:
    if type(value) is str:
        return read(value)
    if len(value) == 1 and type(value.get("b64")) is str:
        return _from_base64(value["b64"])
    raise ValueError


def _numbers(found: _Found, types: set[type], datatype: str | None) -> np.ndarray:
    """INT64, else UINT64, else FP64; whole numbers that the datatype keeps are never rounded on the way."""
    leaves, count = found.leaves, len(found.leaves)
    dtype = DATATYPES[datatype] if datatype else None
    whole = dtype is not None and dtype.kind in "iu"
    if float in types:
        floats = _floats(found)
        if not whole:
            return floats
        if not (np.trunc(floats) == floats).all():
            raise found.refused(int((np.trunc(floats) != floats).argmax()), f"a whole number for {datatype}")
        far = np.abs(floats) >= _EXACT_FLOAT
        if not far.any():
            return floats
        far_types = list(compress(map(type, leaves), far.tolist()))
        if float in far_types:
            index = int(np.flatnonzero(far)[far_types.index(float)])
            raise found.refused(index, f"{_range(datatype)}, and no point or exponent from 2**53 on")
        leaves = list(map(int, leaves))
    try:
        return np.fromiter(leaves, np.int64, count)
    except OverflowError:
        if min(leaves) >= 0 and max(leaves) < 2**64:
            return np.fromiter(leaves, np.uint64, count)
    if dtype is not None and not whole:
        return _floats(found)
    limits = np.iinfo(dtype if dtype is not None else np.int64)
    index = next(index for index, value in enumerate(leaves) if not limits.min <= value <= limits.max)
    raise found.refused(index, _range(datatype) if datatype else "whole numbers that all fit INT64, or all UINT64")


def _floats(found: _Found) -> np.ndarray:
    try:
        return np.fromiter(found.leaves, np.float64, len(found.leaves))
    except OverflowError:
        index = next(index for index, value in enumerate(found.leaves) if abs(value) > sys.float_info.max)
        raise found.refused(index, "a number in the range of FP64") from None


def _range(datatype: str | None) -> str:
    limits = np.iinfo(DATATYPES[datatype or "INT64"])
    return f"{limits.min} to {limits.max} for {datatype}"


def _cast(numbers: np.ndarray, datatype: str, found: _Found) -> np.ndarray:
    dtype = DATATYPES[datatype]
    if numbers.dtype == dtype:
        return numbers
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if int(numbers.min()) < limits.min:
            raise found.refused(int((numbers < limits.min).argmax()), _range(datatype))
        if int(numbers.max()) > limits.max:
            raise found.refused(int((numbers > limits.max).argmax()), _range(datatype))
        return numbers.astype(dtype)
    with np.errstate(over="ignore"):
        result = numbers.astype(dtype)
    finite = np.isfinite(result)
    if np.count_nonzero(finite) < finite.size:
        raise found.refused(int(finite.argmin()), f"a number in the range of {datatype}")
    return result


def shown(value: Any) -> str:
    """A value as JSON has it, where that is short."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        return repr(value if len(value) < 40 else f"{value[:40]}...")
    return "null" if value is None else repr(value).lower()
