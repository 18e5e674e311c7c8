"""Open Inference Protocol over gRPC, on one reused channel."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from kservekit import errors
from kservekit.codec import grpc as codec
from kservekit.codec import grpc_stream
from kservekit.codec.message import Answer, Request
from kservekit.oip.backend import FORWARDED_HEADERS, backend_failed, ca_file, call_timeout, forwarded
from kservekit.oip.triton_messages import messages, stubs
from kservekit.tensors import ModelSpec

log = logging.getLogger(__name__)

END_S = 1.0
"""How long a stream that has failed may take to end."""

_CHANNEL_OPTIONS = [
    # The servers at both ends limit what they take; the client adds no third limit.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A predictor is a neighbour; a proxy for the world outside does not know it.
    ("grpc.enable_http_proxy", 0),
    # Where the name has several addresses, as a headless Service has: all of them, less those that cannot be reached.
    ("grpc.lb_policy_name", "round_robin"),
    # A backend that is restarted is found again within a second, not after gRPC's two minutes.
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 100),
]


class GrpcBackend:
    """`timeout_s` is the budget of one call. Nothing connects before the first call, which makes the channel."""

    def __init__(
        self,
        host: str,
        *,
        use_ssl: bool = False,
        timeout_s: float = 60.0,
        forward_headers: tuple[str, ...] = FORWARDED_HEADERS,
    ) -> None:
        self.forward_headers = forward_headers
        self.host = host if ":" in host else f"{host}:{443 if use_ssl else 80}"
        self.use_ssl = use_ssl
        self.timeout_s = timeout_s
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None
        self._model_infer: Any = None
        self._model_stream_infer: Any = None

    def stub(self) -> Any:
        """tritonclient's GRPCInferenceServiceStub, for calls beyond the three of a Backend."""
        if self._stub is None:  # a grpc.aio channel belongs to the loop that it was made on
            if self.use_ssl:
                file = ca_file()
                roots = Path(file).read_bytes() if file else None
                credentials = grpc.ssl_channel_credentials(root_certificates=roots)
                self._channel = grpc.aio.secure_channel(self.host, credentials, _CHANNEL_OPTIONS)
            else:
                self._channel = grpc.aio.insecure_channel(self.host, _CHANNEL_OPTIONS)
            self._stub = stubs.GRPCInferenceServiceStub(self._channel)
            # Bytes in and bytes out: the codec's work, and not protobuf's.
            self._model_infer = self._channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            self._model_stream_infer = self._channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        return self._stub

    async def infer(self, request: Request) -> Answer:
        reply = await self.call(codec.encode_request(request, messages), request)
        try:
            return codec.decode_answer(reply, messages)
        except errors.InvalidInput as error:
            raise backend_failed(request, f"malformed answer: {error}") from error

    async def call(self, message: bytes, request: Request) -> bytes:
        """ModelInfer for `request`, as bytes; the error that the backend's stands for."""
        metadata = tuple(forwarded(request.headers, self.forward_headers).items())
        timeout_s = call_timeout(request, self.timeout_s)
        try:
            self.stub()
            reply: bytes = await self._model_infer(message, timeout=timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise self._translate(error, request) from error
        return reply

    async def stream(self, request: Request) -> AsyncGenerator[Answer]:
        """ModelStreamInfer with one request."""
        metadata = (*forwarded(request.headers, self.forward_headers).items(), (grpc_stream.STATUS, "true"))
        timeout_s = call_timeout(request, self.timeout_s)
        self.stub()
        message = codec.encode_request(request, messages)
        call = self._model_stream_infer(iter([message]), timeout=timeout_s, metadata=metadata)
        try:
            async for data in call:
                answer, error = grpc_stream.decode(data, messages)
                if error:
                    await _end_of(call)
                    raise _said_in_stream(error, request)
                if answer.parameters.pop(grpc_stream.IS_LAST, False) and not answer.tensors:
                    continue
                yield answer
        except grpc.aio.AioRpcError as error:
            raise self._translate(error, request) from error
        except errors.InvalidInput as error:
            raise backend_failed(request, f"malformed answer: {error}") from error
        finally:
            call.cancel()

    async def ready(self, model: str, version: str = "") -> bool:
        try:
            reply = await self.stub().ModelReady(
                messages.ModelReadyRequest(name=model, version=version), timeout=min(self.timeout_s, 5.0)
            )
        except grpc.aio.AioRpcError:
            return False
        return bool(reply.ready)

    async def spec(self, model: str, version: str = "") -> ModelSpec:
        try:
            reply = await self.stub().ModelMetadata(
                messages.ModelMetadataRequest(name=model, version=version), timeout=self.timeout_s
            )
        except grpc.aio.AioRpcError as error:
            raise self._translate(error, Request({}, model=model)) from error
        return codec.decode_metadata(reply)

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = self._stub = self._model_infer = self._model_stream_infer = None

    def _translate(self, error: grpc.aio.AioRpcError, request: Request) -> errors.ServingError:
        trailing = {key: value for key, value in (error.trailing_metadata() or ()) if isinstance(value, str)}
        name = trailing.get(errors.ERROR_HEADER)
        details = error.details() or ""
        found = errors.from_grpc(error.code().name, details, name=name, retry_after=trailing.get("retry-after"))
        if isinstance(found, errors.DeadlineExceeded) and name is None:
            return errors.DeadlineExceeded(f"model {request.model!r} gave no answer in time")
        if name is None and "Sent message larger than max" in details:
            return backend_failed(request, f"its answer is over its own limit: {details}")
        if name is None and "larger than max" in details:
            return errors.PayloadTooLarge(f"the request is over the limit that model {request.model!r} has for gRPC")
        if isinstance(found, errors.Unavailable) and name is None:
            log.warning("backend of model %r cannot be reached: %s", request.model, details)
            # gRPC's own text for this names the address that could not be reached.
            return errors.Unavailable(f"the backend of model {request.model!r} cannot be reached", retry_after=1)
        if isinstance(found, errors.ModelError):
            return backend_failed(request, f"{error.code().name}: {details}")
        return found


async def _end_of(call: Any) -> None:
    """Waits a little for a stream to end by itself: a cancellation that meets the end of a request ends some Tritons
    with a segmentation fault (triton-inference-server/server#8034; 2.51 has it)."""
    with contextlib.suppress(TimeoutError, grpc.aio.AioRpcError):
        async with asyncio.timeout(END_S):
            async for _ in call:
                pass


def _said_in_stream(text: str, request: Request) -> errors.ServingError:
    """Triton's streams have a text and no status. Requests are checked before, so it is the model's fault, or gone."""
    if "unknown model" in text:
        gone = errors.ModelNotFound if "is not found" in text else errors.Unavailable
        return gone(f"the backend has no model {request.model!r} now")
    return backend_failed(request, text)
