"""gRPC's server half: HTTP/2 streams in, calls of methods out, and their answers or errors back as trailers say them.

HTTP/2 itself is httpunk's, which is hyper's in Rust: with grpc.aio a small call costs five times as much. The rules are
those of gRPC's PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, aclosing, nullcontext, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from httpunk import H2ProtocolError, H2Reason, H2Server, HeaderMap, HTTPunkError
from httpunk._httpunk import H2_FLAG_WAKE
from httpunk.asyncio import H2ServerProtocol, ServerConnections
from httpunk.h2.server import ServerConnection

from kservekit.codec import grpc_frames as frames
from kservekit.errors import (
    ERROR_HEADER,
    Cancelled,
    DeadlineExceeded,
    InvalidInput,
    ModelError,
    PayloadTooLarge,
    ServingError,
)
from kservekit.serving.departure import Departure
from kservekit.serving.in_time import in_time, resumed
from kservekit.serving.unpacked import unpacked

log = logging.getLogger(__name__)

Unary = Callable[[bytes, "Call"], Awaitable[bytes]]
Streaming = Callable[[AsyncIterator[bytes], "Call"], AsyncGenerator[bytes]]
Admit = Callable[[str, "Call"], AbstractContextManager[None]]

CALLS_A_CONNECTION = 1000
"""At once; a client with more of them waits, or takes another connection."""
WINDOW_BYTES = 4 * 2**20
"""What a caller may send before we have read it, in one call and in all of a connection: several large tensors' worth
on their way, so that a distant caller need not wait for our word."""
FIELD_BYTES = 32
"""What HTTP/2 counts for a header field beside its name and its value (RFC 9113, 6.5.2)."""
PART_BYTES = 65_536
"""Of an answer; a caller must take one in the time that he is given, and not the whole of a large one."""
FLUSH_S = 0.5
"""How long what is written may still take to go, when a server has stopped and its grace is over."""

_HEAD = {"content-type": frames.CONTENT_TYPE, frames.ACCEPTED: "identity, deflate, gzip"}
_NOT_METADATA = frozenset({b"te", b"content-type", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding"})


@dataclass(slots=True)
class Call:
    """What a method is told beside the message, and what it says beside its answer."""

    pairs: list[tuple[str, str]]
    """The caller's metadata, but for what is binary and what is gRPC's own."""
    seconds_left: float | None
    """Of the caller's deadline when the call came; None without one."""
    asker: Any = None
    """What `admit` made of the metadata."""
    trailing: dict[str, str] = field(default_factory=dict)
    """Sent with the status."""


@dataclass(frozen=True, slots=True)
class Limits:
    message_bytes: int
    reply_bytes: int
    header_bytes: int
    message_seconds: float
    """How long one message may be on its way."""
    reply_seconds: float
    """How long a caller may take to read a part of its answer."""
    silent_seconds: float
    """How long a new connection may say nothing at all."""


