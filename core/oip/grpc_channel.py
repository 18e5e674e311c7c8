"""gRPC's client half over HTTP/2: messages are bytes in both ways, and what is not an answer is a GrpcFailure.

HTTP/2 itself is httpunk's, as in the server: a call takes two fifths of what grpc.aio takes for it. The rules are those
of gRPC's PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Any

from httpunk import H2Reason, HeaderMap, HTTPunkError, StreamResetError

from kservekit.codec import grpc_frames as frames
from kservekit.errors import InvalidInput
from kservekit.oip.grpc_connections import Connections, Link, Unreachable, spawn

Metadata = Iterable[tuple[str, str]]

MOST_BYTES = 2**32 - 1
"""Of an answer: as many as gRPC's prefix can say."""

LET_END_S = 0.1
"""How long a call that nobody waits for any more may still end by itself, before the server is told to give it up: a
cancellation that meets its end kills Triton before 2.53 by a segmentation fault, once in some thousands
(triton-inference-server/server#7368)."""

NO_REASON = "the server gave no reason, or one that was too long for a header"
"""What is over HEADER_BYTES httpunk leaves out."""

_HEAD = (("content-type", frames.CONTENT_TYPE), ("te", "trailers"))
_OF_HTTP = {400: "INTERNAL", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "UNIMPLEMENTED"} | dict.fromkeys(
    (429, 502, 503, 504), "UNAVAILABLE"
)
_OF_RESET: dict[H2Reason | int, str] = {
    H2Reason.REFUSED_STREAM: "UNAVAILABLE",
    H2Reason.CANCEL: "CANCELLED",
    H2Reason.ENHANCE_YOUR_CALM: "RESOURCE_EXHAUSTED",
    H2Reason.INADEQUATE_SECURITY: "PERMISSION_DENIED",
}
_OF_NUMBER = {str(number): code for number, code in enumerate(frames.CODES)}


SILENT_S = 1.0
"""A call that ends at its deadline speaks against its server only after so long, and where it said nothing meanwhile:
callers in a hurry make nobody sick."""


class GrpcFailure(Exception):
    """`code` is the status code's name; `trailing` came with it. `by_server`: it said so itself, and nobody for it.
    `elsewhere`: another address of the same host is well."""

    def __init__(self, code: str, details: str, trailing: dict[str, str] | None = None, *, by_server: bool = False):
        super().__init__(f"{code}: {details}")
        self.code, self.details, self.by_server = code, details, by_server
        self.trailing = trailing or {}
        self.elsewhere = False


class GrpcChannel:
    """`host` is `name:port`; with `context` by TLS. Belongs to the loop that it is used on first."""

    def __init__(self, host: str, context: ssl.SSLContext | None = None) -> None:
        self._connections = Connections(host, context)

    async def call(self, path: str, message: bytes, *, timeout_s: float, metadata: Metadata = ()) -> bytes:
        """The one answer to the message; GrpcFailure for anything else."""
        began = asyncio.get_running_loop().time()
        deadline = began + timeout_s
        link: Link | None = None
        try:
            async with asyncio.timeout_at(deadline):
                link = self._connections.at_once() or await self._connections.link()
                found = []
                call = _Call(link, path, message, deadline, metadata)
                try:
                    async for answer in call.answers():
                        found.append(answer)
                    status = call.status()
                finally:
                    call.end()
                if len(found) != 1:
                    raise GrpcFailure("INTERNAL", f"{len(found)} answers: expected one", status)
        except _FAILURES as error:
            raise self._failed(error, link, began, timeout_s) from _reason(error)
        link.health.answered(asyncio.get_running_loop().time())
        return found[0]

    async def stream(
        self, path: str, message: bytes, *, timeout_s: float, metadata: Metadata = ()
    ) -> AsyncGenerator[bytes]:
        """The answers, each when it is there; GrpcFailure for anything else."""
        began = asyncio.get_running_loop().time()
        deadline = began + timeout_s
        link: Link | None = None
        call: _Call | None = None
        try:
            async with asyncio.timeout_at(deadline):
                link = await self._connections.link()
            call = _Call(link, path, message, deadline, metadata)
            answers = call.answers()
            while True:
                async with asyncio.timeout_at(deadline):
                    answer = await anext(answers, None)
                if answer is None:
                    break
                yield answer
            call.status()
            link.health.answered(asyncio.get_running_loop().time())
        except _FAILURES as error:
            raise self._failed(error, link, began, timeout_s) from _reason(error)
        finally:
            if call is not None:
                call.end()

    def unary_unary(
        self,
        path: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **_: Any,
    ) -> Callable[..., Awaitable[Any]]:
        """What gRPC's generated stubs ask of a channel: a method of messages."""

        async def call(message: Any, timeout: float = 60.0) -> Any:  # noqa: ASYNC109 - gRPC's name for it
            return response_deserializer(await self.call(path, request_serializer(message), timeout_s=timeout))

        return call

    stream_stream = unary_stream = stream_unary = unary_unary
    """Asked for by the same stubs, which use none of them here."""

    async def close(self) -> None:
        await self._connections.close()

    def _failed(self, error: BaseException, link: Link | None, began: float, timeout_s: float) -> GrpcFailure:
        """The error as what it stands for, once it is noted what it says of the address that the call went to."""
        failure = error if isinstance(error, GrpcFailure) else _as_failure(error, began, timeout_s)
        if link is None:
            return failure
        now, health = asyncio.get_running_loop().time(), link.health
        silent = failure.code == "DEADLINE_EXCEEDED" and now - began >= SILENT_S and health.heard_at < began
        if failure.by_server and failure.code != "UNAVAILABLE":
            health.answered(now)
        elif failure.by_server or silent:
            health.failed(now)
        failure.elsewhere = self._connections.another_is_well(health)
        return failure


