"""gRPC's client half: against gRPC's own server, ours on several addresses, and what answers wrongly."""

from __future__ import annotations

import asyncio
import gc
import itertools
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import ClassVar

import grpc.aio
import pytest
from certificates import self_signed
from httpunk.asyncio import H2ClientProtocol, H2ServerProtocol
from httpunk.h2.client import Connection
from httpunk.h2.server import ServerConnection
from httpunk.h2.stream import Stream
from test_grpc_http2 import LIMITS

from kservekit.codec import grpc_frames as frames
from kservekit.errors import Unavailable
from kservekit.oip import grpc_connections
from kservekit.oip.address_health import Health
from kservekit.oip.grpc_channel import GrpcChannel, GrpcFailure
from kservekit.serving.grpc_http2 import GrpcServer, _Connection

pytestmark = pytest.mark.usefixtures("both_loops")


class Foreign:
    """Methods of gRPC's own server."""

    def __init__(self):
        self.started, self.ended = asyncio.Event(), asyncio.Event()
        self.metadata = {}

    async def echo(self, message, context):
        self.metadata = dict(context.invocation_metadata())
        self.seconds_left = context.time_remaining()
        return message

    async def refuse(self, message, context):
        reason = message.decode() if message.startswith(b"xx") else "kein Modell »x«\n"
        await context.abort(grpc.StatusCode.NOT_FOUND, reason, (("retry-after", "3"),))

    async def hang(self, message, context):
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    async def count(self, requests, context):
        async for message in requests:
            for number in range(int(message)):
                yield str(number).encode()
        if message == b"2":
            await context.abort(grpc.StatusCode.DATA_LOSS, "lost")

    async def endless(self, requests, context):
        try:
            while True:
                yield b"more"
                await asyncio.sleep(0)
        finally:
            self.ended.set()


@asynccontextmanager
async def foreign(**credentials):
    methods = Foreign()
    unary = {name: grpc.unary_unary_rpc_method_handler(getattr(methods, name)) for name in ("echo", "refuse", "hang")}
    streams = {name: grpc.stream_stream_rpc_method_handler(getattr(methods, name)) for name in ("count", "endless")}
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("S", unary | streams),))
    if credentials:
        port = server.add_secure_port("127.0.0.1:0", credentials["credentials"])
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield methods, port
    finally:
        await server.stop(0)


@asynccontextmanager
async def ours(address, port, name):
    """Our server, which answers with its own name."""

    async def who(message, call):
        return name

    server = GrpcServer({"/S/who": who}, {}, LIMITS)
    await server.start(socket.create_server((address, port)))
    try:
        yield server
    finally:
        await server.stop(1)


@asynccontextmanager
async def listening(server):
    """The address of an asyncio server that is made here. uvloop never ends while one is open."""
    server = await server
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@asynccontextmanager
async def channel_to(host, context=None):
    channel = GrpcChannel(host, context)
    try:
        yield channel
    finally:
        await channel.close()


async def answers(channel, name):
    return await channel.call("/S/who", b"", timeout_s=20) == name


async def until(holds, pause_s=0.0):
    """Calls go on meanwhile: what is waited for happens beside them."""
    while not await holds():  # noqa: ASYNC110 - nobody could set an event for it
        await asyncio.sleep(pause_s)


def run(test):
    async def once():
        async with asyncio.timeout(30):
            await test()

    asyncio.run(once())


def with_foreign(test):
    async def once():
        async with foreign() as (methods, port), channel_to(f"127.0.0.1:{port}") as channel:
            await test(methods, channel)

    run(once)


