"""JSON values to arrays and back, with every cast checked: 300 never becomes a UINT8."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import orjson

from kservekit.errors import InvalidInput, ModelError
from kservekit.tensors import as_bytes, datatype_of, numpy_dtype


def loads(body: bytes | bytearray | memoryview) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"malformed JSON: {error}") from None


def dumps(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def may_hold_booleans(body: bytes | bytearray | memoryview) -> bool:
    """Whether a JSON text has a literal in it that NumPy would silently mix with numbers."""
    text = bytes(body)
    return b"true" in text or b"false" in text


def array(values: Any, datatype: str | None, label: str, *, booleans: bool, is_base64: bool = False) -> np.ndarray:
    """Nested lists (or a single value) as an array of `datatype`, or of what the JSON types say.

    Without a datatype booleans become BOOL, whole numbers INT64, other numbers FP64 and strings BYTES.
    `booleans` says whether the text may hold true or false, which only a walk can tell from 1 and 0.
    Raises InvalidInput with `label` and the position of the first value that does not fit.
    """
    try:
        return _array(values, datatype, label, booleans, is_base64)
    except RecursionError:
        raise InvalidInput(f"{label} is nested too deep") from None


def _array(values: Any, datatype: str | None, label: str, booleans: bool, is_base64: bool) -> np.ndarray:
    if datatype == "BYTES" or (datatype is None and isinstance(_first_leaf(values), (str, dict))):
        return _strings(values, label, is_base64)
    if booleans:
        _check_one_kind(values, label)
    try:
        found = np.array(values)
    except ValueError:
        raise InvalidInput(_why_ragged(values, label)) from None
    if found.dtype.kind not in "biuf":
        raise InvalidInput(_why_not_numbers(values, label))
    if datatype == "UINT64" and found.dtype.kind == "f":
        found = _beyond_int64(values, found)
    if datatype is None:
        return found if found.size else found.astype(np.float64)
    return _cast(found, datatype, label)


def flat_list(values: np.ndarray, label: str, *, as_base64: bool = False) -> Any:
    """An array as what orjson writes as a JSON list of its elements in row-major order."""
    return plain(values.reshape(-1), label, as_base64=as_base64)


def plain(values: np.ndarray, label: str, *, as_base64: bool = False) -> Any:
    """An array as what orjson writes as nested JSON lists; ModelError for what JSON cannot hold."""
    if datatype_of(values, label) == "BYTES":
        write = _as_base64 if as_base64 else _as_text
        return _map_leaves(as_bytes(values).tolist(), lambda value: write(value, label))
    if values.dtype.kind not in "biu":
        if values.dtype.itemsize < 4:  # FP16 and BF16, which JSON writers do not know
            values = values.astype(np.float32)
        if not np.isfinite(values).all():
            raise ModelError(f"{label} holds NaN or Inf, which JSON has no form for; ask for binary data or by gRPC")
    return np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="), copy=False))


def decode_base64(value: str, label: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(f"{label} is not base64") from None


def _as_text(value: bytes, label: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ModelError(f"{label} holds bytes that are not UTF-8; declare its content_type as base64") from None


def _as_base64(value: bytes, _label: str) -> str:
    return base64.b64encode(value).decode()


def _map_leaves(values: Any, write: Callable[[bytes], str]) -> Any:
    return [_map_leaves(value, write) for value in values] if isinstance(values, list) else write(values)


def _beyond_int64(values: Any, found: np.ndarray) -> np.ndarray:
    """Whole numbers on both sides of INT64's end, which NumPy takes for floats, without their rounding."""
    exact = np.array(values, dtype=np.object_)
    if all(isinstance(value, int) and 0 <= value < 2**64 for value in exact.ravel().tolist()):
        return exact.astype(np.uint64)
    return found


def _first_leaf(values: Any) -> Any:
    while isinstance(values, list) and values:
        values = values[0]
    return values


def _leaves(values: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, list):
        for index, value in enumerate(values):
            yield from _leaves(value, f"{at}[{index}]")
    else:
        yield at, values


def _strings(values: Any, label: str, is_base64: bool) -> np.ndarray:
    found = np.array(values, dtype=np.object_)
    leaves = found.reshape(-1)
    for index, value in enumerate(leaves.tolist()):
        at = f"{label} [{', '.join(map(str, np.unravel_index(index, found.shape)))}]" if found.ndim else label
        if isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str):
            leaves[index] = decode_base64(value["b64"], at)
        elif isinstance(value, str):
            leaves[index] = decode_base64(value, at) if is_base64 else value.encode()
        elif isinstance(value, list):
            raise InvalidInput(_why_ragged(values, label))
        else:
            raise InvalidInput(f"{at} is {_json_name(value)}: expected a string")
    return found


def _check_one_kind(values: Any, label: str) -> None:
    kinds: set[bool] = set()
    for at, value in _leaves(values):
        kinds.add(isinstance(value, bool))
        if len(kinds) > 1:
            raise InvalidInput(f"{label}{at} is {_json_name(value)} among values of another type")


def _why_ragged(values: Any, label: str) -> str:
    """The first row whose shape is not the first row's, found only once something is wrong."""

    def shape(value: Any) -> tuple[int, ...] | None:
        if not isinstance(value, list):
            return ()
        inner = {shape(item) for item in value}
        if len(inner) > 1 or None in inner:
            return None
        return (len(value), *(inner.pop() if inner else ()))  # type: ignore[misc]

    rows = values if isinstance(values, list) else [values]
    want = shape(rows[0])
    for index, row in enumerate(rows):
        got = shape(row)
        if got is None:
            return f"{label} row {index} is ragged: its lists differ in length"
        if got != want:
            return f"{label} row {index} has shape {list(got)}, and row 0 has {list(want or ())}"
    return f"{label} is ragged"


def _why_not_numbers(values: Any, label: str) -> str:
    for at, value in _leaves(values):
        if not isinstance(value, (int, float)):
            return f"{label}{at} is {_json_name(value)}: expected a number"
    return f"{label} holds a number that fits no datatype"


def _json_name(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "an object"
    return repr(value) if len(repr(value)) < 40 else type(value).__name__


def _cast(found: np.ndarray, datatype: str, label: str) -> np.ndarray:
    dtype = numpy_dtype(datatype, label)
    if found.dtype == dtype:
        return found
    if not found.size:
        return found.astype(dtype)
    if (dtype.kind == "b") != (found.dtype.kind == "b"):
        raise InvalidInput(f"{label} holds {'booleans' if found.dtype.kind == 'b' else 'numbers'}: expected {datatype}")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if found.dtype.kind == "f":
            _refuse(found, np.trunc(found) != found, f"expected a whole number for {datatype}", label)
        if int(found.min()) < limits.min or int(found.max()) > limits.max:
            outside = (
                (found < limits.min) | (found > limits.max) | (found == found.max()) & (int(found.max()) > limits.max)
            )
            _refuse(found, outside, f"expected {limits.min} to {limits.max} for {datatype}", label)
        return found.astype(dtype)
    with np.errstate(over="ignore"):
        result = found.astype(dtype)
    _refuse(found, ~np.isfinite(result.astype(np.float64)), f"out of the range of {datatype}", label)
    return result


def _refuse(found: np.ndarray, wrong: np.ndarray, why: str, label: str) -> None:
    if wrong.any():
        at = tuple(int(index) for index in np.argwhere(wrong)[0])
        where = "".join(f"[{index}]" for index in at)
        raise InvalidInput(f"{label}{where} is {found[at].item()!r}: {why}")