class GrpcServer:
    """`unary` and `streaming` are methods by their path, `/package.Service/Method`; messages are bytes in both ways.

    A method's ServingError becomes the status that it stands for, any other exception INTERNAL and a line in the log.
    A call whose caller goes away is cancelled. `always` is sent with every status. `admit` is asked for each unary call
    by its path before memory is spent on its message: it may refuse it, and what it gives is held until it is answered.
    """

    def __init__(
        self,
        unary: Mapping[str, Unary],
        streaming: Mapping[str, Streaming],
        limits: Limits,
        always: Mapping[str, str] = {},
        admit: Admit = lambda path, call: nullcontext(),
    ) -> None:
        self._admit = admit
        self.unary, self.streaming, self.limits = unary, streaming, limits
        self._always = {name: value.encode("ascii", "replace").decode() for name, value in always.items()}
        self._head = HeaderMap(_HEAD.items())
        self._well = HeaderMap(({frames.STATUS: "0"} | self._always).items())
        self._connections = ServerConnections()
        self._listener: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        """Answers on the socket from now on."""
        kind: Callable[[GrpcServer], _Connection] = self._connections.track(_Connection)
        self._listener = await asyncio.get_running_loop().create_server(lambda: kind(self), sock=listener, backlog=2048)

    async def stop(self, grace_s: float) -> None:
        """Takes no new connection or call, lets those that run end, and ends them after `grace_s`."""
        if self._listener is not None:
            self._listener.close()
        # Without it a caller that does not read holds up the end for ever: what was written waits for him.
        cutting = asyncio.get_running_loop().call_later(grace_s + FLUSH_S, self._cut)
        await self._connections.shutdown(timeout=grace_s)
        cutting.cancel()

    def _cut(self) -> None:
        for connection in list(self._connections._live):
            connection.abort()

    async def answer(self, request: Any) -> None:
        """Answers one HTTP/2 request, and is done when all of it is on its way."""
        path = request.path or ""
        if request.method != "POST" or not (request.headers.get("content-type") or b"").startswith(b"application/grpc"):
            await request.respond(405 if request.method != "POST" else 415, headers=HeaderMap(self._always.items()))
            return
        departure = Departure(lambda: _until_reset(request, departure))
        try:
            if (method := self.unary.get(path)) is not None:
                await self._answer_one(method, request, departure)
            elif (several := self.streaming.get(path)) is not None:
                with suppress(Cancelled):
                    await departure.ends(self._answer_each(several, request))
            else:
                code, text = "UNIMPLEMENTED", f"no such method: {path[:200]}"
                await request.respond(200, headers=HeaderMap((_HEAD | self._status(code, text)).items()))
        except HTTPunkError:  # nobody is there to be told
            log.debug("a caller went away before its answer: %s", path)
        except _Unread:
            log.warning("a caller did not read its answer in %s s: %s", self.limits.reply_seconds, path)
            await request.reset()

    async def _answer_one(self, method: Unary, request: Any, departure: Departure) -> None:
        trailing: dict[str, str] = {}
        try:
            reply = await departure.ends(self._one(method, request, trailing))
        except HTTPunkError:
            raise
        except Exception as error:
            if departure.gone:  # a backend's Cancelled is an answer as any other error
                return
            await request.respond(200, headers=HeaderMap((_HEAD | self._failed(error)).items()))
            return
        trailers = HeaderMap(({frames.STATUS: "0"} | self._always | trailing).items()) if trailing else self._well
        framed = frames.framed(reply)
        if isinstance(framed, bytes):
            await self._taken(request.respond(200, headers=self._head, body=framed, trailers=trailers))
        else:
            out = await request.send_response(200, headers=self._head)
            await self._sent(out, framed)
            await out.send_trailers(trailers)

    async def _one(self, method: Unary, request: Any, trailing: dict[str, str]) -> bytes:
        call = _call(request, trailing, self.limits.header_bytes)
        with self._admit(request.path, call):
            return self._within_limit(await method(await self._in_time(request, call), call))

    async def _in_time(self, request: Any, call: Call) -> bytes:
        """The call's message; takes from its deadline what that took."""
        began = time.monotonic()
        wait = self.limits.message_seconds if call.seconds_left is None else call.seconds_left
        try:
            message = await in_time(
                self._only_message(request), began + min(wait, self.limits.message_seconds), "the caller"
            )
        except DeadlineExceeded:
            raise DeadlineExceeded("the request's message was not here in time") from None
        if call.seconds_left is not None:
            call.seconds_left -= time.monotonic() - began
        return message

    async def _answer_each(self, method: Streaming, request: Any) -> None:
        out: Any = None
        trailing: dict[str, str] = {}
        try:
            call = _call(request, trailing, self.limits.header_bytes)
            async with aclosing(method(self._messages(request), call)) as answers:
                async for answer in answers:
                    if out is None:
                        out = await request.send_response(200, headers=self._head)
                    framed = frames.framed(self._within_limit(answer))
                    await self._sent(out, (framed,) if isinstance(framed, bytes) else framed)
            status = {frames.STATUS: "0"} | self._always
        except (HTTPunkError, _Unread):
            raise
        except Exception as error:
            status = self._failed(error)
        trailers = status | trailing
        if out is None:
            await request.respond(200, headers=HeaderMap((_HEAD | trailers).items()))
        else:
            await out.send_trailers(HeaderMap(trailers.items()))

    async def _sent(self, out: Any, pieces: tuple[bytes, ...]) -> None:
        for piece in pieces:
            for start in range(0, len(piece), PART_BYTES):
                await self._taken(out.send_data(piece[start : start + PART_BYTES]))

    async def _taken(self, sending: Coroutine[Any, Any, None]) -> None:
        """What a caller has no room for waits for him, and not for ever."""
        try:
            waits_for = sending.send(None)
        except StopIteration:
            return
        loop, half = asyncio.get_running_loop(), self.limits.reply_seconds / 2
        try:
            async with asyncio.timeout(None) as patience:
                # In two steps: where this process had no time itself the first one is late, and the second counts.
                second = loop.call_later(half, lambda: patience.reschedule(loop.time() + half))
                try:
                    await resumed(sending, waits_for)
                finally:
                    second.cancel()
        except TimeoutError as error:
            raise _Unread from error

    async def _only_message(self, request: Any) -> bytes:
        found: bytes | None = None
        async for message in self._messages(request):
            if found is not None:
                raise InvalidInput("more messages: expected one")
            found = message
        if found is None:
            raise InvalidInput("no message: expected one")
        return found

    async def _messages(self, request: Any) -> AsyncGenerator[bytes]:
        reader = frames.Reader(self.limits.message_bytes)
        async for data in request.aiter_bytes():
            for message, packed in reader.feed(data):
                yield await self._unpacked(message, request) if packed else message
        if not reader.between:
            raise InvalidInput("the request ends within a message")

    async def _unpacked(self, message: bytes, request: Any) -> bytes:
        encoding = (request.headers.get(frames.ENCODING) or b"identity").decode("latin-1")
        return bytes(await unpacked(message, encoding, self.limits.message_bytes))

    def _within_limit(self, reply: bytes) -> bytes:
        if len(reply) <= self.limits.reply_bytes:
            return reply
        limit = f"{self.limits.reply_bytes}, the limit of this server (--grpc_max_send_message_length)"
        raise ModelError(f"the answer is {len(reply)} bytes: over {limit}")

    def _failed(self, error: Exception) -> dict[str, str]:
        if not isinstance(error, ServingError):
            log.error("a fault of the server itself", exc_info=error)
            error = ModelError("the server failed; its log has the reason")
        status = self._status(error.grpc, error.message) | {ERROR_HEADER: type(error).__name__}
        if error.told_retry_after is not None:
            status["retry-after"] = str(error.told_retry_after)
        return status

    def _status(self, code: str, text: str) -> dict[str, str]:
        said = {frames.STATUS: str(frames.CODES.index(code)), frames.MESSAGE: frames.percent_encoded(text)}
        return said | self._always