def h2(kind, flags, stream, payload=b""):
    """A frame of HTTP/2."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture
def pods(monkeypatch):
    """The addresses that the name `pods` stands for; 127.0.0.0/8 is all of this machine."""
    addresses = ["127.0.0.1", "127.0.0.2"]

    real = grpc_connections.looked_up

    async def looked_up(name, port):
        if name != "pods":
            return await real(name, port)
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return list(addresses)

    monkeypatch.setattr(grpc_connections, "looked_up", looked_up)
    return addresses


@pytest.mark.parametrize("size", [0, 1, frames.COPIED_BYTES, 6_000_000])
def test_grpcs_own_server_gets_what_is_sent_and_its_answer_comes_back(size):
    async def test(methods, channel):
        message = bytes(range(256)) * (size // 256) + bytes(size % 256)
        sent = [("x-request-id", "r"), ("traceparent", "00-1-2-01")]
        assert await channel.call("/S/echo", message, timeout_s=20, metadata=sent) == message
        assert dict(sent).items() <= methods.metadata.items()
        assert 15 < methods.seconds_left < 20.1

    with_foreign(test)


def test_a_status_comes_with_its_text_and_metadata():
    async def test(methods, channel):
        with pytest.raises(GrpcFailure) as found:
            await channel.call("/S/refuse", b"", timeout_s=20)
        assert (found.value.code, found.value.details) == ("NOT_FOUND", "kein Modell »x«\n")
        assert found.value.trailing["retry-after"] == "3"
        assert found.value.by_server
        with pytest.raises(GrpcFailure, match="UNIMPLEMENTED"):
            await channel.call("/S/nothing", b"", timeout_s=20)

    with_foreign(test)


def test_a_deadline_that_passes_ends_the_call_at_the_server_too():
    async def test(methods, channel):
        with pytest.raises(GrpcFailure) as found:
            await channel.call("/S/hang", b"", timeout_s=0.2)
        assert (found.value.code, found.value.by_server) == ("DEADLINE_EXCEEDED", False)
        await methods.ended.wait()
        assert await channel.call("/S/echo", b"next", timeout_s=20) == b"next"

    with_foreign(test)


def test_the_server_is_told_what_the_connection_left_of_the_time():
    async def test(methods, channel):
        connected = channel._connections.link

        async def late():
            await asyncio.sleep(0.2)
            return await connected()

        channel._connections.link = late
        await channel.call("/S/echo", b"", timeout_s=20)
        assert 15 < methods.seconds_left < 19.81

    with_foreign(test)


def test_a_call_that_is_given_up_ends_at_the_server_too():
    async def test(methods, channel):
        call = asyncio.create_task(channel.call("/S/hang", b"", timeout_s=20))
        await methods.started.wait()
        call.cancel()
        await methods.ended.wait()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await channel.call("/S/echo", b"next", timeout_s=20) == b"next"

    with_foreign(test)


@pytest.mark.parametrize(("patience_s", "end"), [(20, "ended"), (0, "cancelled")])
def test_a_call_that_is_given_up_and_ends_in_a_moment_is_not_cancelled(port, patience_s, end, monkeypatch):
    monkeypatch.setattr("kservekit.oip.grpc_channel.LET_END_S", patience_s)

    async def test():
        started, go_on, seen = asyncio.Event(), asyncio.Event(), []

        async def slowly(message, call):
            started.set()
            try:
                await go_on.wait()
                seen.append("ended")
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise
            return b"done"

        async with channel_to(f"127.0.0.1:{port}") as channel, ours("127.0.0.1", port, b"who") as server:
            server.unary["/S/slowly"] = slowly
            call = asyncio.create_task(channel.call("/S/slowly", b"", timeout_s=20))
            await started.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await until(lambda: answers(channel, b"who"))
            go_on.set()
            await until(lambda: answers(channel, b"who"))
            assert seen == [end]

    run(test)


def test_answers_of_a_stream_come_one_by_one_and_an_error_after_them():
    async def test(methods, channel):
        assert [each async for each in channel.stream("/S/count", b"3", timeout_s=20)] == [b"0", b"1", b"2"]
        answers = channel.stream("/S/count", b"2", timeout_s=20)
        assert [await anext(answers), await anext(answers)] == [b"0", b"1"]
        with pytest.raises(GrpcFailure, match="DATA_LOSS: lost"):
            await anext(answers)
        endless = channel.stream("/S/endless", b"", timeout_s=20)
        assert await anext(endless) == b"more"
        await endless.aclose()
        await methods.ended.wait()

    with_foreign(test)


def test_many_calls_at_once_each_get_their_own_answer():
    async def test(methods, channel):
        sent = [str(number).encode() * (number % 97) for number in range(500)]
        calls = [channel.call("/S/echo", message, timeout_s=20) for message in sent]
        assert await asyncio.gather(*calls) == sent

    with_foreign(test)


def test_calls_go_round_all_addresses_of_a_name_leave_out_one_that_is_gone_and_come_back_to_it(pods, port):
    async def who(channel, count):
        return {await channel.call("/S/who", b"", timeout_s=20) for _ in range(count)}

    async def both(channel):
        return len(await who(channel, 2)) == 2

    async def test():
        async with channel_to(f"pods:{port}") as channel, ours("127.0.0.1", port, b"one"):
            async with ours("127.0.0.2", port, b"two"):
                await until(lambda: both(channel))  # a connection is made in its own time
                turns = [await channel.call("/S/who", b"", timeout_s=20) for _ in range(10)]
                assert turns.count(b"one") == 5
            assert await who(channel, 10) == {b"one"}
            async with ours("127.0.0.2", port, b"two"):
                await until(lambda: both(channel), 0.01)

    run(test)


@pytest.mark.parametrize("illness", ["refuses", "is silent"])
def test_a_sick_address_is_left_out_while_another_is_well_and_comes_back(pods, port, monkeypatch, illness):
    monkeypatch.setattr("kservekit.oip.address_health.FIRST_OUT_S", 3600)
    monkeypatch.setattr("kservekit.oip.grpc_channel.SILENT_S", 0.01)
    patience_s = 20 if illness == "refuses" else 0.3  # on a busy machine the other one needs that, too
    ill = True

    async def two(message, call):
        if ill and illness == "refuses":
            raise Unavailable("its model is not here")
        if ill:
            await asyncio.Event().wait()
        return b"two"

    async def failures(channel):
        found = []
        while len(found) < 3:
            try:
                await channel.call("/S/who", b"", timeout_s=patience_s)
            except GrpcFailure as failure:
                found.append(failure)
        return found

    async def test():
        nonlocal ill
        async with (
            channel_to(f"pods:{port}") as channel,
            ours("127.0.0.1", port, b"one"),
            ours("127.0.0.2", port, b"two") as second,
        ):
            second.unary["/S/who"] = two
            assert all(failure.elsewhere for failure in await failures(channel))
            assert [await channel.call("/S/who", b"", timeout_s=20) for _ in range(10)] == [b"one"] * 10
            ill = False
            (sick,) = [peer for peer in channel._connections._peers if not peer.health.well]
            sick.health._out_until = 0  # as though its time were over
            assert {await channel.call("/S/who", b"", timeout_s=20) for _ in range(2)} == {b"one", b"two"}
            assert sick.health.well

    run(test)


def test_where_all_addresses_are_sick_all_are_used(pods, port, monkeypatch):
    monkeypatch.setattr("kservekit.oip.address_health.FIRST_OUT_S", 3600)

    async def refuses(message, call):
        raise Unavailable("not here")

    async def test():
        async with (
            channel_to(f"pods:{port}") as channel,
            ours("127.0.0.1", port, b"one") as first,
            ours("127.0.0.2", port, b"two") as second,
        ):
            first.unary["/S/who"] = second.unary["/S/who"] = refuses
            peers = channel._connections._peers
            while not peers or any(peer.health.well for peer in channel._connections._peers):
                with pytest.raises(GrpcFailure):
                    await channel.call("/S/who", b"", timeout_s=20)
                peers = channel._connections._peers
            with pytest.raises(GrpcFailure) as found:
                await channel.call("/S/who", b"", timeout_s=20)
            assert not found.value.elsewhere
            second.unary["/S/who"] = first.unary["/S/who"] = lambda message, call: asyncio.sleep(0, b"well")
            assert [await channel.call("/S/who", b"", timeout_s=20) for _ in range(4)] == [b"well"] * 4
            assert any(peer.health.well for peer in peers)

    run(test)


def test_a_caller_in_a_hurry_makes_nobody_sick(pods, port):
    async def test():
        async with channel_to(f"127.0.0.1:{port}") as channel, ours("127.0.0.1", port, b"one") as only:
            assert await channel.call("/S/who", b"", timeout_s=20) == b"one"
            only.unary["/S/who"] = lambda message, call: asyncio.Event().wait()
            for _ in range(5):
                with pytest.raises(GrpcFailure, match="DEADLINE_EXCEEDED"):
                    await channel.call("/S/who", b"", timeout_s=0.001)
            assert all(peer.health.well for peer in channel._connections._peers)

    run(test)


def test_a_sick_address_gets_one_call_at_a_time_to_show_itself_and_ever_more_seldom():
    health = Health()
    for _ in range(5):
        assert health.takes_call(0)
        health.failed(0)
        if not health.well:
            break
    asked = [now for now in range(60) for _ in range(3) if health.takes_call(now) and (health.failed(now) or True)]
    assert asked == [1, 3, 7, 15, 25, 35, 45, 55]
    health.answered(60)
    assert health.well
    assert health.takes_call(60)


def test_a_long_reason_arrives_and_one_that_is_too_long_is_said_to_be_missing():
    async def test():
        async with foreign() as (_, port), channel_to(f"127.0.0.1:{port}") as channel:
            with pytest.raises(GrpcFailure) as found:
                await channel.call("/S/refuse", b"x" * 100_000, timeout_s=20)
            assert found.value.details == "x" * 100_000
            with pytest.raises(GrpcFailure, match="NOT_FOUND: the server gave no reason, or one that was too long"):
                await channel.call("/S/refuse", b"x" * 1_150_000, timeout_s=20)
            assert await channel.call("/S/echo", b"well", timeout_s=20) == b"well"

    run(test)


def test_addresses_that_a_name_gets_and_loses_are_followed(pods, port, monkeypatch):
    monkeypatch.setattr("kservekit.oip.grpc_connections.LOOK_UP_S", 0)
    pods.remove("127.0.0.2")

    async def test():
        async with (
            channel_to(f"pods:{port}") as channel,
            ours("127.0.0.1", port, b"one"),
            ours("127.0.0.2", port, b"two"),
        ):
            assert await channel.call("/S/who", b"", timeout_s=20) == b"one"
            pods[:] = ["127.0.0.2"]
            await until(lambda: answers(channel, b"two"))
            pods.clear()  # what is known is kept
            for _ in range(20):
                assert await channel.call("/S/who", b"", timeout_s=20) == b"two"
                await asyncio.sleep(0)

    run(test)


def test_nobody_there_is_unavailable_at_once_and_found_when_it_comes(port):
    async def test():
        async with channel_to(f"127.0.0.1:{port}") as channel:
            for _ in range(3):
                with pytest.raises(GrpcFailure, match=r"UNAVAILABLE: 127\.0\.0\.1: "):
                    await channel.call("/S/who", b"", timeout_s=20)
            async with ours("127.0.0.1", port, b"here"):
                while True:
                    try:
                        assert await channel.call("/S/who", b"", timeout_s=20) == b"here"
                        break
                    except GrpcFailure as error:
                        assert error.code == "UNAVAILABLE"  # noqa: PT017 - it is left alone for a while
                        await asyncio.sleep(0.01)

    run(test)


def test_a_name_that_nobody_knows_is_unavailable(pods, port):
    pods.clear()

    async def test():
        async with channel_to(f"pods:{port}") as channel:
            with pytest.raises(GrpcFailure, match="UNAVAILABLE: pods is not known"):
                await channel.call("/S/who", b"", timeout_s=20)

    run(test)


def test_what_is_under_way_when_a_server_goes_is_answered_and_the_next_call_finds_the_next_server(port):
    async def test():
        started, go_on = asyncio.Event(), asyncio.Event()

        async def slowly(message, call):
            started.set()
            await go_on.wait()
            return b"done"

        async with channel_to(f"127.0.0.1:{port}") as channel, ours("127.0.0.1", port, b"first") as server:
            server.unary["/S/slowly"] = slowly
            under_way = asyncio.create_task(channel.call("/S/slowly", b"", timeout_s=20))
            await started.wait()
            stopping = asyncio.create_task(server.stop(20))
            await asyncio.sleep(0)
            assert not server._listener.is_serving()  # the port is free
            async with ours("127.0.0.1", port, b"second"):
                await until(lambda: answers(channel, b"second"))
                go_on.set()
                assert await under_way == b"done"
                await stopping

    run(test)


def test_tls_is_checked_for_its_issuer_and_its_name(tmp_path):
    file = self_signed("localhost", tmp_path)
    private, _, public = file.read_bytes().partition(b"-----BEGIN CERTIFICATE-----")

    async def test():
        credentials = grpc.ssl_server_credentials([(private, b"-----BEGIN CERTIFICATE-----" + public)])
        async with foreign(credentials=credentials) as (_, port):
            trusting = ssl.create_default_context(cafile=file)
            async with channel_to(f"localhost:{port}", trusting) as channel:
                assert await channel.call("/S/echo", b"safe", timeout_s=20) == b"safe"
            async with channel_to(f"127.0.0.1:{port}", trusting) as channel:
                with pytest.raises(GrpcFailure, match=r"UNAVAILABLE.*certificate is not valid for '127"):
                    await channel.call("/S/echo", b"", timeout_s=20)
            async with channel_to(f"localhost:{port}", ssl.create_default_context()) as channel:
                with pytest.raises(GrpcFailure, match=r"UNAVAILABLE.*self-signed"):
                    await channel.call("/S/echo", b"", timeout_s=20)

    run(test)


class Wrong(H2ServerProtocol):
    """Answers with what the test has set."""

    answer: ClassVar = {}

    async def handle(self, request):
        await request.read()
        await request.respond(**self.answer)


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        ({"status": 503, "body": b"upstream"}, "UNAVAILABLE: HTTP status 503"),
        ({"status": 404}, "UNIMPLEMENTED: HTTP status 404"),
        ({"status": 200, "body": b"<html>"}, "INTERNAL: malformed answer"),
        ({"status": 200}, "UNKNOWN: HTTP status 200"),
        ({"status": 200, "headers": {"grpc-status": "99"}}, "UNKNOWN: "),
        ({"status": 200, "headers": {"grpc-status": "9" * 5000}}, "UNKNOWN: "),
        ({"status": 200, "headers": {"grpc-status": "0"}}, "INTERNAL: 0 answers"),
        ({"status": 200, "body": b"\0\0\0\0\5ab", "trailers": {"grpc-status": "0"}}, "ends within a message"),
        ({"status": 200, "body": b"\1\0\0\0\1a", "trailers": {"grpc-status": "0"}}, "packed"),
    ],
)
def test_an_answer_that_is_none_is_a_failure_and_not_a_hang(answer, failure, monkeypatch):
    monkeypatch.setattr(Wrong, "answer", answer)

    async def test():
        server = asyncio.get_running_loop().create_server(Wrong, "127.0.0.1", 0)
        async with listening(server) as address, channel_to(address) as channel:
            with pytest.raises(GrpcFailure, match=failure):
                await channel.call("/S/who", b"", timeout_s=20)

    run(test)


@pytest.mark.parametrize("words", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""], ids=["HTTP/1.1", "silence and the end"])
def test_what_speaks_no_http2_is_unavailable(words):
    async def say(reader, writer):
        await reader.read(24)
        writer.write(words)
        writer.close()

    async def test():
        async with listening(asyncio.start_server(say, "127.0.0.1", 0)) as address, channel_to(address) as channel:
            with pytest.raises(GrpcFailure, match="UNAVAILABLE"):
                await channel.call("/S/who", b"", timeout_s=20)

    run(test)


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (h2(1, 5, 1, b"\0\x0bgrpc-status\x010"), "INTERNAL: malformed answer: it has no HTTP status"),
        (h2(3, 0, 1, b"\0\0\0\x0c"), "PERMISSION_DENIED: RST_STREAM"),
    ],
    ids=["trailers alone", "not safe enough"],
)
def test_frames_that_are_no_answer_are_a_failure(answer, failure):
    async def say(reader, writer):
        writer.write(h2(4, 0, 0) + h2(4, 1, 0))
        await reader.readuntil(frames.framed(b"call"))
        writer.write(answer)
        await reader.read()
        writer.close()

    async def test():
        async with listening(asyncio.start_server(say, "127.0.0.1", 0)) as address, channel_to(address) as channel:
            with pytest.raises(GrpcFailure, match=failure):
                await channel.call("/S/who", b"call", timeout_s=20)

    run(test)


def test_a_stream_that_its_server_ends_at_the_deadline_is_late_and_not_cancelled():
    over = asyncio.Event()

    class Late(H2ServerProtocol):
        async def handle(self, request):
            if request.path == "/S/connects":
                await request.respond(404)
                return
            out = await request.send_response(200, headers={"content-type": "application/grpc"})
            await out.send_data(frames.framed(b"first"))
            await over.wait()
            await request.reset(8)

    async def test():
        loop = asyncio.get_running_loop()
        server = loop.create_server(Late, "127.0.0.1", 0)
        async with listening(server) as address, channel_to(address) as channel:
            with pytest.raises(GrpcFailure, match="404"):  # so that the time is not spent on that
                await channel.call("/S/connects", b"", timeout_s=20)
            late = loop.time() + 1
            answers = channel.stream("/S/who", b"", timeout_s=1)
            assert await anext(answers) == b"first"
            over.set()
            await asyncio.sleep(late - loop.time())
            with pytest.raises(GrpcFailure, match="DEADLINE_EXCEEDED"):
                await anext(answers)

    run(test)


def test_who_takes_connections_and_says_nothing_is_unavailable(monkeypatch):
    monkeypatch.setattr(grpc_connections, "CONNECT_S", 0.05)

    async def test():
        with socket.create_server(("127.0.0.1", 0)) as silent:
            async with channel_to(f"127.0.0.1:{silent.getsockname()[1]}") as channel:
                with pytest.raises(GrpcFailure, match=r"UNAVAILABLE: 127.0.0.1: no HTTP/2 within 0.05 s"):
                    await channel.call("/S/who", b"", timeout_s=20)

    run(test)


def test_a_name_that_can_be_none_is_unavailable():
    async def test():
        async with channel_to("a..b:80") as channel:
            with pytest.raises(GrpcFailure, match=r"UNAVAILABLE: a..b is not known: "):
                await channel.call("/S/who", b"", timeout_s=20)

    run(test)


def test_a_connection_is_left_before_late_frames_of_ended_calls_break_it(monkeypatch):
    monkeypatch.setattr(grpc_connections, "WORN_FRAMES", 20)
    connections = []

    async def say(reader, writer):
        connections.append(writer)
        writer.write(h2(4, 0, 0) + h2(4, 1, 0))
        with suppress(asyncio.IncompleteReadError):
            for stream in itertools.count(1, 2):
                await reader.readuntil(frames.framed(b"call"))
                writer.write(h2(1, 4, stream, b"\x88") + h2(0, 0, stream, frames.framed(b"")))
                writer.write(h2(1, 5, stream, b"\0\x0bgrpc-status\x010") + h2(0, 0, stream))
        writer.close()

    async def test():
        async with listening(asyncio.start_server(say, "127.0.0.1", 0)) as address, channel_to(address) as channel:
            for _ in range(45):
                assert await channel.call("/S/who", b"call", timeout_s=20) == b""
            assert len(connections) == 3

    run(test)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # as an error it keeps uvloop from its end
def test_a_loop_that_ends_with_calls_on_an_open_channel_ends_quietly(port, caplog):
    async def leave():
        started = asyncio.Event()

        async def hang(message, call):
            started.set()
            await asyncio.Event().wait()

        server = GrpcServer({"/S/hang": hang}, {}, LIMITS)
        await server.start(socket.create_server(("127.0.0.1", port)))
        channel = GrpcChannel(f"127.0.0.1:{port}")
        call = asyncio.create_task(channel.call("/S/hang", b"", timeout_s=20))
        await started.wait()
        return call, channel

    assert asyncio.run(leave())[0].cancelled()
    grpc_connections._tasks.clear()  # as when the process ends
    gc.collect()
    assert not caplog.records


@pytest.mark.parametrize("make", [lambda: grpc_connections._Protocol(authority="x"), lambda: _Connection(None)])
def test_what_is_written_stays_with_a_transport_that_keeps_it(make):
    class Keeps:
        kept: ClassVar = []

        def write(self, data):
            self.kept.append(data)

    async def test():
        protocol = make()
        protocol._transport = transport = Keeps()
        view = memoryview(b"batch")
        await protocol.send_all(view)
        view.release()
        assert bytes(transport.kept.pop()) == b"batch"

    run(test)


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (Connection, "_open_stream _send_body_background _aiter_body _reset _stopped_error local_error_resets"),
        (Stream, "headers_evt reset_evt status headers trailers stop"),
        (H2ServerProtocol, "_make_server receive_some send_all pause_writing resume_writing"),
        (H2ClientProtocol, "send_all"),
        (ServerConnection, "receive reset_on_error"),
    ],
)
def test_httpunk_has_what_is_used_of_its_inside(owner, names):
    missing = [name for name in names.split() if not hasattr(owner, name)]
    assert not missing, f"httpunk {version('httpunk')} has no {owner.__name__}.{missing}: see where the code uses it"
