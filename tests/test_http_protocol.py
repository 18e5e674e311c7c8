"""uvicorn's HTTP protocol with our limits, on a socket, in this process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from contextlib import asynccontextmanager

import pytest
import uvicorn
import uvloop

from kservekit.serving import http_protocol
from kservekit.serving.http_protocol import limited_protocol

LONG = bytes(4 * 2**20)
LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


async def whole(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(LONG))]})
    await send({"type": "http.response.body", "body": LONG})


async def last(scope, receive, send):
    headers = [(b"content-length", b"%d" % len(LONG)), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": LONG})


async def in_pieces(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(64):
        await send({"type": "http.response.body", "body": LONG[:65536], "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def serving(app, reply_timeout_s):
    """The server, and a connection that has asked and reads as it is told to."""
    protocol = limited_protocol(8192, 5, 5, reply_timeout_s, b"r1")
    config = uvicorn.Config(
        app, http=protocol, ws="none", lifespan="off", log_config=None, timeout_graceful_shutdown=60
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)  # so that not all waits in the kernel
    task = asyncio.create_task(server.serve(sockets=[listener]))
    reader, writer = await asyncio.open_connection(*listener.getsockname(), limit=65536)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    try:
        yield server, reader, writer
    finally:
        writer.transport.abort()
        server.should_exit = True
        await task


def run(test, loop=uvloop.new_event_loop):
    async def once():
        async with asyncio.timeout(30):
            await test()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(once())


async def until(holds):
    while not holds():  # noqa: ASYNC110 - neither uvicorn nor a log has an event
        await asyncio.sleep(0.01)


@LOOPS
@pytest.mark.parametrize("app", [whole, last, in_pieces])
def test_an_answer_that_is_not_read_is_given_up(app, loop, caplog):
    async def test():
        async with serving(app, reply_timeout_s=0.2) as (server, reader, _):
            await reader.readexactly(100)
            await until(lambda: not server.server_state.connections and not server.server_state.tasks)
            with contextlib.suppress(ConnectionError):
                assert len(await reader.read()) < len(LONG) / 2

    run(test, loop)
    assert "a caller took nothing of its answer in 0.2 s" in caplog.text


@pytest.mark.parametrize("app", [whole, last, in_pieces])
def test_one_who_reads_slowly_gets_all_of_it(app):
    async def test():
        async with serving(app, reply_timeout_s=0.5) as (_, reader, _writer):
            found = 0
            while found < len(LONG):
                found += len(await reader.read(2**20))
                await asyncio.sleep(0.01)

    run(test)


@pytest.mark.parametrize("app", [whole, in_pieces])
def test_one_who_does_not_read_does_not_hold_up_the_end(app, caplog, monkeypatch):
    monkeypatch.setattr(http_protocol, "LAST_S", 0.1)

    async def test():
        async with serving(app, reply_timeout_s=60) as (server, reader, _):
            await reader.readexactly(100)
            server.should_exit = True
            await until(lambda: not server.server_state.connections)

    run(test)
    assert "took nothing of its answer in 0.1 s" in caplog.text


def test_what_is_refused_before_it_is_a_request_says_who_refuses_it():
    async def test():
        async with serving(whole, reply_timeout_s=60) as (server, _, _writer):
            address = server.servers[0].sockets[0].getsockname()
            for sent in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 3000):
                reader, writer = await asyncio.open_connection(*address)
                writer.write(sent)
                assert b"\r\nkservekit-revision: r1\r\n" in await reader.read()
                writer.close()

    run(test)
