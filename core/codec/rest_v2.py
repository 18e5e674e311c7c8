"""The Open Inference Protocol over HTTP: JSON, and Triton's binary tensor data extension.

Bytes that are not UTF-8 have no form in JSON: there they travel as base64 with the tensor parameter
`content_type: base64`, which is MLServer's convention.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kservekit.codec.json_values import array, check_fits, dumps, flat_list, loads, shown
from kservekit.codec.message import (
    MOST_JSON_BYTES,
    MOST_TENSORS,
    Answer,
    Request,
    check_count,
    check_lengths,
    check_name,
    check_text_size,
)
from kservekit.codec.parameters import check_known, check_parameters
from kservekit.codec.raw import RawLayout, raw_bytes
from kservekit.errors import InvalidInput, ModelError
from kservekit.tensors import ModelSpec, TensorSpec, datatype_of

JSON_LENGTH_HEADER = "inference-header-content-length"
"""How long the JSON is that binary tensors follow."""

BINARY_CONTENT_TYPE = "application/octet-stream"

Body = tuple[list[bytes | memoryview], int | None]
"""The parts of a body in order, and the JSON's length where binary tensors follow it."""


def decode_request(
    body: bytes | bytearray,
    json_length: str | int | None = None,
    *,
    max_tensors: int = MOST_TENSORS,
    max_json_bytes: int = MOST_JSON_BYTES,
) -> Request:
    """An inference request; tensors in the binary part are views of `body`, not copies.

    Raises InvalidInput for anything that is not the protocol's, and for more than `max_tensors` inputs or outputs;
    PayloadTooLarge for more than `max_json_bytes` of JSON, or of lengths of BYTES elements in the binary part.
    """
    head, cursor = _split(body, json_length, most_lengths=max_json_bytes)
    check_text_size(len(head), max_json_bytes, "the request's JSON is", "send tensors as binary data")
    message = _object(loads(head), "the request")
    parameters = dict(_parameters(message, '"parameters"'))
    binary_outputs = _flag(parameters.pop("binary_data_output", False), '"binary_data_output"')
    check_parameters(parameters, '"parameters"')
    outputs = {}
    asked = message.get("outputs")
    for item in _objects([] if asked is None else asked, '"outputs"', max_tensors):
        name = _name(item, '"outputs"')
        label = f"the parameters of output {shown(name)}"
        outputs[name] = dict(check_parameters(_parameters(item, label), label))
        _flag(outputs[name].get("binary_data", False), f'"binary_data" of output {shown(name)}')
    tensors = _decode_tensors(_objects(message.get("inputs"), '"inputs"', max_tensors), '"inputs"', "input", cursor)
    return Request(
        tensors,
        id=check_name(_text(message.get("id"), '"id"'), '"id"'),
        parameters=parameters,
        outputs=outputs,
        binary_outputs=binary_outputs,
    )


def encode_answer(answer: Answer, request: Request, spec: ModelSpec | None = None) -> Body:
    """The answer in the form that the request asked for, tensor by tensor (JSON where it does not say)."""
    default = request.binary_outputs
    binary = {name for name in answer.tensors if request.outputs.get(name, {}).get("binary_data", default)}
    as_base64 = {output.name for output in spec.outputs if output.content_type == "base64"} if spec else set()
    head: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version}
    if answer.id:
        head["id"] = answer.id
    if answer.parameters:
        head["parameters"] = answer.parameters
    items, parts = _encode_tensors(answer.tensors, "output", binary, as_base64)
    if answer.beside is not None:
        for item in items:
            if parameters := answer.beside.outputs.get(item["name"]):
                item["parameters"] = parameters | item.get("parameters", {})
    return _join(head | {"outputs": items}, parts)


def encode_request(request: Request, *, binary: bool = True, binary_answer: bool = True) -> Body:
    """A request for somebody's server. As JSON, BYTES travel as base64.

    Raises InvalidInput for parameters that Triton would answer with 500, and for NaN or Inf as JSON.
    """
    check_known(request.parameters)
    names = set(request.tensors)
    items, parts = _encode_tensors(request.tensors, "input", names if binary else set(), names)
    parameters = {**request.parameters, "binary_data_output": binary_answer}
    head: dict[str, Any] = {"id": request.id, "parameters": parameters} if request.id else {"parameters": parameters}
    if request.outputs:
        head["outputs"] = [{"name": name, "parameters": value} for name, value in request.outputs.items()]
    return _join(head | {"inputs": items}, parts)


def decode_answer(body: bytes, json_length: str | int | None = None) -> Answer:
    """A server's answer; tensors in the binary part are views of `body`."""
    head, cursor = _split(body, json_length)
    message = _object(loads(head), "the answer")
    tensors = _decode_tensors(_objects(message.get("outputs"), '"outputs"'), '"outputs"', "output", cursor)
    return Answer(
        tensors,
        model=_text(message.get("model_name"), '"model_name"'),
        version=_text(message.get("model_version"), '"model_version"'),
        id=_text(message.get("id"), '"id"'),
        parameters=dict(_parameters(message, '"parameters"')),
    )


class _Cursor:
    """The binary part, handed out in the order of the tensors that ask for a piece of it."""

    def __init__(self, data: memoryview, most_lengths: int) -> None:
        self.data, self.most_lengths = data, most_lengths
        self.at = 0
        self.lengths = 0
        """Of BYTES elements so far, in bytes."""

    def take(self, size: Any, label: str) -> memoryview:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InvalidInput(f"{label} has binary_data_size {shown(size)}: expected a number of bytes")
        left = len(self.data) - self.at
        if size > left:
            raise InvalidInput(f"{label} has binary_data_size {size}, and {left} bytes are left of the body")
        self.at += size
        return self.data[self.at - size : self.at]

    def tensor(self, size: Any, datatype: str, shape: list[Any], label: str) -> np.ndarray:
        part = self.take(size, label)
        layout = RawLayout.of(datatype, shape, label)
        self.lengths += layout.lengths_in(part)
        check_lengths(self.lengths, self.most_lengths)
        return layout.tensor(part)


