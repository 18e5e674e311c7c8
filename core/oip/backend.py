"""The one seam between us and a server that infers: three calls, whatever the protocol behind them."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import DTypeLike

from kservekit import gpu_tensors
from kservekit.codec.message import Answer, Request
from kservekit.config import BackendSettings
from kservekit.errors import CannotStart, ModelError
from kservekit.resilience import time_left
from kservekit.tensors import ModelSpec

log = logging.getLogger(__name__)

FORWARDED_HEADERS = (
    "traceparent",
    "tracestate",
    "baggage",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "x-request-id",
    "authorization",
)
"""W3C Trace Context and Baggage, B3, and who asks: these travel on to the backend; nothing is echoed."""


class Backend(Protocol):
    async def infer(self, request: Request) -> Answer:
        """The answer of `request.model`; a ServingError for anything else. Its tensors are on the host."""
        ...

    def stream(self, request: Request) -> AsyncGenerator[Answer]:
        """Its answers, each when it is there; a ServingError for anything else."""
        ...

    async def ready(self, model: str, version: str = "") -> bool:
        """Whether the model can answer now; False too where the server cannot be reached."""
        ...

    async def spec(self, model: str, version: str = "") -> ModelSpec:
        """What the model takes and gives."""
        ...

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
        """An array for a request's input, to be filled: where the server reads it without a copy, if there is such
        memory, and an ordinary one if not. Leave it as it is until the answer is there. From any thread."""
        return np.empty(shape, dtype)

    async def close(self) -> None: ...


def connect(
    host: str,
    protocol: str = "grpc-v2",
    *,
    use_ssl: bool = False,
    timeout_s: float = 60.0,
    settings: BackendSettings | None = None,
) -> Backend:
    """A client for `host` (`name`, `name:port`) in one of KServe's protocols: grpc-v2, v2 or v1.

    With `settings` its calls are retried and guarded as these say, and large tensors go to a server on this machine by
    shared memory where it has that. Nothing is sent before the first call, so the server may come up later.
    CannotStart for a bad host.
    """
    from kservekit.oip.resilient import ResilientBackend

    if settings is not None:
        names = (*FORWARDED_HEADERS, *map(str.lower, settings.forward_headers))
        memory = settings.shared_memory_bytes
        return ResilientBackend(_wire(host, protocol, use_ssl, timeout_s, names, memory), settings)
    return _wire(host, protocol, use_ssl, timeout_s, FORWARDED_HEADERS)


def _wire(
    host: str, protocol: str, use_ssl: bool, timeout_s: float, forward_headers: tuple[str, ...], shared_memory: int = 0
) -> Backend:
    host = checked_host(host)
    if protocol == "grpc-v2":
        from kservekit.oip.grpc import GrpcBackend
        from kservekit.oip.shared_memory import SharedMemoryBackend, is_local

        wire = GrpcBackend(host, use_ssl=use_ssl, timeout_s=timeout_s, forward_headers=forward_headers)
        return SharedMemoryBackend(wire, max_bytes=shared_memory) if shared_memory and is_local(wire.host) else wire
    base_url = f"{'https' if use_ssl else 'http'}://{host}"
    if protocol == "v2":
        from kservekit.oip.http import HttpBackend

        return HttpBackend(base_url, timeout_s=timeout_s, forward_headers=forward_headers)
    if protocol == "v1":
        from kservekit.oip.http_v1 import HttpV1Backend

        return HttpV1Backend(base_url, timeout_s=timeout_s, forward_headers=forward_headers)
    raise CannotStart(f"the backend's protocol is {protocol!r}: expected grpc-v2, v2 or v1")


def checked_host(host: str) -> str:
    """The host, without a last slash; CannotStart for what no connection could be made to."""
    found = _HOST.fullmatch(host.strip())
    if found is None or not 0 < int(found["port"] or 1) < 65536:
        raise CannotStart(
            f"the backend's host is {host!r}: expected name or name:port, without a scheme or a path, the port from 1 "
            "to 65535; an IPv6 address stands in brackets, such as [::1]:8001"
        )
    return found["host"]


_HOST = re.compile(r"(?P<host>(\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+)(:(?P<port>[0-9]{1,5}))?)/?")


def ca_file() -> str | None:
    """REQUESTS_CA_BUNDLE, which KServe's controller sets, or SSL_CERT_FILE."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or None


def forwarded(headers: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    # gRPC carries visible ASCII and nothing else: a header that it cannot carry is left behind, as a proxy would.
    return {name: headers[name] for name in names if name in headers and _VISIBLE.fullmatch(headers[name])}


_VISIBLE = re.compile(r"[\x20-\x7e]{0,8192}")


async def on_host(request: Request) -> Request:
    """The same request, with what lies on a GPU copied to the host; ModelError where it cannot be."""
    copies = await asyncio.to_thread(gpu_tensors.on_host, request.gpu_tensors)
    return dataclasses.replace(request, tensors={**request.tensors, **copies}, gpu_tensors={})


def call_timeout(request: Request, timeout_s: float) -> float:
    """Seconds for one call: the backend's budget or what is left of the request's deadline, whichever is less."""
    return min(timeout_s, time_left(request.deadline))


def backend_failed(request: Request, original: str) -> ModelError:
    """A neutral sentence for the caller; what the backend said (tracebacks, file paths) goes to our log."""
    log.error("backend failed: model=%r id=%r: %s", request.model, request.id, original)
    named = f" (request id {request.id})" if request.id else ""
    return ModelError(f"model {request.model!r} failed in its backend{named}; the server's log has the reason")
