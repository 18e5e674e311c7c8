"""Requests over HTTP on kept connections, cheap enough to send many: a request's bytes are put together once.

On geventhttpclient's parser, which is what locust's FastHttpUser has; its own client writes the head anew for every
request, and asks the kernel about a kept connection before each.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections import deque
from typing import TypeVar

import gevent
from gevent import socket as gevent_socket
from gevent import ssl as gevent_ssl
from geventhttpclient.response import HTTPParseError, HTTPSocketResponse

from kservekit.codec import rest_v2
from kservekit.errors import InvalidInput
from kservekit.loadtest.payload import Message, Payload
from kservekit.loadtest.recorder import TIMED_OUT, Outcome
from kservekit.loadtest.request_id import REQUEST_ID, TRACEPARENT, RequestId
from kservekit.loadtest.target import ATTEMPTS, REVISION, CannotTest, Target, attempts
from kservekit.tensors import ModelSpec

BLOCK = 1 << 16
IDLE_S = 2.0
"""A connection that rested longer may have been closed by the server: look before it is used."""


class _Kept(HTTPSocketResponse):
    body = b""


class _Counted(_Kept):
    """Keeps no body: with a large one that takes two thirds of the time."""

    received = 0

    def _on_body(self, buf: bytearray) -> None:
        self.received += len(buf)


_Response = TypeVar("_Response", bound=_Kept)


class HttpWire:
    """One for all requests of a process; as many connections as there are requests in flight."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._address = target.address
        self._tls = _context(target) if target.tls else None
        self._server_name = (target.host or target.address[0]).partition(":")[0]
        self._free: deque[tuple[socket.socket, float]] = deque()

    def prepare(self, payload: Payload) -> Message:
        target = self.target
        path = f"{target.v1_path}:predict" if target.wire == "v1" else f"{target.model_path}/infer"
        first, line, rest = self._request("POST", path, payload.headers, payload.body).partition(b"\r\n")
        return Message(first + line, rest)

    def send(self, message: Message, named: RequestId) -> Outcome:
        """What became of it; it raises for nothing that a server or a network can do."""
        own = f"{REQUEST_ID}: {named.request_id}\r\n" if named.request_id else ""
        if named.traceparent:
            own += f"{TRACEPARENT}: {named.traceparent}\r\n"
        head = message.head + own.encode("ascii")
        try:
            with gevent.Timeout(self.target.timeout_s):
                response = self._exchange(head, message.body, _Counted)
        except gevent.Timeout:
            return Outcome(TIMED_OUT)
        except (OSError, HTTPParseError) as error:
            return Outcome(network_error(error))
        status, revision = response.status_code, str(response.get(REVISION) or "")
        failed = "" if 200 <= status < 300 else f"HTTP {status}"
        timing = "" if failed else str(response.get("server-timing") or "")
        request_id = str(response.get(REQUEST_ID) or "")
        return Outcome(failed, revision, response.received, timing, request_id, attempts(response.get(ATTEMPTS)))

    def get(self, path: str) -> tuple[int, bytes]:
        """CannotTest where nothing answers."""
        try:
            with gevent.Timeout(self.target.probe_timeout_s):
                response = self._exchange(self._request("GET", path, {}, b""), b"", _Kept)
        except gevent.Timeout:
            raise CannotTest(f"{self.target.url} does not answer within {self.target.probe_timeout_s:g} s") from None
        except (OSError, HTTPParseError) as error:
            raise CannotTest(f"{self.target.url} does not answer: {network_error(error)}{_advice(error)}") from None
        return response.status_code, response.body

    def probe(self) -> ModelSpec:
        """What the model takes; CannotTest where it is not there or not ready."""
        target = self.target
        path = target.v1_path if target.wire == "v1" else f"{target.model_path}/ready"
        status, _ = self.get(path)
        if status == 404:
            raise CannotTest(f"{target.url} has no model {target.model!r} by {target.wire}: look at --model and --wire")
        if status != 200:
            raise CannotTest(f"model {target.model!r} at {target.url} is not ready: HTTP {status} from {path}")
        status, body = self.get(target.model_path)
        try:
            return rest_v2.decode_metadata(body) if status == 200 else ModelSpec()
        except InvalidInput:
            return ModelSpec()

    def close(self) -> None:
        while self._free:
            self._free.pop()[0].close()

    def _exchange(self, head: bytes, body: bytes, kind: type[_Response]) -> _Response:
        connection = self._connection()
        kept = False
        try:
            if len(body) <= BLOCK or self._tls is not None:
                connection.sendall(head + body)
            else:
                send_both(connection, head, body)
            response = kind(connection, block_size=BLOCK, method="GET")
            try:
                response.body = response.read()
            except HTTPParseError as error:  # it had begun as an answer
                raise ConnectionResetError("half an answer") from error
            kept = not response.should_close()
        finally:
            if kept:
                self._free.append((connection, time.monotonic()))
            else:
                connection.close()
        return response

    def _connection(self) -> socket.socket:
        while self._free:
            connection, since = self._free.pop()
            if time.monotonic() - since < IDLE_S or _is_quiet(connection):
                return connection
            connection.close()
        made: socket.socket = gevent_socket.create_connection(self._address)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            try:
                made = self._tls.wrap_socket(made, server_hostname=self._server_name)
            except BaseException:
                made.close()
                raise
        return made

    def _request(self, method: str, path: str, headers: object, body: bytes) -> bytes:
        sent = {"host": self.target.authority, "accept": "*/*", "user-agent": "kservekit-loadtest"}
        sent |= {**headers, **self.target.headers}  # type: ignore[dict-item]
        if body:
            sent["content-length"] = str(len(body))
        head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("ascii") + body


def send_both(connection: socket.socket, head: bytes, body: bytes) -> None:
    """A copy of a large body would cost more than all the rest, and a call for each part twice the wake-ups."""
    sent = connection.sendmsg([head, body])
    if sent < len(head):
        connection.sendall(head[sent:])
    connection.sendall(memoryview(body)[max(0, sent - len(head)) :])


def network_error(error: Exception) -> str:
    """A short name of what went wrong, without addresses, so that the same thing counts as the same."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: {error.verify_message or 'certificate not trusted'}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or 'failed').lower().replace('_', ' ')}"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, socket.gaierror):
        return "host name not known"
    if isinstance(error, ConnectionError):
        return "connection broken"
    if isinstance(error, HTTPParseError):
        return "connection broken" if "closed" in str(error) else "no HTTP answer"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return type(error).__name__


def _advice(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return " (--ca-file names the certificates to trust; --host-header the name that is asked for)"
    if isinstance(error, ssl.SSLError):
        return " (is https:// right for this port?)"
    if isinstance(error, HTTPParseError):
        return " (is http:// right for this port, or does it speak TLS or gRPC?)"
    return ""


def _context(target: Target) -> ssl.SSLContext:
    context: ssl.SSLContext = gevent_ssl.create_default_context(cafile=target.ca_file or None)
    if target.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _is_quiet(connection: socket.socket) -> bool:
    """Whether nothing came on it since its last answer: data that nobody asked for, or its end."""
    try:
        connection.setblocking(False)
        connection.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except (OSError, TimeoutError):
        return False
    finally:
        connection.settimeout(None)
    return False
