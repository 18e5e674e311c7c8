"""gRPC's server half on a socket: against gRPC's own client, against bare HTTP/2, and against what is neither."""

from __future__ import annotations

import asyncio
import gzip
import logging
import socket
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

import grpc.aio
import pytest
from httpunk import Backend, ConnectionClosedError, GoAwayError, H2Connection, H2Reason, StreamResetError
from httpunk.asyncio import H2ClientProtocol

from kservekit.codec import grpc_frames as frames
from kservekit.errors import Cancelled, InvalidInput, TooManyRequests
from kservekit.serving import grpc_http2
from kservekit.serving.grpc_http2 import GrpcServer, Limits

pytestmark = pytest.mark.usefixtures("both_loops")

LIMITS = Limits(
    message_bytes=100_000,
    reply_bytes=300_000,
    header_bytes=8192,
    message_seconds=0.3,
    reply_seconds=0.5,
    silent_seconds=0.3,
)
HEADERS = {"content-type": "application/grpc", "te": "trailers"}


class Methods:
    """What the server under test answers, and what it saw."""

    def __init__(self):
        self.calls = []
        self.started, self.ended = asyncio.Event(), asyncio.Event()

    async def echo(self, message, call):
        self.calls.append(call)
        return message

    async def refuse(self, message, call):
        raise TooManyRequests("zu viele, 100 %\n", retry_after=1.2)

    async def cancelled(self, message, call):
        raise Cancelled("the backend was told to give up")

    async def fail(self, message, call):
        raise RuntimeError("a secret")

    async def large(self, message, call):
        return bytes(300_001)

    async def long(self, message, call):
        return bytes(200_000)

    async def each_long(self, requests, call):
        try:
            while True:
                yield bytes(200_000)
        finally:
            self.ended.set()

    async def hang(self, message, call):
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    async def each(self, requests, call):
        async for message in requests:
            if message == b"wrong":
                raise InvalidInput("a wrong one")
            yield message * 2

    async def endless(self, requests, call):
        try:
            while True:
                yield b"more"
                await asyncio.sleep(0)
        finally:
            self.ended.set()

    @contextmanager
    def admit(self, path, call):
        if ("x-tenant", "full") in call.pairs:
            raise TooManyRequests("no room", retry_after=1)
        yield


@asynccontextmanager
async def serving():
    methods = Methods()
    unary = {
        f"/S/{name}": getattr(methods, name)
        for name in ("echo", "refuse", "cancelled", "fail", "large", "long", "hang")
    }
    streaming = {f"/S/{name}": getattr(methods, name) for name in ("each", "each_long", "endless")}
    server = GrpcServer(unary, streaming, LIMITS, always={"kservekit-revision": "r1"}, admit=methods.admit)
    listener = socket.create_server(("127.0.0.1", 0))
    await server.start(listener)
    try:
        yield methods, server, f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        await server.stop(0.5)


async def post(address, path, body, **headers):
    """One request of bare HTTP/2: the answer, its body, and the trailers or, where there is no body, the headers."""
    host, port = address.split(":")
    _, protocol = await asyncio.get_running_loop().create_connection(
        lambda: H2ClientProtocol(authority=address, scheme="http"), host, int(port)
    )
    headers = HEADERS | {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection = await protocol.ready()
        reply = await connection.request(headers.pop("method", "POST"), path, headers=headers, body=body)
        found = await reply.read()
    finally:
        await protocol.aclose()
    said = dict((reply.trailers or reply.headers).raw_items())
    return reply, found, {name.decode(): value.decode() for name, value in said.items()}


def run(test):
    async def once():
        async with asyncio.timeout(30), serving() as (methods, server, address):
            await test(methods, server, address)

    asyncio.run(once())


def test_grpcs_own_client_gets_what_it_sent_and_the_metadata():
    async def test(methods, server, address):
        async with grpc.aio.insecure_channel(address) as channel:
            for size in (0, 1, 70_000 - 20_001):
                call = channel.unary_unary("/S/echo")(bytes(size), metadata=[("x-id", "7"), ("x-raw-bin", b"\xff")])
                assert await call == bytes(size)
            assert ("kservekit-revision", "r1") in [tuple(pair) for pair in await call.trailing_metadata()]
        names = dict(methods.calls[0].pairs)
        assert names["x-id"] == "7"
        assert not {"te", "content-type", "x-raw-bin"} & set(names)

    run(test)


def test_a_packed_message_is_unpacked():
    async def test(methods, server, address):
        for algorithm in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            async with grpc.aio.insecure_channel(address, compression=algorithm) as channel:
                assert await channel.unary_unary("/S/echo")(bytes(40_000)) == bytes(40_000)

    run(test)


def test_an_error_arrives_with_its_status_text_and_metadata():
    async def test(methods, server, address):
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/S/refuse")(b"")
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.details() == "zu viele, 100 %\n"
        trailing = dict(caught.value.trailing_metadata())
        assert (trailing["retry-after"], trailing["kservekit-error"]) == ("2", "TooManyRequests")
        assert trailing["kservekit-revision"] == "r1"

    run(test)


def test_a_backends_cancelled_is_answered_as_any_other_error():
    async def test(methods, server, address):
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError, match="told to give up") as caught:
                await channel.unary_unary("/S/cancelled")(b"", timeout=5)
        assert caught.value.code() is grpc.StatusCode.CANCELLED

    run(test)


