"""Our errors as KServe's classes, and what a model written for KServe raises, in its own code or by KServe's clients of
a predictor, as ours."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import kserve.errors
from starlette.exceptions import HTTPException

from kservekit import errors
from kservekit.codec import rest_v2

log = logging.getLogger(__name__)

_INFERENCE = re.compile(r"/v[12]/models/[^/]+(:predict|:explain|/infer)$")
"""A path of KServe's own clients: what other servers say to a model's code is not for its callers."""


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
    """What a model written for KServe raises, as ours; the original goes to the log, where it is not the caller's."""
    try:
        yield
    except errors.KServeKitError as error:
        _note(error, error, model, request_id)
        raise
    except Exception as error:
        cause = error.__cause__  # a ServingError: ours, translated for KServe on its way here
        found = cause if isinstance(cause, errors.ServingError) else _ours(error, model, request_id)
        _note(found, error, model, request_id)
        raise found from (None if found is cause else error)


def _failed(model: str, request_id: str) -> errors.ModelError:
    named = f" (request id {request_id})" if request_id else ""
    return errors.ModelError(f"model {model!r} failed{named}; the server's log has the reason")


def _note(found: errors.KServeKitError, original: Exception, model: str, request_id: str) -> None:
    if isinstance(found, errors.ServingError) and found.http < 500:
        return  # an answer to a wrong request, which often quotes what was sent
    log.error("model failed: model=%r id=%r", model, request_id, exc_info=original)


def _ours(error: Exception, model: str, request_id: str) -> errors.ServingError:
    found = _said(error, model) or _from_elsewhere(error, model)
    # A caller who is told that he went away is told nothing.
    return _failed(model, request_id) if found is None or isinstance(found, errors.Cancelled) else found


def _said(error: Exception, model: str) -> errors.ServingError | None:
    """What the model's author raised for its caller to hear."""
    if isinstance(error, kserve.errors.InvalidInput):
        return errors.InvalidInput(str(error))
    if isinstance(error, kserve.errors.ModelNotFound):
        return errors.ModelNotFound(str(error))
    if isinstance(error, (kserve.errors.ModelNotReady, kserve.errors.ServerNotReady, kserve.errors.ServerNotLive)):
        return errors.Unavailable(str(error), retry_after=1)
    if isinstance(error, (NotImplementedError, kserve.errors.UnsupportedProtocol)):
        return errors.NotSupported(str(error) or f"model {model!r} does not do that")
    if isinstance(error, kserve.errors.InferenceError):
        return errors.ModelError(str(error.reason))
    if isinstance(error, HTTPException):
        retry_after = httpx.Headers(error.headers or {}).get("retry-after")
        return errors.from_http(error.status_code, str(error.detail), retry_after=retry_after)
    return None


def _from_elsewhere(error: Exception, model: str) -> errors.ServingError | None:
    """What KServe's clients raise for an answer of the predictor's, or for none; None where the predictor failed."""
    if isinstance(error, httpx.TimeoutException):
        return _late(model)
    if isinstance(error, httpx.TransportError):
        return _out_of_reach(model)
    if isinstance(error, httpx.HTTPStatusError) and _INFERENCE.search(error.request.url.path):
        reply = error.response
        neutral = f"the predictor of model {model!r} answered with status {reply.status_code}"
        message = rest_v2.error_text(reply.content) or neutral
        found = errors.from_http(reply.status_code, message, retry_after=reply.headers.get("retry-after"))
        return None if isinstance(found, errors.ModelError) else found
    if isinstance(error, grpc.aio.AioRpcError):
        trailing: dict[str, Any] = dict(error.trailing_metadata() or ())
        by_us = trailing.get(errors.ERROR_HEADER)
        found = errors.from_grpc(
            error.code().name, error.details() or "", name=by_us, retry_after=trailing.get("retry-after")
        )
        if by_us is None and isinstance(found, errors.DeadlineExceeded):
            return _late(model)
        if by_us is None and isinstance(found, errors.Unavailable):  # gRPC's own words name the address
            return _out_of_reach(model)
        return None if isinstance(found, errors.ModelError) else found
    return None


def _late(model: str) -> errors.DeadlineExceeded:
    return errors.DeadlineExceeded(f"the server that model {model!r} calls gave no answer in time")


def _out_of_reach(model: str) -> errors.Unavailable:
    return errors.Unavailable(f"the server that model {model!r} calls cannot be reached", retry_after=1)
