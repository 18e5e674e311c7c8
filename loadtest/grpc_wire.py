"""Requests by gRPC that leave locust's greenlets running: gRPC's own loop is told to wait as gevent does.

A pool of threads sends as many. It keeps other greenlets waiting for longer with small requests (up to 238 ms against
14), and for less long with tensors of 588 KiB (28 against 65), where one call copies for that long.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
from grpc.experimental import gevent as grpc_gevent

from kservekit import errors
from kservekit.codec import grpc as codec
from kservekit.loadtest.payload import Message, Payload
from kservekit.loadtest.recorder import TIMED_OUT, Outcome
from kservekit.loadtest.request_id import REQUEST_ID, TRACEPARENT, RequestId
from kservekit.loadtest.target import ATTEMPTS, REVISION, CannotTest, Target, attempts
from kservekit.oip.triton_messages import messages, stubs
from kservekit.tensors import ModelSpec

CHANNELS = 4
"""A server grants a connection some 100 streams at once, and a proxy balances connections."""


class GrpcWire:
    """One for all requests of a process."""

    def __init__(self, target: Target) -> None:
        grpc_gevent.init_gevent()
        self.target = target
        self._metadata = tuple((name.lower(), value) for name, value in target.headers.items())
        self._channels = [self._channel() for _ in range(CHANNELS)]
        self._infer = [channel.unary_unary("/inference.GRPCInferenceService/ModelInfer") for channel in self._channels]
        self._next = 0

    def prepare(self, payload: Payload) -> Message:
        return Message(b"", payload.body)

    def send(self, message: Message, named: RequestId) -> Outcome:
        """What became of it; it raises for nothing that a server or a network can do."""
        own = ((REQUEST_ID, named.request_id), (TRACEPARENT, named.traceparent))
        metadata = self._metadata + tuple(one for one in own if one[1])
        self._next = (self._next + 1) % len(self._infer)
        try:
            reply, call = self._infer[self._next].with_call(
                message.body, timeout=self.target.timeout_s, metadata=metadata
            )
        except grpc.RpcError as error:
            code = error.code()
            if (
                code is grpc.StatusCode.DEADLINE_EXCEEDED
                and _said(error.trailing_metadata(), errors.ERROR_HEADER) == ""
            ):
                return Outcome(TIMED_OUT)
            return _outcome(f"gRPC {code.name}", 0, error)
        return _outcome("", len(reply), call)

    def probe(self) -> ModelSpec:
        """What the model takes; CannotTest where it is not there or not ready."""
        target = self.target
        try:
            if not self._ask("ModelReady").ready:
                raise CannotTest(f"model {target.model!r} at {target.url} is not ready")
            reply = self._ask("ModelMetadata")
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            if code is grpc.StatusCode.NOT_FOUND or "unknown model" in details:
                raise CannotTest(f"{target.url} has no model {target.model!r}: look at --model") from None
            raise CannotTest(f"{target.url} does not answer: {_reason(code.name, details)}") from None
        try:
            return codec.decode_metadata(reply)
        except ValueError:
            return ModelSpec()

    def close(self) -> None:
        for channel in self._channels:
            channel.close()

    def _ask(self, method: str) -> Any:
        asked = getattr(messages, f"{method}Request")(name=self.target.model, version=self.target.version)
        call = getattr(stubs.GRPCInferenceServiceStub(self._channels[0]), method)
        return call(asked, timeout=self.target.probe_timeout_s, metadata=self._metadata)

    def _channel(self) -> Any:
        host, port = self.target.address
        options: list[tuple[str, Any]] = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),  # else equal channels share a connection
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.initial_reconnect_backoff_ms", 100),
        ]
        if self.target.host:
            options.append(("grpc.default_authority", self.target.host))
        where = f"{f'[{host}]' if ':' in host else host}:{port}"
        if not self.target.tls:
            return grpc.insecure_channel(where, options)
        roots = Path(self.target.ca_file).read_bytes() if self.target.ca_file else None
        return grpc.secure_channel(where, grpc.ssl_channel_credentials(roots), options)


def _outcome(failed: str, received: int, call: Any) -> Outcome:
    """A server speaks in trailing metadata, a proxy before it in initial."""
    trailing, initial = call.trailing_metadata(), call.initial_metadata()
    timing = "" if failed else _said(trailing, "server-timing")
    request_id, tried = _said(initial, REQUEST_ID), attempts(_said(initial, ATTEMPTS))
    return Outcome(failed, _said(trailing, REVISION), received, timing, request_id, tried)


def _said(metadata: Any, name: str) -> str:
    for key, value in metadata or ():
        if key == name:
            return value if isinstance(value, str) else ""
    return ""


def _reason(code: str, details: str) -> str:
    lowered = details.lower()
    if "certificate_verify_failed" in lowered or "hostname verification" in lowered:
        return "TLS: certificate not trusted (--ca-file names those to trust; --host-header the name that is asked for)"
    if "ssl" in lowered or "tls" in lowered:
        return "TLS: no handshake (is grpcs:// right for this port?)"
    if "refused" in lowered:
        return "connection refused"
    if "dns" in lowered or "domain name" in lowered:
        return "host name not known"
    return f"gRPC {code} (does this port speak gRPC, and is grpc:// right for it?)"