def test_a_fault_is_told_to_the_log_and_not_to_the_caller(caplog):
    async def test(methods, server, address):
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/S/fail")(b"")
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in caught.value.details()

    with caplog.at_level(logging.ERROR):
        run(test)
    assert "a secret" in caplog.text


def test_each_message_of_a_stream_has_its_answer_and_an_error_ends_it():
    async def test(methods, server, address):
        async with grpc.aio.insecure_channel(address) as channel:
            assert [each async for each in channel.stream_stream("/S/each")(iter([b"a", b"b"]))] == [b"aa", b"bb"]
            assert [each async for each in channel.stream_stream("/S/each")(iter([]))] == []
            # Were there more to send, grpc.aio might say that it could not, and not what the server said.
            call = channel.stream_stream("/S/each")(iter([b"a", b"wrong"]))
            assert await call.read() == b"aa"
            with pytest.raises(grpc.aio.AioRpcError, match="a wrong one"):
                await call.read()

    run(test)


@pytest.mark.parametrize("method", ["hang", "endless"])
def test_a_caller_that_gives_up_ends_the_work(method):
    async def test(methods, server, address):
        async with grpc.aio.insecure_channel(address) as channel:
            if method == "hang":
                call = channel.unary_unary("/S/hang")(b"")
                await methods.started.wait()
            else:
                call = channel.stream_stream("/S/endless")(iter([]))
                assert await call.read() == b"more"
            call.cancel()
            await methods.ended.wait()

    run(test)


@pytest.mark.parametrize("end", ["aborts", "sends no more"])
def test_a_connection_that_its_caller_ends_ends_the_work(end):
    """Who sends no more cannot be told from who is gone: a process that is killed closes its sockets as politely."""

    async def test(methods, server, address):
        _, writer = await raw(address, call_frames(1, "/S/hang"))
        await methods.started.wait()
        if end == "aborts":
            writer.transport.abort()
        else:
            writer.write_eof()
        await methods.ended.wait()
        writer.close()

    run(test)


def test_a_connection_that_breaks_ends_the_work():
    async def test(methods, server, address):
        asking = asyncio.create_task(post(address, "/S/hang", frames.framed(b"")))
        await methods.started.wait()
        for connection in list(server._connections._live):
            connection._transport.abort()
        await methods.ended.wait()
        with pytest.raises(ConnectionClosedError):
            await asking

    run(test)


@pytest.mark.parametrize(
    ("body", "headers", "status", "text"),
    [
        (b"", {}, "3", "no message: expected one"),
        (frames.framed(b"a") * 2, {}, "3", "more messages: expected one"),
        (b"\0\0\0\0\5abc", {}, "3", "ends within a message"),
        (b"\0\0\0", {}, "3", "ends within a message"),
        (b"\2\0\0\0\1a", {}, "3", "begins with 2"),
        (b"\0\0\1\x86\xa1", {}, "8", "100001 bytes: over 100000"),
        (b"\0\xff\xff\xff\xff", {}, "8", "4294967295 bytes: over 100000"),
        (b"\1\0\0\0\3abc", {"grpc_encoding": "gzip"}, "3", "not gzip"),
        (b"\1\0\0\0\1a", {"grpc_encoding": "snappy"}, "3", "'snappy': expected gzip"),
        (frames.framed(b"a"), {"grpc_timeout": "soon"}, "3", "grpc-timeout is 'soon'"),
    ],
)
def test_a_wrong_request_is_told_so_and_the_next_one_is_answered(body, headers, status, text):
    async def test(methods, server, address):
        _, _, said = await post(address, "/S/echo", body, **headers)
        assert (said["grpc-status"], text in frames.percent_decoded(said["grpc-message"])) == (status, True), said
        assert (await post(address, "/S/echo", frames.framed(b"well")))[1] == frames.framed(b"well")

    run(test)


