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
from kservekit.codec.message import Answer, Request
from kservekit.serving.pool import handler_pool
from kservekit.tensors import ModelSpec, datatype_of


def request_from(payload: Any, spec: ModelSpec, headers: Mapping[str, str]) -> Request:
    """KServe's v1 dict or InferRequest as a Request."""
    if isinstance(payload, InferRequest):
        try:
            tensors = {item.name: item.as_numpy() for item in payload.inputs}
        except (ValueError, TypeError) as error:
            raise errors.InvalidInput(f"an input does not fit its shape and datatype: {error}") from None
        outputs = {item.name: dict(item.parameters or {}) for item in payload.request_outputs or []}
        request = Request(tensors, version=payload.model_version or "", id=payload.id or "", outputs=outputs)
    else:
        request = rest_v1.request_from(payload, spec)
    request.headers = headers
    return request


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
    return InferRequest(request.model, inputs, request_id=request.id or None, model_version=request.version or None)


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


@contextlib.contextmanager
def our_errors(model: str, request_id: str) -> Iterator[None]:
    """The other way round: what a model written for KServe raises, as ours."""
    try:
        yield
    except errors.KServeKitError:
        raise
    except kserve.errors.InvalidInput as error:
        raise errors.InvalidInput(str(error)) from error
    except kserve.errors.ModelNotFound as error:
        raise errors.ModelNotFound(str(error)) from error
    except (kserve.errors.ModelNotReady, kserve.errors.ServerNotReady) as error:
        raise errors.Unavailable(str(error)) from error
    except NotImplementedError as error:
        raise errors.NotSupported(str(error) or f"model {model!r} does not do that") from error
    except Exception as error:
        named = f" (request id {request_id})" if request_id else ""
        raise errors.ModelError(f"model {model!r} failed{named}; the server's log has the reason") from error


def _filled(kind: Any, name: str, values: np.ndarray) -> Any:
    item = kind(name, list(values.shape), datatype_of(values, f"tensor {name!r}"))
    item.set_data_from_numpy(values, binary_data=True)
    return item
