"""The Open Inference Protocol over gRPC: its messages, as bytes, to named arrays and back.

The message classes come in by hand, KServe's or tritonclient's: both are generated from the same protocol. Raw contents
never pass through them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from kservekit.codec.grpc_wire import cut_out, put_in
from kservekit.codec.json_values import shown
from kservekit.codec.message import MOST_TENSORS, Answer, Request, check_count
from kservekit.codec.raw import MAX_DIMENSIONS, element_count, raw_bytes, tensor_from_raw
from kservekit.errors import InvalidInput, ModelError
from kservekit.tensors import ModelSpec, Tensors, TensorSpec, datatype_of, numpy_dtype, object_array

_CONTENTS = {
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


_RAW_INPUTS, _RAW_OUTPUTS = 7, 6
"""The numbers of raw_input_contents and raw_output_contents."""

MOST_PARAMETERS = 256
"""Of one message or output; each takes a step of ours."""


def decode_request(data: bytes, messages: Any, *, max_tensors: int = MOST_TENSORS) -> Request:
    """A ModelInferRequest, its raw tensors as views of `data`.

    Raises InvalidInput for what is not the protocol's, and for more than `max_tensors` inputs or outputs.
    """
    message, raw = _parsed(data, messages.ModelInferRequest, _RAW_INPUTS)
    check_count(len(message.inputs), "inputs", max_tensors)
    check_count(len(message.outputs), "outputs", max_tensors)
    return Request(
        _tensors(message.inputs, raw, "input"),
        model=message.model_name,
        version=message.model_version,
        id=message.id,
        parameters=_parameters(message.parameters),
        outputs={output.name: _parameters(output.parameters) for output in message.outputs},
    )


def encode_answer(answer: Answer, messages: Any) -> bytes:
    """A ModelInferResponse with raw contents, as Triton answers too."""
    reply = messages.ModelInferResponse(model_name=answer.model, model_version=answer.version, id=answer.id)
    _set_parameters(reply.parameters, answer.parameters, ModelError)
    raw = _add_tensors(reply.outputs, answer.tensors, "output")
    return put_in(reply.SerializeToString(), _RAW_OUTPUTS, raw)


def encode_request(request: Request, messages: Any) -> bytes:
    """A ModelInferRequest with raw contents."""
    message = messages.ModelInferRequest(model_name=request.model, model_version=request.version, id=request.id)
    _set_parameters(message.parameters, request.parameters)
    for name, parameters in request.outputs.items():
        _set_parameters(message.outputs.add(name=name).parameters, parameters)
    raw = _add_tensors(message.inputs, request.tensors, "input")
    return put_in(message.SerializeToString(), _RAW_INPUTS, raw)


def decode_answer(data: bytes, messages: Any) -> Answer:
    """A ModelInferResponse, raw (views of `data`) or typed."""
    message, raw = _parsed(data, messages.ModelInferResponse, _RAW_OUTPUTS)
    return Answer(
        _tensors(message.outputs, raw, "output"),
        model=message.model_name,
        version=message.model_version,
        id=message.id,
        parameters=_parameters(message.parameters),
    )


def decode_metadata(message: Any) -> ModelSpec:
    """A ModelMetadataResponse as what the model declares."""
    specs = [
        tuple(TensorSpec(item.name, item.datatype, tuple(item.shape)) for item in items)
        for items in (message.inputs, message.outputs)
    ]
    return ModelSpec(specs[0], specs[1], platform=message.platform, versions=tuple(message.versions))


def _parsed(data: bytes, kind: Any, raw_field: int) -> tuple[Any, list[memoryview]]:
    head, raw = cut_out(data, raw_field)
    try:
        return kind.FromString(head), raw
    except DecodeError:
        raise InvalidInput("malformed protobuf message") from None


def _tensors(items: Any, raw: list[memoryview], kind: str) -> Tensors:
    if raw and len(raw) != len(items):
        raise InvalidInput(f"{len(raw)} raw contents for {len(items)} {kind}s: expected one each, or none")
    tensors: Tensors = {}
    for index, item in enumerate(items):
        label = f"{kind} {shown(item.name)}"
        if not item.name:
            raise InvalidInput(f"{kind} {index} has no name")
        if item.name in tensors:
            raise InvalidInput(f"{label} is there twice")
        shape = item.shape[: MAX_DIMENSIONS + 1]  # a list; more is too much anyway
        if not raw:
            tensors[item.name] = _typed(item, shape, label)
        elif item.HasField("contents"):
            raise InvalidInput(f"{label} has both raw and typed contents")
        else:
            tensors[item.name] = tensor_from_raw(raw[index], item.datatype, shape, label)
    return tensors


def _typed(item: Any, shape: list[int], label: str) -> np.ndarray:
    dtype = numpy_dtype(item.datatype, label)
    count = element_count(shape, label)
    if item.datatype not in _CONTENTS:
        raise InvalidInput(f"{label} is {item.datatype}, which gRPC carries as raw contents only")
    field = _CONTENTS[item.datatype]
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


def _add_tensors(items: Any, tensors: Tensors, kind: str) -> list[bytes | memoryview]:
    """Adds what describes the tensors; their raw contents."""
    for name, values in tensors.items():
        items.add(name=name, datatype=datatype_of(values, f"{kind} {name!r}"), shape=values.shape)
    return [raw_bytes(values, f"{kind} {name!r}") for name, values in tensors.items()]


def _parameters(fields: Any) -> dict[str, Any]:
    if len(fields) > MOST_PARAMETERS:
        raise InvalidInput(f"{len(fields)} parameters: expected at most {MOST_PARAMETERS}")
    found = {}
    for key, value in fields.items():
        choice = value.WhichOneof("parameter_choice")
        found[key] = getattr(value, choice) if choice else None
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
