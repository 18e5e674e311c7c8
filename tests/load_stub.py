"""A server of known behaviour for the load tests: v2 metadata of one model `m`, and answers by a schedule.

It says its port on stdout, counts its time from its first inference, and ends when its stdin does.
"""

import argparse
import asyncio
import random
import ssl
import sys

METADATA = b'{"name":"m","inputs":[{"name":"x","datatype":"FP32","shape":[-1,3]}],"outputs":[]}'
ANSWER = b'{"model_name":"m","outputs":[{"name":"y","datatype":"FP32","shape":[1],"data":[0.5]}]}'


def options():
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--stall", type=float, nargs=2, metavar=("AT", "FOR"), default=(0.0, 0.0))
    parser.add_argument("--fail", type=float, default=0.0, metavar="SHARE")
    parser.add_argument("--canary", type=float, default=0.0, metavar="SHARE")
    parser.add_argument("--form", choices=("whole", "chunked", "until-close", "half", "no-http"), default="whole")
    parser.add_argument("--certificate", metavar="FILE")
    parser.add_argument("--host", default="")
    parser.add_argument("--token", default="")
    return parser.parse_args()


class Stub(asyncio.Protocol):
    first = None

    def __init__(self, given, draw):
        self.given, self.draw = given, draw
        self.received = b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.received += data
        if not self.received[:1].isalpha():  # TLS, say
            return self.transport.close()
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found:
            return
        lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        if len(body) < int(headers.get("content-length", 0)):
            return
        self.received = b""
        method, path, _ = lines[0].split(" ")
        self.answer(method, path, headers)

    def answer(self, method, path, headers):
        given = self.given
        if given.host and headers["host"] != given.host:
            return self.write(404, b"{}")
        if given.token and headers.get("authorization") != f"bearer {given.token}":
            return self.write(401, b"{}")
        if method == "GET":
            return self.write(
                *{"/v2/models/m": (200, METADATA), "/v2/models/m/ready": (200, b"")}.get(path, (404, b""))
            )
        loop = asyncio.get_running_loop()
        Stub.first = Stub.first or loop.time()
        begin, length = given.stall
        now = loop.time() - Stub.first
        delay = given.delay_ms / 1000
        if begin <= now < begin + length:
            delay += begin + length - now
        revision = b"new" if self.draw.random() < given.canary else b"old"
        status = 503 if self.draw.random() < given.fail else 200
        if not delay:
            return self.write(status, ANSWER, revision)
        loop.call_later(delay, self.write, status, ANSWER, revision)

    def write(self, status, body, revision=b"old"):
        head = b"HTTP/1.1 %d X\r\nkservekit-revision: %s\r\n" % (status, revision)
        form = self.given.form
        if form == "whole":
            return self.transport.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        if form == "chunked":
            chunks = b"5\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (body[:5], len(body) - 5, body[5:])
            return self.transport.write(head + b"transfer-encoding: chunked\r\n\r\n" + chunks)
        if form == "until-close":
            self.transport.write(head + b"connection: close\r\n\r\n" + body)
        if form == "half":
            self.transport.write(head + b"content-length: %d\r\n\r\n" % len(body) + body[:9])
        if form == "no-http":
            self.transport.write(b"220 mail.example.com ESMTP\r\n")
        self.transport.close()


async def main():
    given, draw = options(), random.Random(7)
    context = None
    if given.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(given.certificate)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Stub(given, draw), "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.run(main())
    except ImportError:
        asyncio.run(main())