def test_a_bomb_is_refused_before_it_is_unpacked():
    async def test(methods, server, address):
        packed = gzip.compress(bytes(50_000_000))
        _, _, said = await post(
            address, "/S/echo", b"\1" + len(packed).to_bytes(4, "big") + packed, grpc_encoding="gzip"
        )
        assert said["grpc-status"] == "8"

    run(test)


def test_an_answer_over_its_limit_is_an_error():
    async def test(methods, server, address):
        _, body, said = await post(address, "/S/large", frames.framed(b""))
        assert (body, said["grpc-status"], "300001 bytes" in said["grpc-message"]) == (b"", "13", True)

    run(test)


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"method": "PUT"}, 405), ({"content_type": "application/json"}, 415)],
)
def test_what_is_not_grpc_has_http_s_status(headers, status):
    async def test(methods, server, address):
        reply, _, said = await post(address, "/S/echo", b"{}", **headers)
        assert (reply.status, said["kservekit-revision"]) == (status, "r1")

    run(test)


def test_an_unknown_method_is_unimplemented():
    async def test(methods, server, address):
        _, _, said = await post(address, "/S/nothing", frames.framed(b""))
        assert (said["grpc-status"], said["grpc-message"]) == ("12", "no such method: /S/nothing")

    run(test)


def test_a_message_that_does_not_arrive_is_not_waited_for():
    async def test(methods, server, address):
        async def slowly():
            yield b"\0\0\0\0\5ab"
            await methods.ended.wait()

        _, _, said = await post(address, "/S/echo", slowly())
        methods.ended.set()
        assert (said["grpc-status"], said["grpc-message"]) == ("4", "the request's message was not here in time")

    run(test)


def test_a_call_is_refused_before_its_message_is_there():
    async def test(methods, server, address):
        async def never():
            yield b"\0\0\0\0\5ab"
            await methods.ended.wait()

        _, _, said = await post(address, "/S/echo", never(), x_tenant="full")
        methods.ended.set()
        assert (said["grpc-status"], said["retry-after"]) == ("8", "1")
        async with grpc.aio.insecure_channel(address) as channel:
            for _ in range(60):  # 5.4 MB: more than may be on its way in one connection
                with pytest.raises(grpc.aio.AioRpcError, match="no room"):
                    await channel.unary_unary("/S/echo")(bytes(90_000), metadata=[("x-tenant", "full")])
            assert await channel.unary_unary("/S/echo")(b"well") == b"well"

    run(test)


@pytest.mark.parametrize("method", ["long", "each_long"])
def test_an_answer_that_is_not_read_is_given_up(method, caplog):
    async def test(methods, server, address):
        host, port = address.split(":")
        transport = await Backend.asyncio.create().connect_tcp(host, int(port))
        narrow = H2Connection(transport, authority=address, initial_window_size=1000, backend=Backend.asyncio)
        async with narrow as connection:
            reply = await connection.request("POST", f"/S/{method}", headers=HEADERS, body=frames.framed(b""))
            while "did not read its answer in 0.5 s" not in caplog.text:  # noqa: ASYNC110 - a log has no event
                await asyncio.sleep(0.01)
            with pytest.raises(StreamResetError):
                await reply.read()
        if method == "each_long":
            await methods.ended.wait()

    run(test)


