"""Open Inference Protocol over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncGenerator
from typing import Any

from kservekit import errors
from kservekit.codec import grpc as codec
from kservekit.codec import grpc_stream
from kservekit.codec.message import Answer, Request
from kservekit.oip.backend import (
    FORWARDED_HEADERS,
    Backend,
    backend_failed,
    ca_file,
    call_timeout,
    forwarded,
    on_host,
)
from kservekit.oip.grpc_channel import GrpcChannel, GrpcFailure
from kservekit.oip.triton_messages import messages, stubs
from kservekit.tensors import ModelSpec

log = logging.getLogger(__name__)

END_S = 1.0
"""How long a stream that has failed may take to end."""

_MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
_MODEL_STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"


class GrpcBackend(Backend):
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
        self._channel: GrpcChannel | None = None
        self._stub: Any = None

    def channel(self) -> GrpcChannel:
        if self._channel is None:  # its connections belong to the loop that they were made on
            context = ssl.create_default_context(cafile=ca_file()) if self.use_ssl else None
            self._channel = GrpcChannel(self.host, context)
            self._stub = stubs.GRPCInferenceServiceStub(self._channel)
        return self._channel

    def stub(self) -> Any:
        """tritonclient's GRPCInferenceServiceStub, for calls beyond the three of a Backend; they raise GrpcFailure."""
        self.channel()
        return self._stub

    async def infer(self, request: Request) -> Answer:
        request = await on_host(request) if request.gpu_tensors else request
        return await self.ask(codec.encode_request(request, messages), request)

    async def ask(self, message: bytes, request: Request) -> Answer:
        """ModelInfer with a message for `request`."""
        reply = await self.call(message, request)
        try:
            return codec.decode_answer(reply, messages)
        except errors.InvalidInput as error:
            raise backend_failed(request, f"malformed answer: {error}") from error

    async def call(self, message: bytes, request: Request) -> bytes:
        """ModelInfer for `request`, as bytes; the error that the backend's stands for."""
        metadata = forwarded(request.headers, self.forward_headers).items()
        timeout_s = call_timeout(request, self.timeout_s)
        try:
            return await self.channel().call(_MODEL_INFER, message, timeout_s=timeout_s, metadata=metadata)
        except GrpcFailure as error:
            raise self._translate(error, request) from error

    async def stream(self, request: Request) -> AsyncGenerator[Answer]:
        """ModelStreamInfer with one request."""
        metadata = (*forwarded(request.headers, self.forward_headers).items(), (grpc_stream.STATUS, "true"))
        request = await on_host(request) if request.gpu_tensors else request
        timeout_s = call_timeout(request, self.timeout_s)
        message = codec.encode_request(request, messages)
        call = self.channel().stream(_MODEL_STREAM_INFER, message, timeout_s=timeout_s, metadata=metadata)
        try:
            async for data in call:
                answer, error = grpc_stream.decode(data, messages)
                if error:
                    await _end_of(call)
                    raise _said_in_stream(error, request)
                if answer.parameters.pop(grpc_stream.IS_LAST, False) and not answer.tensors:
                    continue
                yield answer
        except GrpcFailure as error:
            raise self._translate(error, request) from error
        except errors.InvalidInput as error:
            raise backend_failed(request, f"malformed answer: {error}") from error
        finally:
            await call.aclose()

    async def ready(self, model: str, version: str = "") -> bool:
        try:
            reply = await self.stub().ModelReady(
                messages.ModelReadyRequest(name=model, version=version), timeout=min(self.timeout_s, 5.0)
            )
        except GrpcFailure:
            return False
        return bool(reply.ready)

    async def spec(self, model: str, version: str = "") -> ModelSpec:
        try:
            reply = await self.stub().ModelMetadata(
                messages.ModelMetadataRequest(name=model, version=version), timeout=self.timeout_s
            )
        except GrpcFailure as error:
            raise self._translate(error, Request({}, model=model)) from error
        return codec.decode_metadata(reply)

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = self._stub = None

    def _translate(self, error: GrpcFailure, request: Request) -> errors.ServingError:
        found = self._meant(error, request)
        found.elsewhere = error.elsewhere
        return found

    def _meant(self, error: GrpcFailure, request: Request) -> errors.ServingError:
        name = error.trailing.get(errors.ERROR_HEADER)
        details = error.details
        found = errors.from_grpc(error.code, details, name=name, retry_after=error.trailing.get("retry-after"))
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
            return backend_failed(request, f"{error.code}: {details}")
        return found


async def _end_of(call: Any) -> None:
    """Waits a little for a stream to end by itself: a cancellation that meets the end of a request ends some Tritons
    with a segmentation fault (triton-inference-server/server#8034; 2.51 has it)."""
    with contextlib.suppress(TimeoutError, GrpcFailure):
        async with asyncio.timeout(END_S):
            async for _ in call:
                pass


def _said_in_stream(text: str, request: Request) -> errors.ServingError:
    """Triton's streams have a text and no status. Requests are checked before, so it is the model's fault, or gone."""
    if "unknown model" in text:
        gone = errors.ModelNotFound if "is not found" in text else errors.Unavailable
        return gone(f"the backend has no model {request.model!r} now")
    return backend_failed(request, text)