class _Call:
    """One stream of a connection. httpunk's own `request` cannot be given up before the answer's head is there, so
    this is what it does, with the stream at hand."""

    def __init__(self, link: Link, path: str, message: bytes, deadline: float, metadata: Metadata) -> None:
        seconds_left = deadline - asyncio.get_running_loop().time()
        self._link, self._path, self._message = link, path, message
        self._headers = HeaderMap((*_HEAD, (frames.TIMEOUT, frames.timeout(seconds_left)), *metadata))
        self._driver: Any = link.connection._conn
        self._stream: Any = None
        self._whole = False
        link.begin()

    async def answers(self) -> AsyncGenerator[bytes]:
        driver = self._driver
        stream = self._stream = await driver._open_stream(
            "POST", self._path, self._headers, end_stream=False, is_head=False
        )
        driver._send_body_background(stream, frames.framed(self._message))
        await stream.headers_evt.wait()
        if stream.status is None:
            if stream.stop is None:
                raise InvalidInput("it has no HTTP status")
            raise driver._stopped_error(stream, stream.stop)
        reader = frames.Reader(MOST_BYTES)
        async for data in driver._aiter_body(stream):
            if stream.status != 200:
                continue
            for message, packed in reader.feed(data):
                if packed:
                    raise InvalidInput("a packed message, which nobody asked for")
                yield message
        if not reader.between:
            raise InvalidInput("the answer ends within a message")
        self._whole = True

    def status(self) -> dict[str, str]:
        """What came with the status, once the answers have ended; GrpcFailure for any but OK."""
        stream = self._stream
        said = stream.trailers or stream.headers
        trailing = {name.decode(): value.decode("latin-1") for name, value in said.raw_items()}
        number = trailing.get(frames.STATUS)
        if number == "0":
            return trailing
        if number is None:
            code = _OF_HTTP.get(stream.status, "UNKNOWN")
            raise GrpcFailure(code, f"HTTP status {stream.status}, and no gRPC status with it", trailing)
        code = _OF_NUMBER.get(number, "UNKNOWN")
        details = frames.percent_decoded(trailing.get(frames.MESSAGE, "")) or NO_REASON
        raise GrpcFailure(code, details, trailing, by_server=True)

    def end(self) -> None:
        """Lets go of it; where it has not ended, the server is told so in a while."""
        if self._stream is None or self._whole:
            self._link.end()
        else:
            spawn(self._given_up())

    async def _given_up(self) -> None:
        driver, stream = self._driver, self._stream
        try:
            async with asyncio.timeout(LET_END_S):
                await stream.headers_evt.wait()
                async for _ in driver._aiter_body(stream):
                    pass
        except (TimeoutError, HTTPunkError):
            driver._reset(stream, H2Reason.CANCEL)
        finally:
            self._link.end()


_FAILURES = (TimeoutError, HTTPunkError, OSError, Unreachable, InvalidInput, GrpcFailure)


def _reason(error: BaseException) -> BaseException | None:
    return None if isinstance(error, (TimeoutError, GrpcFailure)) else error


def _as_failure(error: BaseException, began: float, timeout_s: float) -> GrpcFailure:
    if isinstance(error, TimeoutError):
        return GrpcFailure("DEADLINE_EXCEEDED", f"no answer within {timeout_s:g} s")
    if isinstance(error, StreamResetError):
        if error.error_code == H2Reason.CANCEL and asyncio.get_running_loop().time() >= began + timeout_s:
            return GrpcFailure("DEADLINE_EXCEEDED", "the server gave up at the call's deadline")
        return GrpcFailure(_OF_RESET.get(error.error_code, "INTERNAL"), str(error))
    if isinstance(error, InvalidInput):
        return GrpcFailure("INTERNAL", f"malformed answer: {error}")
    return GrpcFailure("UNAVAILABLE", str(error) or type(error).__name__)