@pytest.mark.parametrize("method", ["long", "each_long"])
def test_an_answer_that_is_read_slowly_is_sent_to_its_end(method, caplog):
    async def test(methods, server, address):
        server.limits = replace(LIMITS, reply_seconds=0.2)
        reader, writer = await raw(address, call_frames(1, f"/S/{method}"), WIDE[1])
        for _ in range(5):  # a part each time, for longer than one part may take
            await asyncio.sleep(0.1)
            writer.write(frame(8, 0, 1, (65_536).to_bytes(4, "big")))
        received = 0
        while received < 200_000:
            received += len(await reader.read(100_000))
        writer.close()

    run(test)
    assert not caplog.records


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0" + b"\0\0\5\1\5\0\0\0\1\xff\xff\xff\xff\xff",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0" + b"\0\0\5\1\5\0\0\0\1\0\1X\1x",
        b"\x16\3\1\2\0\1\0\1\xfc\3\3",
    ],
    ids=["HTTP/1.1", "rubbish after the preface", "a damaged head", "a name in capitals", "TLS"],
)
def test_what_is_not_http2_ends_its_connection_alone(data):
    async def test(methods, server, address):
        host, port = address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(data)
        await reader.read()
        writer.close()
        assert (await post(address, "/S/echo", frames.framed(b"well")))[1] == frames.framed(b"well")

    run(test)


def test_a_connection_that_says_nothing_is_ended_and_one_that_has_spoken_is_not():
    async def test(methods, server, address):
        host, port = address.split(":")
        async with grpc.aio.insecure_channel(address) as channel:
            assert await channel.unary_unary("/S/echo")(b"first") == b"first"
            (spoken,) = server._connections._live
            reader, writer = await asyncio.open_connection(host, int(port))
            await reader.read()  # our server's settings, and the end
            writer.close()
            while server._connections.count() > 1:  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0)
            assert server._connections._live == {spoken}

    run(test)


@pytest.mark.parametrize(
    "metadata",
    [
        {"x_long": "x" * 9_000},
        {"x_long": "x" * 20_000, "authorization": "after what is too long"},
        {"x_long": "x" * 40_000},
        {f"x_{number}": "" for number in range(300)},
    ],
    ids=["a little", "what hides the rest", "much", "in names alone"],
)
def test_metadata_over_its_limit_is_refused_and_never_cut(metadata):
    async def test(methods, server, address):
        _, _, said = await post(address, "/S/echo", frames.framed(b""), **metadata)
        assert (said["grpc-status"], "over 8192" in said["grpc-message"]) == ("8", True)
        assert not methods.calls

    run(test)


def test_metadata_without_an_end_costs_its_connection():
    async def test(methods, server, address):
        with pytest.raises(GoAwayError) as caught:  # what HTTP/2 has for far too much
            await post(address, "/S/echo", frames.framed(b""), x_long="x" * 200_000)
        assert caught.value.error_code == H2Reason.ENHANCE_YOUR_CALM
        assert not methods.calls

    run(test)


def test_a_server_that_stops_answers_what_is_under_way_and_takes_nothing_new():
    async def test(methods, server, address):
        async def slowly(message, call):
            methods.started.set()
            await methods.ended.wait()
            return b"done"

        server.unary["/S/slowly"] = slowly
        async with grpc.aio.insecure_channel(address) as channel:
            call = channel.unary_unary("/S/slowly")(b"")
            await methods.started.wait()
            stopping = asyncio.create_task(server.stop(20))
            await asyncio.sleep(0)
            methods.ended.set()
            assert await call == b"done"
            await stopping
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/S/echo")(b"")
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    run(test)


def test_many_calls_over_one_connection_each_get_their_own_answer():
    async def test(methods, server, address):
        async with grpc.aio.insecure_channel(address) as channel:
            echo = channel.unary_unary("/S/echo")
            sent = [str(number).encode() * (number % 97) for number in range(500)]
            assert await asyncio.gather(*map(echo, sent)) == sent

    run(test)


async def raw(address, *frames_of_it, settings=b"", room=None):
    """A bare socket's streams after HTTP/2's first words; `room` is what the kernel takes for a client that reads
    nothing."""
    host, port = address.split(":")
    connected = socket.socket()
    if room is not None:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    connected.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connected, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=connected, limit=1024)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, settings) + b"".join(frames_of_it))
    return reader, writer


async def received(reader, words):
    read = b""
    while words not in read:
        read += (more := await reader.read(65_536))
        assert more, f"the connection ended: {read[-30:]}"


def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def head_frame(stream, path, *, ends=False):
    """HPACK's plainest words: nothing indexed, nothing packed."""
    pairs = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x"} | HEADERS
    block = b"".join(b"\0" + b"".join(bytes((len(text),)) + text.encode() for text in pair) for pair in pairs.items())
    return frame(1, 5 if ends else 4, stream, block)


