"""One real call, and whether its answer is what was sent: a contender that answers wrongly has no speed."""

from __future__ import annotations

import asyncio

import numpy as np

from kservekit.benchmarks.payloads import OUTPUT, Payload
from kservekit.oip import Backend
from kservekit.oip.grpc import GrpcBackend
from kservekit.oip.http import HttpBackend

CALL_TIMEOUT_S = 60.0


class WrongAnswer(Exception):
    """A contender does not serve correctly: an error, or values other than those that were sent."""


def check(payload: Payload, wire: str, *, http_url: str, grpc_url: str) -> None:
    """One real call; WrongAnswer unless it comes back with the values that were sent."""
    asyncio.run(_check(payload, wire, http_url, grpc_url))


async def _check(payload: Payload, wire: str, http_url: str, grpc_url: str) -> None:
    backend: Backend
    if wire == "grpc":
        backend = GrpcBackend(grpc_url, timeout_s=CALL_TIMEOUT_S)
    else:
        backend = HttpBackend(f"http://{http_url}", binary=wire == "rest-binary", timeout_s=CALL_TIMEOUT_S)
    try:
        answer = await backend.infer(payload.request)
    except Exception as error:
        raise WrongAnswer(f"{wire} of model {payload.name!r}: {type(error).__name__}: {error}") from error
    finally:
        await backend.close()
    found = answer.tensors.get(OUTPUT)
    if found is None:
        raise WrongAnswer(f"{wire} of model {payload.name!r} has the outputs {list(answer.tensors)}, not {OUTPUT!r}")
    if found.dtype != np.float32 or not np.array_equal(found, payload.answer):
        raise WrongAnswer(f"{wire} of model {payload.name!r} gives back other values than it was given")
