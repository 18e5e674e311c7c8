"""The Open Inference Protocol over gRPC: its messages, as bytes, to named arrays and back.

The message classes come in by hand, KServe's or tritonclient's: both are generated from the same protocol. Raw contents
never pass through them, and what stands beside raw contents does so once: a model is asked the same thing over and
over, all but the numbers and the id.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from kservekit.codec.grpc_wire import cut_out, put_in
from kservekit.codec.json_values import shown
from kservekit.codec.message import (
    MOST_JSON_BYTES,
    MOST_TENSORS,
    Answer,
    Beside,
    Request,
    check_count,
    check_lengths,
    check_name,
    check_text_size,
)
from kservekit.codec.parameters import check_known
from kservekit.codec.raw import MAX_DIMENSIONS, RawLayout, element_count, raw_bytes
from kservekit.errors import InvalidInput, ModelError
from kservekit.tensors import ModelSpec, Tensors, TensorSpec, datatype_of, numpy_dtype, object_array

CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field that holds a datatype's typed contents; those that are not here travel raw."""

_RAW_INPUTS, _RAW_OUTPUTS, _ID = 7, 6, 3
"""The numbers of raw_input_contents, of raw_output_contents, and of both messages' id."""

_REMEMBERED, _LONGEST_REMEMBERED = 256, 1024
"""How many heads, and of how many bytes: some MiB in all, whatever comes in."""

MOST_PARAMETERS = 256
"""Of one message or output; each takes a step of ours."""


def decode_request(
    data: bytes, messages: Any, *, max_tensors: int = MOST_TENSORS, max_typed_bytes: int = MOST_JSON_BYTES
) -> Request:
    """A ModelInferRequest, its raw tensors as views of `data`.

    Raises InvalidInput for what is not the protocol's, and for more than `max_tensors` inputs or outputs;
    PayloadTooLarge for more than `max_typed_bytes` beside the raw contents, or of lengths in them.
    """
    head, id, tensors = _decoded(data, messages.ModelInferRequest, "input", max_tensors, max_typed_bytes)
    return Request(
        tensors,
        model=head.model,
        version=head.version,
        id=check_name(id, "the id"),
        parameters=dict(head.parameters),
        outputs={name: dict(parameters) for name, parameters in head.requested.items()},
    )


def encode_answer(answer: Answer, messages: Any) -> bytes:
    """A ModelInferResponse with raw contents, as Triton answers too, unless it says that it is to be typed."""
    said = (messages.ModelInferResponse, "output", answer.model, answer.version, _described(answer.tensors, "output"))
    if answer.beside is not None:
        return _with_what_is_beside(answer, answer.beside, _message(*said))
    if answer.parameters:
        message = _message(*said)
        _set_parameters(message.parameters, answer.parameters, ModelError)
        head = message.SerializeToString()
    else:
        head = _plain_head(*said)
    return _with_contents(head, answer.id, _RAW_OUTPUTS, answer.tensors, "output")


def _with_what_is_beside(answer: Answer, beside: Beside, message: Any) -> bytes:
    _set_parameters(message.parameters, answer.parameters, ModelError)
    for item in message.outputs:
        _set_parameters(item.parameters, beside.outputs.get(item.name, {}), ModelError)
        if beside.typed:
            getattr(item.contents, CONTENTS[item.datatype]).extend(answer.tensors[item.name].ravel().tolist())
    raw = {} if beside.typed else answer.tensors
    return _with_contents(message.SerializeToString(), answer.id, _RAW_OUTPUTS, raw, "output")


def encode_request(request: Request, messages: Any) -> bytes:
    """A ModelInferRequest with raw contents."""
    if request.parameters or request.outputs:
        head = request_message(request, messages).SerializeToString()
        return _with_contents(head, "", _RAW_INPUTS, request.tensors, "input")
    described = _described(request.tensors, "input")
    head = _plain_head(messages.ModelInferRequest, "input", request.model, request.version, described)
    return _with_contents(head, request.id, _RAW_INPUTS, request.tensors, "input")


