"""Named arrays, the datatypes that the Open Inference Protocol has for them, and what a model says it takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from kservekit.errors import InvalidInput, ModelError

Tensors = dict[str, np.ndarray]
"""Named arrays in, named arrays out. A BYTES tensor is an array of dtype object that holds `bytes`."""

DATATYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
"""Open Inference Protocol, "Tensor Data Types", and Triton's BF16."""

_DATATYPE_OF = {dtype: name for name, dtype in DATATYPES.items()}
_NUMBERS = frozenset(DATATYPES.values()) - {DATATYPES["BYTES"]}


def numpy_dtype(datatype: str, label: str) -> np.dtype:
    """The NumPy dtype of a protocol datatype; InvalidInput names `label` where there is none."""
    try:
        return DATATYPES[datatype]
    except (KeyError, TypeError):
        known = ", ".join(DATATYPES)
        raise InvalidInput(f"{label} has datatype {str(datatype)[:40]!r}: expected one of {known}") from None


def datatype_of(array: np.ndarray, label: str) -> str:
    """The protocol's datatype for an array; ModelError names `label` where there is none (complex, datetime)."""
    found = _DATATYPE_OF.get(array.dtype)  # almost always; the rest takes longer
    if found is not None:
        return found
    if array.dtype.kind in "US":
        return "BYTES"
    try:
        return _DATATYPE_OF[array.dtype.newbyteorder("=")]
    except KeyError:
        raise ModelError(f"{label} is an array of {array.dtype}, which the protocol has no datatype for") from None


def object_array(values: list[Any]) -> np.ndarray:
    """A flat array of dtype object; np.array would look into the values and choose a dtype."""
    result = np.empty(len(values), dtype=np.object_)
    result[:] = values
    return result


def as_bytes(array: np.ndarray, label: str = "a BYTES tensor") -> np.ndarray:
    """An array of text or bytes, of any dtype that NumPy has for them, as dtype object holding `bytes`.

    ModelError names `label` where an element is neither.
    """
    values = array.ravel().tolist()
    if array.dtype == np.object_ and set(map(type, values)) <= {bytes}:
        return array
    for index, value in enumerate(values):
        if isinstance(value, str):
            values[index] = _encoded(value, label)
        elif not isinstance(value, bytes):
            where = "".join(f"[{at}]" for at in np.unravel_index(index, array.shape))
            raise ModelError(
                f"{label}{where} is of type {type(value).__name__}: expected bytes or str, or numbers alone"
            )
    return object_array(values).reshape(array.shape)


def _encoded(text: str, label: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ModelError(f"{label} holds text that UTF-8 has no form for") from None


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output that a model declares."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1 stands for any size; the first dimension is the batch's, where there is one."""
    content_type: str = ""
    """`base64` where a BYTES tensor is not text, so that JSON carries it as base64."""
    optional: bool = False
    """Whether a request may leave this input out."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if self.datatype not in DATATYPES:
            raise ValueError(f"{self.name!r} has datatype {self.datatype!r}: expected one of {', '.join(DATATYPES)}")

    @property
    def has_rows(self) -> bool:
        """Whether its first dimension takes any size, as a batch's does."""
        return self.shape[:1] == (-1,)

    def fits(self, shape: Iterable[int]) -> bool:
        shape = tuple(shape)
        return len(shape) == len(self.shape) and all(
            want in (-1, got) for want, got in zip(self.shape, shape, strict=True)
        )

    def as_metadata(self) -> dict[str, object]:
        """The form that the protocol's model metadata has."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a model takes and gives. Nothing declared means that nothing is checked."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    platform: str = ""
    versions: tuple[str, ...] = ()
    _inputs: dict[str, TensorSpec] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_inputs", {spec.name: spec for spec in self.inputs})

    def input(self, name: str) -> TensorSpec | None:
        return self._inputs.get(name)

    def output(self, name: str) -> TensorSpec | None:
        return next((spec for spec in self.outputs if spec.name == name), None)

    def check_inputs(self, tensors: Mapping[str, np.ndarray]) -> None:
        """InvalidInput where a name, datatype or shape is not the declared one."""
        if not self.inputs:
            return
        declared = self._inputs
        for name, array in tensors.items():
            spec = declared.get(name)
            if spec is None:
                raise InvalidInput(f"unknown input {name!r}: this model takes {', '.join(map(repr, declared))}")
            if (
                array.dtype is not DATATYPES[spec.datatype]
                and (datatype := datatype_of(array, f"input {name!r}")) != spec.datatype
            ):
                raise InvalidInput(f"input {name!r} is {datatype}: this model takes {spec.datatype}")
            if not spec.fits(array.shape):
                raise InvalidInput(f"input {name!r} has shape {list(array.shape)}: this model takes {list(spec.shape)}")
        missing = [name for name, spec in declared.items() if name not in tensors and not spec.optional]
        if missing:
            raise InvalidInput(f"missing input {', '.join(map(repr, sorted(missing)))}")


def check_outputs(outputs: object, where: str) -> Tensors:
    """What a handler returned, if it is named arrays; ModelError says what it is instead."""
    if not isinstance(outputs, Mapping):
        raise ModelError(f"{where} returned {type(outputs).__name__}: expected a dict of names and arrays")
    tensors: Tensors = {}
    for name, value in outputs.items():
        if isinstance(value, np.ndarray) and value.dtype in _NUMBERS:
            tensors[str(name)] = value
            continue
        label = f"output {name!r} of {where}"
        array = _as_array(value, label)
        if datatype_of(array, label) == "BYTES":
            array = as_bytes(array, label)
        tensors[str(name)] = array
    return tensors


def _as_array(value: object, label: str) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    try:
        array = np.asarray(value)
        # NumPy's own text strips NULs from the end of bytes, and takes 1 among strings for "1".
        return np.array(value, dtype=np.object_) if array.dtype.kind in "SU" else array
    except (ValueError, TypeError, OverflowError) as error:
        raise ModelError(f"{label} is no array: {error}") from None
