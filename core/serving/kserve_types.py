"""KServe's own payloads to ours and back: for our models under KServe's server, and KServe's models under ours."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import kserve
import kserve.errors
import numpy as np
from kserve import InferInput, InferOutput, InferRequest, InferResponse

from kservekit import errors
from kservekit.codec import rest_v1
from kservekit.codec.json_values import array
from kservekit.codec.message import Answer, Request
from kservekit.codec.rest_v2 import in_shape
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
    return request


def _tensor(item: InferInput) -> np.ndarray:
    label = f"input {item.name!r}"
    if isinstance(item.data, list) and item._raw_data is None:  # v2 JSON, and typed contents of gRPC
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
        outputs = [_filled(InferOutput, name, values) for name, values in answer.tensors.items()]
        # KServe's response model refuses an empty id.
        return InferResponse(
            answer.id or payload.id or "-", answer.model, outputs, model_version=answer.version or None
        )
    return rest_v1.payload_from(answer, spec)


def infer_request_from(request: Request) -> InferRequest:
    """A Request as KServe's InferRequest, for a model that overrides KServe's hooks."""
    inputs = [_filled(InferInput, name, values) for name, values in request.tensors.items()]
    return InferRequest(
        request.model,
        inputs,
        request_id=request.id or None,
        parameters=request.parameters,
        model_version=request.version or None,
    )


def answer_from(result: Any, request: Request) -> Answer:
    """What such a model returned, as an Answer; ModelError for what is neither of KServe's forms."""
    if isinstance(result, InferResponse):
        tensors = {item.name: item.as_numpy() for item in result.outputs}
    elif isinstance(result, dict) and isinstance(result.get("outputs"), list):
        tensors = {
            item["name"]: InferOutput(item["name"], item["shape"], item["datatype"], item["data"]).as_numpy()
            for item in result["outputs"]
        }
    else:
        found = type(result).__name__
        raise errors.ModelError(f"model {request.model!r} returned {found}: expected KServe's InferResponse for v2")
    return Answer(tensors, model=request.model, version=request.version, id=request.id)


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


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Our errors as KServe's classes, as far as those go: its server maps them to statuses."""
    try:
        yield
    except errors.InvalidInput as error:
        raise kserve.errors.InvalidInput(error.message) from error
    except errors.ModelNotFound as error:
        raise kserve.errors.ModelNotFound(error.message) from error
    except errors.Unavailable as error:
        raise kserve.errors.ServerNotReady(error.message) from error
    except errors.NotSupported as error:
        raise NotImplementedError(error.message) from error
    except errors.ServingError as error:
        raise kserve.errors.InferenceError(error.message) from error


def is_the_callers_fault(error: BaseException) -> bool:
    """Whether it is an answer to a wrong request, and nothing for the log: it often quotes what was sent."""
    ours = error if isinstance(error, errors.ServingError) else error.__cause__
    if isinstance(ours, errors.ServingError):
        return ours.http < 500
    return isinstance(error, (kserve.errors.InvalidInput, kserve.errors.ModelNotFound))


@contextlib.contextmanager
def our_errors(model: str, request_id: str) -> Iterator[None]:
    """The other way round: what a model written for KServe raises, as ours."""
    try:
        yield
    except errors.KServeKitError:
        raise
    except Exception as error:
        if isinstance(error.__cause__, errors.ServingError):  # translated for KServe on its way here
            raise error.__cause__ from None
        raise _ours(error, model, request_id) from error


def _ours(error: Exception, model: str, request_id: str) -> errors.ServingError:
    if isinstance(error, kserve.errors.InvalidInput):
        return errors.InvalidInput(str(error))
    if isinstance(error, kserve.errors.ModelNotFound):
        return errors.ModelNotFound(str(error))
    if isinstance(error, (kserve.errors.ModelNotReady, kserve.errors.ServerNotReady)):
        return errors.Unavailable(str(error), retry_after=1)
    if isinstance(error, NotImplementedError):
        return errors.NotSupported(str(error) or f"model {model!r} does not do that")
    named = f" (request id {request_id})" if request_id else ""
    return errors.ModelError(f"model {model!r} failed{named}; the server's log has the reason")


def _filled(kind: Any, name: str, values: np.ndarray) -> Any:
    item = kind(name, list(values.shape), datatype_of(values, f"tensor {name!r}"))
    item.set_data_from_numpy(values, binary_data=True)
    return item
