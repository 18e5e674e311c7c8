"""Open Inference Protocol over HTTP, with binary tensors, on a pool of kept connections."""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import aiohttp

from kservekit import errors
from kservekit.codec import events, rest_v2
from kservekit.codec.json_values import loads
from kservekit.codec.message import TIMEOUT_HEADER, Answer, Request
from kservekit.oip.backend import (
    FORWARDED_HEADERS,
    Backend,
    backend_failed,
    ca_file,
    call_timeout,
    forwarded,
    on_host,
)
from kservekit.tensors import ModelSpec

log = logging.getLogger(__name__)


class HttpBackend(Backend):
    """`timeout_s` is the budget of one call. Nothing connects before the first call.

    `binary` says whether tensors travel as binary, in and out, or as JSON.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float = 60.0,
        binary: bool = True,
        forward_headers: tuple[str, ...] = FORWARDED_HEADERS,
    ) -> None:
        self.binary = binary
        self.forward_headers = forward_headers
        self.base_url = base_url.rstrip("/")
        self.timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def infer(self, request: Request) -> Answer:
        request = await on_host(request) if request.gpu_tensors else request
        parts, json_length = rest_v2.encode_request(request, binary=self.binary, binary_answer=self.binary)
        path = f"{self.path(request.model, request.version)}/infer"
        reply_headers, body = await self.call("POST", path, request, parts, rest_v2.headers(json_length))
        try:
            return rest_v2.decode_answer(body, reply_headers.get(rest_v2.JSON_LENGTH_HEADER))
        except errors.InvalidInput as error:
            raise backend_failed(request, f"malformed answer: {error}") from error

    async def ready(self, model: str, version: str = "") -> bool:
        return await self.answers(f"{self.path(model, version)}/ready", model)

    async def spec(self, model: str, version: str = "") -> ModelSpec:
        request = Request({}, model=model, version=version)
        _, body = await self.call("GET", self.path(model, version), request)
        try:
            return rest_v2.decode_metadata(body)
        except errors.InvalidInput as error:
            raise backend_failed(request, str(error)) from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def answers(self, path: str, model: str) -> bool:
        """Whether a GET is answered with 200."""
        try:
            await self.call("GET", path, Request({}, model=model), timeout_s=min(self.timeout_s, 5.0))
        except errors.ServingError:
            return False
        return True

    async def stream(self, request: Request) -> AsyncGenerator[Answer]:
        """By server-sent events, as our own servers have them; NotSupported where the server has none, as Triton."""
        request = await on_host(request) if request.gpu_tensors else request
        parts, _ = rest_v2.encode_request(request, binary=False, binary_answer=False)
        headers = {"content-type": "application/json", "accept": events.CONTENT_TYPE}
        path = f"{self.path(request.model, request.version)}/infer"
        async with self._exchange("POST", path, request, parts, headers) as reply:
            if reply.content_type != events.CONTENT_TYPE:
                raise errors.NotSupported(
                    f"the backend of model {request.model!r} has no streams over REST: reach it by gRPC"
                )
            reader = events.Reader()
            async for piece in reply.content.iter_any():
                for event in reader.feed(piece):
                    if event.kind == events.ERROR:
                        raise _error_in(event.data, request)
                    try:
                        yield rest_v2.decode_answer(event.data)
                    except errors.InvalidInput as error:
                        raise backend_failed(request, f"malformed answer: {error}") from error

    async def call(
        self,
        method: str,
        path: str,
        request: Request,
        parts: list[Any] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> tuple[Mapping[str, str], bytes]:
        """One exchange: the answer's headers and body, or the ServingError that it stands for."""
        async with self._exchange(method, path, request, parts, headers, timeout_s=timeout_s) as reply:
            return reply.headers, await reply.read()

    @asynccontextmanager
    async def _exchange(
        self,
        method: str,
        path: str,
        request: Request,
        parts: list[Any] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """An answer whose body is still to be read; the ServingError that it stands for, also while it is read."""
        timeout_s = call_timeout(request, timeout_s or self.timeout_s)
        if self._session is None:  # belongs to the loop that it was made on
            # Callers share it: a cookie that one is given must not travel with the next.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=_trust()), cookie_jar=aiohttp.DummyCookieJar()
            )
        try:
            async with self._session.request(
                method,
                self.base_url + path,
                data=_pieces(parts) if parts else None,
                headers={
                    **forwarded(request.headers, self.forward_headers),
                    TIMEOUT_HEADER: f"{timeout_s * 1000:.0f}",
                    **({"content-length": str(sum(map(len, parts)))} if parts else {}),
                    **(headers or {}),
                },
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                allow_redirects=False,  # to another host, with the body and the credentials
            ) as reply:
                if reply.status == 200:
                    yield reply
                    return
                body = await reply.read()
        except TimeoutError:
            raise errors.DeadlineExceeded(f"model {request.model!r} gave no answer in time") from None
        except aiohttp.ClientError as error:
            log.warning("backend of model %r cannot be reached: %s", request.model, error)
            raise errors.Unavailable(
                f"the backend of model {request.model!r} cannot be reached", retry_after=1
            ) from error
        message = rest_v2.error_text(body)
        if message is None:  # a proxy's words, with its addresses
            log.warning("backend of model %r answered %s: %.300r", request.model, reply.status, body)
            message = f"the backend of model {request.model!r} answered with status {reply.status}"
        found = errors.from_http(reply.status, message, retry_after=reply.headers.get("retry-after"))
        if isinstance(found, errors.ModelError):
            raise backend_failed(request, f"HTTP {reply.status}: {message}")
        raise found

    def path(self, model: str, version: str) -> str:
        return f"/v2/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")


def _error_in(body: bytes, request: Request) -> errors.ServingError:
    """Of an error event, whose data says the status that it would have had, had it come first."""
    try:
        found = loads(body)
        status, retry_after = int(found["status"]), found.get("retry_after")
        error = errors.from_http(status, str(found["error"]), retry_after=retry_after and str(retry_after))
    except (errors.InvalidInput, KeyError, TypeError, ValueError, AttributeError):
        return backend_failed(request, f"malformed error event: {body[:300]!r}")
    return backend_failed(request, str(error)) if isinstance(error, errors.ModelError) else error


async def _pieces(parts: list[bytes | memoryview]) -> AsyncIterator[bytes | memoryview]:
    """A body as it is, without a copy of it in one piece."""
    for part in parts:
        yield part


def _trust() -> ssl.SSLContext | bool:
    """The CA file that KServe's controller mounts and names, for a cluster with a CA of its own."""
    file = ca_file()
    return ssl.create_default_context(cafile=file) if file else True