def request_message(request: Request, messages: Any) -> Any:
    """A ModelInferRequest without its contents; InvalidInput for parameters that gRPC or Triton does not take."""
    check_known(request.parameters)
    described = _described(request.tensors, "input")
    message = _message(messages.ModelInferRequest, "input", request.model, request.version, described)
    message.id = request.id
    _set_parameters(message.parameters, request.parameters)
    for name, parameters in request.outputs.items():
        _set_parameters(message.outputs.add(name=name).parameters, parameters)
    return message


def decode_answer(data: bytes, messages: Any) -> Answer:
    """A ModelInferResponse, raw (views of `data`) or typed."""
    head, id, tensors = _decoded(data, messages.ModelInferResponse, "output")
    return Answer(tensors, model=head.model, version=head.version, id=id, parameters=dict(head.parameters))


def decode_metadata(message: Any) -> ModelSpec:
    """A ModelMetadataResponse as what the model declares."""
    specs = [
        tuple(TensorSpec(item.name, item.datatype, tuple(item.shape)) for item in items)
        for items in (message.inputs, message.outputs)
    ]
    return ModelSpec(specs[0], specs[1], platform=message.platform, versions=tuple(message.versions))


@dataclass(frozen=True, slots=True)
class _Head:
    """What a message says beside its id and its raw contents. Shared by those that say the same: not to be written."""

    model: str
    version: str
    parameters: dict[str, Any]
    requested: dict[str, dict[str, Any]]
    typed: Any
    """The messages of tensors that came with typed contents."""
    layouts: dict[str, RawLayout]
    """Of those that came raw."""


def _decoded(
    data: bytes, kind: Any, what: str, most: int | None = None, most_typed: int | None = None
) -> tuple[_Head, str, Tensors]:
    text, raw, id = cut_out(data, _RAW_INPUTS if what == "input" else _RAW_OUTPUTS, _ID)
    if most_typed is not None:
        check_text_size(len(text), most_typed, "the message without raw contents is", "send tensors as raw contents")
    remembered = raw and len(text) <= _LONGEST_REMEMBERED
    head = (_read_before if remembered else _read)(text, kind, what, len(raw), most)
    if raw:
        if most_typed is not None:
            check_lengths(sum(map(RawLayout.lengths_in, head.layouts.values(), raw)), most_typed)
        tensors = {name: layout.tensor(part) for (name, layout), part in zip(head.layouts.items(), raw, strict=True)}
    else:
        tensors = {item.name: _typed(item, item.shape[: MAX_DIMENSIONS + 1], _label(item, what)) for item in head.typed}
    return head, id, tensors


def _read(text: bytes, kind: Any, what: str, raw: int, most: int | None) -> _Head:
    try:
        message = kind.FromString(text)
    except DecodeError:
        raise InvalidInput("malformed protobuf message") from None
    requested = message.outputs if what == "input" else ()
    items = message.inputs if what == "input" else message.outputs
    if most is not None:
        check_count(len(items), "inputs", most)
        check_count(len(requested), "outputs", most)
    if raw and raw != len(items):
        raise InvalidInput(f"{raw} raw contents for {len(items)} {what}s: expected one each, or none")
    layouts: dict[str, RawLayout] = {}
    names: set[str] = set()
    for index, item in enumerate(items):
        if not item.name:
            raise InvalidInput(f"{what} {index} has no name")
        if check_name(item.name, f"the name of {what} {index}") in names:
            raise InvalidInput(f"{_label(item, what)} is there twice")
        names.add(item.name)
        if raw and item.HasField("contents"):
            raise InvalidInput(f"{_label(item, what)} has both raw and typed contents")
        if raw:  # of a shape more than the dimensions that there may be is too much anyway
            shape = item.shape[: MAX_DIMENSIONS + 1]
            layouts[item.name] = RawLayout.of(item.datatype, shape, _label(item, what))
    outputs = {check_name(each.name, "an output's name"): _parameters(each.parameters) for each in requested}
    model, version = (
        check_name(message.model_name, "the model's name"),
        check_name(message.model_version, "the version"),
    )
    return _Head(model, version, _parameters(message.parameters), outputs, () if raw else items, layouts)


