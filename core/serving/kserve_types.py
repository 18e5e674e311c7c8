"""KServe's own payloads to ours and back: for our models under KServe's server, and KServe's models under ours."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import kserve
import kserve.errors
import numpy as np
from kserve import InferInput, InferOutput, InferRequest, InferResponse
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferRequest, ModelInferResponse
from kserve.protocol.infer_type import RequestedOutput

from kservekit import errors
from kservekit.codec import rest_v1
from kservekit.codec.grpc import CONTENTS
from kservekit.codec.json_values import array, loads
from kservekit.codec.message import Answer, Beside, Request, Source
from kservekit.codec.raw import raw_bytes, tensor_from_raw
from kservekit.codec.rest_v2 import JSON_LENGTH_HEADER, in_shape
from kservekit.serving.headers import models_own
from kservekit.serving.pool import handler_pool
from kservekit.tensors import ModelSpec, as_bytes, datatype_of


def request_from(payload: Any, spec: ModelSpec, headers: Mapping[str, str]) -> Request:
    """KServe's v1 dict or InferRequest as a Request, its values checked as our own codec does."""
    if isinstance(payload, InferRequest):
        request = Request(
            {item.name: _tensor(item) for item in payload.inputs},
            version=payload.model_version or "",
            id=payload.id or "",
            parameters={key: _plain(value) for key, value in (payload.parameters or {}).items()},
            outputs={item.name: dict(item.parameters or {}) for item in payload.request_outputs or []},
        )
    else:
        request = rest_v1.request_from(payload, spec)
    request.headers = headers
    request.id = request.id or headers.get("x-request-id", "")
    return request


def _tensor(item: InferInput) -> np.ndarray:
    label = f"input {item.name!r}"
    if _is_list(item):  # v2 JSON, and typed contents of gRPC
        is_base64 = (item.parameters or {}).get("content_type") == "base64"
        if item.data and isinstance(item.data[0], bytes):
            found = np.array([*item.data, None], dtype=np.object_)[:-1]  # so that equal lengths make no second axis
        else:
            found = array(item.data, item.datatype, label, is_base64=is_base64)
        return in_shape(found, list(item.shape), label)
    try:
        values = item.as_numpy()
    except Exception as error:  # of many kinds, for a length that does not fit the shape
        raise errors.InvalidInput(f"{label} does not fit its shape and datatype: {error}") from None
    return as_bytes(values) if item.datatype == "BYTES" else values


def _plain(value: Any) -> Any:
    """A parameter's value: on gRPC KServe hands on protobuf's InferParameter."""
    if hasattr(value, "WhichOneof"):
        choice = value.WhichOneof("parameter_choice")
        return getattr(value, choice) if choice else None
    return value


def result_from(answer: Answer, payload: Any, spec: ModelSpec) -> dict[str, Any] | InferResponse:
    """The answer in the form that belongs to the payload's."""
    if isinstance(payload, InferRequest):
        outputs = [_output(name, values) for name, values in answer.tensors.items()]
        # KServe's response model refuses an empty id.
        return InferResponse(
            answer.id or payload.id or "-", answer.model, outputs, model_version=answer.version or None
        )
    return rest_v1.payload_from(answer, spec)


class _RawInput(InferInput):  # type: ignore[misc]
    """One that came in REST's binary part. KServe's own is a list by now; this one becomes a list when it is asked for,
    which for a picture takes longer than many a model."""

    @property
    def data(self) -> Any:
        if self._data is None and self._raw_data is not None:  # type: ignore[has-type]
            values = self.as_numpy()
            try:
                self.set_data_from_numpy(values, binary_data=False)
            except kserve.errors.InferenceError:  # bytes that are no text
                self._data, self._raw_data = values.ravel().tolist(), None
        return self._data

    @data.setter
    def data(self, data: Any) -> None:
        self._data = data


class _SentRequest(InferRequest):  # type: ignore[misc]
    """Where it is handed on to a predictor, what came raw goes on raw, and is said to be so."""

    def to_rest(self) -> Any:
        self._keep_raw()
        for item in self.inputs:
            if item._raw_data is not None:
                item.parameters = {**(item.parameters or {}), "binary_data_size": len(item._raw_data)}
        return super().to_rest()

    def to_grpc(self) -> Any:
        self._keep_raw()
        return super().to_grpc()

    def _keep_raw(self) -> None:
        for item in self.inputs:
            if type(item) is _RawInput:
                item.__class__ = InferInput  # its data is no list that is yet to be made


def infer_request_from(request: Request) -> InferRequest:
    """A Request in KServe's own form, for a model that overrides KServe's hooks, made from what was sent."""
    read, body = cast(Source, request.source)  # REST and gRPC both say it
    found: InferRequest = read(request, body)
    return found