class _Unread(Exception):
    """The caller does not read its answer."""


class _Connection(H2ServerProtocol):
    """One caller's. He is read only so far ahead of what he reads himself, or his pings alone would fill the memory;
    and left once he takes nothing for as long as a caller may take to read."""

    def __init__(self, server: GrpcServer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._grpc = server
        self._to: Any = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._ahead = 0
        self._waiting: asyncio.TimerHandle | None = None
        self._silent: asyncio.TimerHandle

    def connection_made(self, transport: Any) -> None:
        self._to = transport
        self._silent = asyncio.get_running_loop().call_later(self._grpc.limits.silent_seconds, self.abort)
        super().connection_made(transport)  # type: ignore[no-untyped-call]

    def data_received(self, data: bytes) -> None:
        self._silent.cancel()
        super().data_received(data)  # type: ignore[no-untyped-call]

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)  # type: ignore[no-untyped-call]
        self._silent.cancel()
        self._takes_more()

    def pause_writing(self) -> None:
        super().pause_writing()  # type: ignore[no-untyped-call]
        self._ahead = 0
        self._writable.clear()
        self._wait(self._to.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()  # type: ignore[no-untyped-call]
        self._takes_more()

    async def receive_some(self, max_bytes: int = 65_536) -> bytes:
        if self._ahead > WINDOW_BYTES:
            await self._writable.wait()
        data: bytes = await super().receive_some(max_bytes)  # type: ignore[no-untyped-call]
        if not self._writable.is_set():
            self._ahead += len(data)
        return data

    def abort(self) -> None:
        """Ends it at once; httpunk's own leaves what was written to wait for the caller."""
        self._to.abort()

    def _takes_more(self) -> None:
        self._ahead = 0
        self._writable.set()
        if self._waiting is not None:
            self._waiting.cancel()

    def _wait(self, left: int) -> None:
        self._waiting = asyncio.get_running_loop().call_later(self._grpc.limits.reply_seconds, self._look, left)

    def _look(self, before: int) -> None:
        left = self._to.get_write_buffer_size()
        if left < before:
            self._wait(left)
        else:
            log.warning("a caller took nothing of its answers in %s s", self._grpc.limits.reply_seconds)
            self.abort()

    async def send_all(self, data: Any) -> None:
        # httpunk lets go of its view when this returns, and asyncio's transport keeps it (from Python 3.12 on).
        await super().send_all(memoryview(data))  # type: ignore[no-untyped-call]

    async def _make_server(self) -> H2Server:
        header_bytes = self._grpc.limits.header_bytes
        return _Server(
            self,
            4 * header_bytes,
            backend=self._backend,
            max_concurrent_streams=CALLS_A_CONNECTION,
            initial_window_size=WINDOW_BYTES,
            initial_connection_window_size=WINDOW_BYTES,
            # Frames stay at HTTP/2's 16 KiB: gRPC's clients send larger ones before they have agreed to them.
            # What waits for the caller httpunk keeps twice over: with 4 MiB the heap grew by 20 MB under large answers.
            max_send_buf_size=2 * PART_BYTES,
            # A client that gives up many calls at once, as at a deadline, sends their resets in one piece: with
            # httpunk's 20 the connection ends, and with it the calls that go on.
            max_pending_accept_reset_streams=CALLS_A_CONNECTION,
            # What is over it httpunk leaves out without a word. It is so high that what _Server lets through, unpacked
            # (5 bits a byte at least), cannot reach it without being over our limit, too, which is an error.
            max_header_list_size=2**24 + 8 * header_bytes,
            auto_date_header=False,
        )

    async def handle(self, request: Any) -> None:
        await self._grpc.answer(request)


class _Server(H2Server):
    """Ends a connection whose header block goes on for more than `block_bytes` as it travels; 128 KiB more where it
    begins and ends within what is read at once."""

    def __init__(self, protocol: _Connection, block_bytes: int, **options: Any) -> None:
        self._conn = _Frames(protocol, **options)  # type: ignore[no-untyped-call]
        self._conn.block_bytes = block_bytes


class _Frames(ServerConnection):
    block_bytes: int
    _unfinished = 0

    def receive(self, data: bytes) -> list[Any]:
        frames: list[Any] = super().receive(data)
        # No frame is longer than 16 KiB, but for those of a header block, which come as one.
        self._unfinished = 0 if frames else self._unfinished + len(data)
        if self._unfinished > self.block_bytes:
            raise H2ProtocolError(int(H2Reason.ENHANCE_YOUR_CALM), "a header block without an end")
        return frames

    def reset_on_error(self, stream: int, reason: int) -> Any:
        if reason == int(H2Reason.STREAM_CLOSED):
            return _LATE
        verdict: Any = super().reset_on_error(stream, reason)
        if verdict.handle is not None:
            verdict.handle.reset_evt.set()  # the work for it ends, or a caller could have more of it than streams
        return verdict


_LATE = SimpleNamespace(handle=None, stop=None, flags=H2_FLAG_WAKE)
"""Frames that were on their way when their call was refused are dropped; httpunk ends a connection at 1024 of them, and
with it the calls of all who share it."""


def _call(request: Any, trailing: dict[str, str], limit: int) -> Call:
    size = FIELD_BYTES * len(request.headers)
    raw = request.headers.raw_items() if size <= limit else []
    size += sum([len(name) + len(value) for name, value in raw])
    if size > limit:
        raise PayloadTooLarge(f"the metadata is {size} bytes or more: over {limit} (KSERVEKIT_MAX_HEADER_BYTES)")
    timeout = request.headers.get(frames.TIMEOUT)
    pairs = [
        (name.decode(), value.decode("latin-1"))
        for name, value in raw
        if name not in _NOT_METADATA and not name.endswith(b"-bin")
    ]
    seconds_left = None if timeout is None else frames.seconds(timeout.decode("latin-1"))
    return Call(pairs, seconds_left, trailing=trailing)


def _until_reset(request: Any, departure: Departure) -> asyncio.Task[None]:
    async def watch() -> None:
        with suppress(HTTPunkError):  # the connection as a whole
            await request.reset_received()
        departure.happened()

    return asyncio.get_running_loop().create_task(watch())
