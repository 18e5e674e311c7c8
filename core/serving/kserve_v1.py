"""v1 for models that override KServe's hooks: what they are given of a body, and what becomes of what they return."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import numpy as np
import orjson
from kserve import InferResponse
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferResponse

from kservekit.codec import rest_v2
from kservekit.codec.json_values import loads
from kservekit.codec.message import Request
from kservekit.errors import InvalidInput, ModelError
from kservekit.serving.headers import models_own
from kservekit.serving.kserve_types import answer_from

Written = tuple[dict[str, str], bytes | AsyncGenerator[bytes]]
"""Headers, and the body: whole, or its pieces as they come."""

_JSON = "application/json"
_READ_AS_JSON = frozenset(
    {"", _JSON, "application/cloudevents+json", "application/ld+json", "application/octet-stream"}
)
"""Content types that KServe reads as JSON. It hands on any other body as it is."""
_FORM = "application/x-www-form-urlencoded"
"""What curl -d says of every body."""


def payload_from(body: bytes | bytearray, headers: Mapping[str, str]) -> Any:
    """JSON, or the body itself where it is of another kind; InvalidInput for JSON that is none."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    is_event = "ce-specversion" in headers
    if kind in _READ_AS_JSON and (not is_event or kind.endswith("json")):
        return loads(body)
    if is_event or kind == _FORM:
        try:
            return loads(body)
        except InvalidInput:
            pass
    return bytes(body)


def written(result: Any, headers: Mapping[str, str], request: Request) -> tuple[dict[str, str], bytes]:
    """What a hook returned: bytes and text as they are, KServe's v2 answer as v2 has it, all else as JSON.

    ModelError says what JSON has no form for.
    """
    if isinstance(result, InferResponse | ModelInferResponse):
        answer = answer_from(result, {}, request)
        answer.id = answer.beside.id if answer.beside else ""
        parts, _ = rest_v2.encode_answer(answer, request)
        kind, body = _JSON, b"".join(parts)
    elif isinstance(result, bytes):
        kind, body = "application/octet-stream", result
    elif isinstance(result, str):
        kind, body = "text/plain; charset=utf-8", result.encode()
    else:
        kind, body = _JSON, _json(result, request.model)
    own = models_own(headers, request.model)
    if not isinstance(result, bytes):
        own.pop("content-encoding", None)  # a predictor's, whose answer was unpacked since
    return {"content-type": kind} | own, body


def piece(value: Any, model: str) -> bytes:
    """A piece of a stream that a hook yields."""
    if isinstance(value, str):
        return value.encode()
    if not isinstance(value, bytes):
        raise ModelError(f"model {model!r} yielded {type(value).__name__}: expected text or bytes")
    return value


def _json(result: Any, model: str) -> bytes:
    try:
        body = orjson.dumps(result, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    except TypeError as error:
        raise ModelError(f"model {model!r} returned what JSON has no form for: {error}") from error
    if b"null" in body and (where := _odd_number(result)) is not None:
        raise ModelError(f"model {model!r} returned NaN or Inf, which JSON has no form for: look at {where}")
    return body


def _odd_number(value: Any, where: str = "") -> str | None:
    """Where the first NaN or Inf is, which orjson writes as null."""
    if isinstance(value, float | np.floating):
        return None if math.isfinite(value) else where
    if isinstance(value, np.ndarray):
        return where if value.dtype.kind == "f" and not np.isfinite(value).all() else None
    if isinstance(value, dict):
        inner = ((f"{where}.{key}" if where else str(key), item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        inner = ((f"{where}[{index}]", item) for index, item in enumerate(value))
    else:
        return None
    return next((found for at, item in inner if (found := _odd_number(item, at)) is not None), None)