def decode_metadata(body: bytes) -> ModelSpec:
    """A model's metadata as what the model declares; InvalidInput for anything else."""
    try:
        found = loads(body)
        specs = [
            tuple(TensorSpec(item["name"], item["datatype"], tuple(map(int, item["shape"]))) for item in found[key])
            for key in ("inputs", "outputs")
        ]
        return ModelSpec(specs[0], specs[1], found.get("platform", ""), tuple(found.get("versions") or ()))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"malformed metadata: {error!r}") from error


def error_text(body: bytes) -> str | None:
    """What a server says is wrong, in the protocol's form `{"error": "..."}`; any other text may be a proxy's, with its
    addresses."""
    try:
        found = loads(body)["error"]
    except (InvalidInput, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def headers(json_length: int | None) -> dict[str, str]:
    """Those that say what a body is, as `encode_request` or `encode_answer` made it."""
    if json_length is None:
        return {"content-type": "application/json"}
    return {"content-type": BINARY_CONTENT_TYPE, JSON_LENGTH_HEADER: str(json_length)}


def _split(
    body: bytes | bytearray, json_length: str | int | None, *, most_lengths: int = sys.maxsize
) -> tuple[memoryview, _Cursor]:
    data = memoryview(body)
    if json_length is None:
        return data, _Cursor(data[len(data) :], most_lengths)
    text = str(json_length)
    if not (text.isascii() and text.isdigit() and len(text) < 12) or int(text) > len(data):
        raise InvalidInput(
            f"Inference-Header-Content-Length is {text[:40]!r}: expected 0 to {len(data)}, the body's length"
        )
    return data[: int(text)], _Cursor(data[int(text) :], most_lengths)


def _decode_tensors(items: list[dict[str, Any]], where: str, kind: str, cursor: _Cursor) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for item in items:
        name = _name(item, where)
        label = f"{kind} {shown(name)}"
        if name in tensors:
            raise InvalidInput(f"{label} is there twice")
        tensors[name] = _decode_tensor(item, label, cursor)
    if cursor.at != len(cursor.data):
        raise InvalidInput(f"{len(cursor.data) - cursor.at} bytes of the body belong to no tensor")
    return tensors


def _decode_tensor(item: dict[str, Any], label: str, cursor: _Cursor) -> np.ndarray:
    shape, datatype = item.get("shape"), item.get("datatype")
    if not isinstance(shape, list):
        raise InvalidInput(f"{label} has no shape")
    if not isinstance(datatype, str):
        raise InvalidInput(f"{label} has no datatype")
    parameters = _parameters(item, f"the parameters of {label}")
    if "binary_data_size" in parameters:
        if "data" in item:
            raise InvalidInput(f'{label} has both "data" and "binary_data_size"')
        return cursor.tensor(parameters["binary_data_size"], datatype, shape, label)
    if "data" not in item:
        raise InvalidInput(f'{label} has neither "data" nor the parameter "binary_data_size"')
    is_base64 = parameters.get("content_type") == "base64"
    return array(item["data"], datatype, label, shape=shape, is_base64=is_base64)


def in_shape(found: np.ndarray, shape: list[Any], label: str) -> np.ndarray:
    """JSON data, flat or nested as the shape is, in that shape."""
    check_fits(found.shape, shape, label)
    return found.reshape(shape)


def _encode_tensors(
    tensors: Mapping[str, np.ndarray], kind: str, binary: Iterable[str], as_base64: Iterable[str]
) -> tuple[list[dict[str, Any]], list[bytes | memoryview]]:
    items: list[dict[str, Any]] = []
    parts: list[bytes | memoryview] = []
    for name, values in tensors.items():
        label = f"{kind} {name!r}"
        datatype = datatype_of(values, label)
        item: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(values.shape)}
        if name in binary:
            part = raw_bytes(values, label)
            parts.append(part)
            item["parameters"] = {"binary_data_size": len(part)}
        else:
            encode = datatype == "BYTES" and name in as_base64
            if encode:
                item["parameters"] = {"content_type": "base64"}
            item["data"] = flat_list(values, label, as_base64=encode, error=_AT_FAULT[kind])
        items.append(item)
    return items, parts


_AT_FAULT: dict[str, type[InvalidInput | ModelError]] = {"input": InvalidInput, "output": ModelError}
"""For values that JSON has no form for."""


def _join(head: dict[str, Any], parts: list[bytes | memoryview]) -> Body:
    text = dumps(head)
    return [text, *parts], len(text) if parts else None


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} must be an object")
    return value


def _objects(value: Any, what: str, most: int | None = None) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise InvalidInput(f"{what} must be a list of tensors")
    if most is not None:
        check_count(len(value), what.strip('"'), most)
    return [_object(item, f"an item of {what}") for item in value]


def _parameters(item: dict[str, Any], what: str) -> dict[str, Any]:
    """Those of a message or of a tensor; null counts as none, because some writers put it where a field is unset."""
    value = item.get("parameters")
    return {} if value is None else _object(value, what)


def _flag(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(f"{what} is {shown(value)}: expected true or false")
    return value


def _name(item: dict[str, Any], where: str) -> str:
    name = item.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidInput(f"a tensor in {where} has no name")
    return check_name(name, f"a name in {where}")


def _text(value: Any, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidInput(f"{what} must be a string")
    return value