def call_frames(stream, path, message=b""):
    return head_frame(stream, path) + frame(0, 1, stream, frames.framed(message))


WIDE = (0x4).to_bytes(2, "big") + (2**31 - 1).to_bytes(4, "big"), frame(8, 0, 0, (2**31 - 70_000).to_bytes(4, "big"))
"""A stream's and a connection's window, both as wide as they go."""


async def many_unread(server, address):
    """A client that asks for more than the kernel takes and reads nothing of it."""
    calls = [call_frames(1 + 2 * number, "/S/long") for number in range(40)]
    _, writer = await raw(address, WIDE[1], *calls, settings=WIDE[0], room=4096)
    writer.transport.pause_reading()
    while not any(each._writing_paused for each in server._connections._live):  # noqa: ASYNC110 - no event for it
        await asyncio.sleep(0.01)
    return writer


def test_a_server_stops_though_a_caller_does_not_read():
    async def test(methods, server, address):
        server.limits = replace(LIMITS, reply_seconds=60)
        writer = await many_unread(server, address)
        await server.stop(0.1)
        assert not server._connections.count()
        writer.transport.abort()

    run(test)


def test_a_caller_whose_socket_takes_nothing_is_left(caplog):
    async def test(methods, server, address):
        writer = await many_unread(server, address)
        while server._connections.count():  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.01)
        writer.transport.abort()

    run(test)
    assert "took nothing of its answers in 0.5 s" in caplog.text


def test_words_of_a_caller_that_reads_no_answer_to_them_are_not_read_without_end(monkeypatch):
    monkeypatch.setattr(grpc_http2, "WINDOW_BYTES", 100_000)

    async def test(methods, server, address):
        server.limits = replace(LIMITS, reply_seconds=60)
        _, writer = await raw(address, room=4096)
        writer.transport.pause_reading()
        pings = frame(6, 0, 0, bytes(8)) * 5000
        for _ in range(400):  # 34 MB
            writer.write(pings)
        (connection,) = server._connections._live
        reading = asyncio.create_task(writer.drain())
        while not (reading.done() or (connection._reading_paused and connection._ahead > 100_000)):  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0)
        assert writer.transport.get_write_buffer_size() > 10_000_000
        writer.transport.abort()
        await asyncio.wait({reading})
        reading.exception()

    run(test)


def test_many_calls_given_up_at_once_do_not_cost_the_others_their_connection():
    async def test(methods, server, address):
        given_up = [head_frame(1 + 2 * each, "/S/echo") for each in range(500)]
        resets = [frame(3, 0, 1 + 2 * each, (8).to_bytes(4, "big")) for each in range(500)]
        reader, writer = await raw(address, *given_up, *resets, call_frames(1001, "/S/echo", b"well"))
        await reader.readuntil(frames.framed(b"well"))
        writer.close()

    run(test)


def test_a_second_message_of_a_call_with_one_is_refused_as_it_comes():
    async def test(methods, server, address):
        server.limits = replace(LIMITS, message_seconds=60)
        reader, writer = await raw(address, head_frame(1, "/S/echo"), frame(0, 0, 1, frames.framed(b"a") * 2))
        await reader.readuntil(frame(3, 0, 1, bytes(4)))  # the rest is not wanted
        writer.close()

    run(test)


def test_what_is_late_of_many_refused_calls_does_not_cost_the_others_their_connection():
    async def test(methods, server, address):
        streams = range(1, 201, 2)
        too_large = b"\0\0\2\0\0"
        refused = [head_frame(stream, "/S/echo") + frame(0, 0, stream, too_large) for stream in streams]
        reader, writer = await raw(address, *refused)
        await received(reader, frame(3, 0, streams[-1], bytes(4)))
        writer.write(b"".join(frame(0, 0, stream, b"late") * 30 for stream in streams))
        writer.write(call_frames(201, "/S/echo", b"well"))
        await received(reader, frames.framed(b"well"))
        writer.close()

    run(test)


def test_a_call_that_its_caller_has_reset_by_a_fault_ends_its_work():
    async def test(methods, server, address):
        _, writer = await raw(address, call_frames(1, "/S/hang"))
        await methods.started.wait()
        writer.write(frame(2, 0, 1, (1).to_bytes(4, "big") + b"\0"))  # a stream that depends on itself
        await methods.ended.wait()
        writer.close()

    run(test)