_read_before = lru_cache(_REMEMBERED)(_read)


def _label(item: Any, what: str) -> str:
    return f"{what} {shown(item.name)}"


def _typed(item: Any, shape: list[int], label: str) -> np.ndarray:
    dtype = numpy_dtype(item.datatype, label)
    count = element_count(shape, label)
    if item.datatype not in CONTENTS:
        raise InvalidInput(f"{label} is {item.datatype}, which gRPC carries as raw contents only")
    field = CONTENTS[item.datatype]
    filled = [set_field.name for set_field, _ in item.contents.ListFields()]
    if [name for name in filled if name != field]:
        raise InvalidInput(f"{label} is {item.datatype} and has {filled[0]}: expected {field}")
    values = getattr(item.contents, field)
    if len(values) != count:
        raise InvalidInput(f"{label} has shape {shape}, which is {count} elements, and {len(values)} {field}")
    if item.datatype == "BYTES":
        return object_array(list(values)).reshape(shape)
    # Small integers come in fields of 32 bits, which hold more than their datatype.
    wide = {"i": np.int64, "u": np.uint64}.get(dtype.kind, dtype)
    found = np.fromiter(values[:], wide, count)  # a list of them, which NumPy reads faster than the field
    if count and wide is not dtype:
        limits = np.iinfo(dtype)
        if int(found.min()) < limits.min or int(found.max()) > limits.max:
            raise InvalidInput(
                f"{label} holds a value outside {limits.min} to {limits.max}, the range of {item.datatype}"
            )
    return found.astype(dtype, copy=False).reshape(shape)


_Described = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, datatype and shape of each tensor."""


def _described(tensors: Tensors, what: str) -> _Described:
    return tuple((name, datatype_of(values, f"{what} {name!r}"), values.shape) for name, values in tensors.items())


def _message(kind: Any, what: str, model: str, version: str, described: _Described) -> Any:
    message = kind(model_name=model, model_version=version)
    items = message.inputs if what == "input" else message.outputs
    for name, datatype, shape in described:
        items.add(name=name, datatype=datatype, shape=shape)
    return message


def _plain_head(kind: Any, what: str, model: str, version: str, described: _Described) -> bytes:
    length = len(model) + len(version) + sum(len(name) + 8 * len(shape) for name, _, shape in described)
    write = _written_before if length <= _LONGEST_REMEMBERED else _written
    return write(kind, what, model, version, described)


def _written(kind: Any, what: str, model: str, version: str, described: _Described) -> bytes:
    head: bytes = _message(kind, what, model, version, described).SerializeToString()
    return head


_written_before = lru_cache(_REMEMBERED)(_written)


def _with_contents(head: bytes, id: str, field: int, tensors: Tensors, what: str) -> bytes:
    raw = [raw_bytes(values, f"{what} {name!r}") for name, values in tensors.items()]
    return put_in(put_in(head, _ID, [id.encode()]) if id else head, field, raw)


def _parameters(fields: Any) -> dict[str, Any]:
    if len(fields) > MOST_PARAMETERS:
        raise InvalidInput(f"{len(fields)} parameters: expected at most {MOST_PARAMETERS}")
    found = {}
    for key, value in fields.items():
        choice = value.WhichOneof("parameter_choice")
        found[check_name(key, "a parameter's name")] = getattr(value, choice) if choice else None
    return found


def _set_parameters(
    fields: Any, parameters: dict[str, Any], error: type[InvalidInput | ModelError] = InvalidInput
) -> None:
    for key, value in parameters.items():
        if isinstance(value, bool):
            fields[key].bool_param = value
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise error(f"parameter {shown(key)} is {value}: gRPC carries whole numbers that fit INT64")
            fields[key].int64_param = value
        elif isinstance(value, str):
            fields[key].string_param = value
        elif isinstance(value, float) and hasattr(fields[key], "double_param"):
            fields[key].double_param = value
        else:
            raise error(f"parameter {shown(key)} is {shown(value)}: gRPC carries booleans, whole numbers and strings")