def from_rest(request: Request, body: bytes) -> InferRequest:
    """A v2 REST body, whose `request` was read already, as KServe reads it: JSON data as the list that was sent."""
    length = request.headers.get(JSON_LENGTH_HEADER)
    message = loads(body if length is None else memoryview(body)[: int(length)])
    asked = message.get("outputs") or []
    return _SentRequest(
        request.model,
        [_input(item, request.tensors[item["name"]]) for item in message["inputs"]],
        request_id=message.get("id"),
        parameters=message.get("parameters"),
        request_outputs=[RequestedOutput(item["name"], item.get("parameters") or {}) for item in asked] or None,
        model_version=request.version or None,
    )


def _input(item: dict[str, Any], values: np.ndarray) -> InferInput:
    parameters = item.get("parameters") or {}
    name, shape, datatype = item["name"], item["shape"], item["datatype"]
    if "data" in item:
        data = item["data"]
        return InferInput(name, shape, datatype, data if isinstance(data, list) else [data], parameters)
    parameters.pop("binary_data_size")
    found: Any = _RawInput(name, shape, datatype, parameters=parameters)
    found._raw_data = bytes(raw_bytes(values))
    return found


def from_grpc(request: Request, body: bytes) -> InferRequest:
    """A ModelInferRequest, whose `request` was read already, as KServe reads it."""
    return _SentRequest.from_grpc(ModelInferRequest.FromString(body))


_OF_THE_BODY = frozenset({"content-encoding", "content-type"})
"""Headers that follow from how a v2 answer is written."""


def answer_from(result: Any, headers: Mapping[str, str], request: Request) -> Answer:
    """What a model written for KServe returned, in any of the forms that KServe's servers take, as an Answer.

    ModelError for anything else.
    """
    where = f"model {request.model!r}"
    found = _response(result, where)
    own = models_own(headers, request.model)
    tensors = {item.name: _values(item, f"output {item.name!r} of {where}") for item in found.outputs}
    beside = Beside(
        id=_text(found.id, "id", where),
        outputs={item.name: _parameters(item.parameters, f"output {item.name!r} of {where}") for item in found.outputs},
        headers={name: value for name, value in own.items() if name not in _OF_THE_BODY},
        typed=all(_is_list(item) and item.datatype in CONTENTS for item in found.outputs),
    )
    return Answer(
        tensors,
        model=_text(found.model_name, "model_name", where) or request.model,
        version=_text(found.model_version, "model_version", where) or request.version,
        parameters=_parameters(found.parameters, where),
        beside=beside,
    )


def _is_list(item: Any) -> bool:
    return item._raw_data is None and isinstance(item.data, list)


def _response(result: Any, where: str) -> InferResponse:
    if isinstance(result, InferResponse):
        return result
    try:
        if isinstance(result, ModelInferResponse):
            return InferResponse.from_grpc(result)
        if isinstance(result, dict) and isinstance(result.get("outputs"), list):
            if any("contents" in item for item in result["outputs"]):
                return InferResponse.from_grpc(ModelInferResponse(**result))
            return InferResponse.from_rest(result)
    except Exception as error:  # of many kinds
        found = type(result).__name__
        raise errors.ModelError(f"{where} returned a {found} that is no v2 answer: {error!r}") from error
    raise errors.ModelError(f"{where} returned {type(result).__name__}: expected KServe's InferResponse for v2")


def _values(item: InferOutput, label: str) -> np.ndarray:
    try:
        if item._raw_data is not None:
            return tensor_from_raw(item._raw_data, item.datatype, list(item.shape), label)
        values = item.as_numpy()
    except Exception as error:  # of many kinds, for data that does not fit the shape
        raise errors.ModelError(f"{label} does not fit its shape and datatype: {error}") from error
    return as_bytes(values, label) if item.datatype == "BYTES" else values


def _parameters(found: Any, where: str) -> dict[str, Any]:
    parameters = {key: _plain(value) for key, value in (found or {}).items() if key != "binary_data_size"}
    for key, value in parameters.items():
        if not isinstance(key, str) or not isinstance(value, (bool, int, float, str)):
            raise errors.ModelError(f"{where} has the parameter {key!r}: expected text, a number, or true or false")
    return parameters


def _text(value: Any, what: str, where: str) -> str:
    if value is not None and not isinstance(value, str):
        raise errors.ModelError(f"{where} answered with the {what} {value!r}: expected text")
    return value or ""


def keep_off_the_loop(model: Any) -> None:
    """Puts a model's plain hooks into the handler pool; KServe calls them on the event loop."""
    for name in ("preprocess", "predict", "postprocess", "explain"):
        hook = getattr(model, name, None)
        # Those of KServe's base class pass their argument on, and are not worth a thread.
        inherited = getattr(type(model), name, None) is getattr(kserve.Model, name, None)
        if hook is not None and not inherited and not inspect.iscoroutinefunction(hook):
            setattr(model, name, _in_pool(hook))


def _in_pool(hook: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(hook)
    async def pooled(*arguments: Any, **named: Any) -> Any:
        return await handler_pool().run(functools.partial(hook, *arguments, **named))

    return pooled


def _output(name: str, values: np.ndarray) -> InferOutput:
    output = InferOutput(name, list(values.shape), datatype_of(values, f"tensor {name!r}"))
    output.set_data_from_numpy(values, binary_data=True)
    return output
