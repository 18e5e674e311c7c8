"""gRPC: the Open Inference Protocol's service on KServe's generated classes, health checks and reflection."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages

from kservekit.codec import grpc as codec
from kservekit.codec import grpc_stream
from kservekit.codec.message import Answer, Request
from kservekit.errors import ERROR_HEADER, CannotStart, ModelError, ModelNotFound, ServingError
from kservekit.serving.dataplane import DataPlane
from kservekit.serving.headers import as_dict
from kservekit.telemetry import timing

log = logging.getLogger(__name__)

SERVICE = messages.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
WATCH_S = 0.5
"""How often a health watcher looks."""


class InferenceService:
    """Its methods raise; `_answered` makes of that what gRPC has for it."""

    def __init__(self, dataplane: DataPlane, *, server_timing: bool = False) -> None:
        self.dataplane = dataplane
        self.server_timing = server_timing

    async def infer(self, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """ModelInfer, bytes in and bytes out: the codec's work, and not protobuf's."""
        stages = timing.measure() if self.server_timing else None
        with timing.stage("total"):
            deadline = self.dataplane.deadline(context.time_remaining())
            headers = self._headers(context)
            principal = self.dataplane.principal(headers)
            with timing.stage("read"):
                request = codec.decode_request(data, messages, max_tensors=self.dataplane.settings.max_tensors)
            request.deadline, request.headers, request.principal = deadline, headers, principal
            answer = await self.dataplane.infer(request)
            with timing.stage("write"):
                reply = codec.encode_answer(answer, messages)
        if stages is not None:
            context.set_trailing_metadata((*context.trailing_metadata(), ("server-timing", timing.as_header(stages))))
        return reply

    async def stream(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncGenerator[bytes]:
        """ModelStreamInfer, Triton's: for each request its answers, before the next one is looked at."""
        headers = self._headers(context)
        principal = self.dataplane.principal(headers)
        with_status = any(headers.get(name) == "true" for name in grpc_stream.ASKS_FOR_STATUS)
        async for data in requests:
            request = Request({})
            try:
                request = codec.decode_request(data, messages, max_tensors=self.dataplane.settings.max_tensors)
                request.headers, request.principal = headers, principal
                request.deadline = self.dataplane.deadline(context.time_remaining())
                say_last = bool(request.parameters.pop(grpc_stream.WANTS_LAST, False))
                given = request.id
                async with aclosing(self.dataplane.stream(request)) as answers:
                    async for answer in answers:
                        if say_last:
                            answer.parameters[grpc_stream.IS_LAST] = False
                        yield grpc_stream.encode(answer, messages)
                if say_last:
                    last = Answer({}, request.model, request.version, given, {grpc_stream.IS_LAST: True})
                    yield grpc_stream.encode(last, messages)
            except ServingError as error:
                if with_status:
                    raise
                yield grpc_stream.encode_error(error.message, Answer({}, request.model, id=request.id), messages)

    async def ServerLive(self, message: Any, context: grpc.aio.ServicerContext) -> Any:
        return messages.ServerLiveResponse(live=True)

    async def ServerReady(self, message: Any, context: grpc.aio.ServicerContext) -> Any:
        return messages.ServerReadyResponse(ready=await self.dataplane.ready())

    async def ModelReady(self, message: Any, context: grpc.aio.ServicerContext) -> Any:
        if message.version:
            await self.dataplane.metadata(message.name, message.version)
        return messages.ModelReadyResponse(ready=await self.dataplane.model_ready(message.name))

    async def ServerMetadata(self, message: Any, context: grpc.aio.ServicerContext) -> Any:
        return messages.ServerMetadataResponse(**self.dataplane.server_metadata())

    async def ModelMetadata(self, message: Any, context: grpc.aio.ServicerContext) -> Any:
        return messages.ModelMetadataResponse(**await self.dataplane.metadata(message.name, message.version))

    async def RepositoryModelLoad(self, message: Any, context: grpc.aio.ServicerContext) -> Any:
        await self.dataplane.load(message.model_name, self.dataplane.principal(self._headers(context)))
        return messages.RepositoryModelLoadResponse(model_name=message.model_name, isLoaded=True)

    async def RepositoryModelUnload(self, message: Any, context: grpc.aio.ServicerContext) -> Any:
        await self.dataplane.unload(message.model_name, self.dataplane.principal(self._headers(context)))
        return messages.RepositoryModelUnloadResponse(model_name=message.model_name, isUnloaded=True)

    def _headers(self, context: grpc.aio.ServicerContext) -> dict[str, str]:
        metadata = context.invocation_metadata() or ()
        return as_dict([pair for pair in metadata if isinstance(pair[1], str)], self.dataplane.once)


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1: "" and the inference service stand for the server, other names for models."""

    def __init__(self, dataplane: DataPlane) -> None:
        self.dataplane = dataplane

    async def Check(self, message: Any, context: grpc.aio.ServicerContext) -> Any:
        status = await self._status(message.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service or model {message.service[:100]!r}")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, message: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        """Ends when the server does: a watcher must not hold up its end."""
        told = None
        while not self.dataplane.closing:
            status = await self._status(message.service)
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status)
            await asyncio.sleep(WATCH_S)

    async def _status(self, service: str) -> Any:
        try:
            if service in ("", SERVICE):
                ready = await self.dataplane.ready()
            else:
                ready = await self.dataplane.model_ready(service)
        except ModelNotFound:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        except Exception:
            log.exception("a health check failed: service=%r", service[:100])
            ready = False
        return health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING


def _answered(method: Callable[..., Awaitable[Any]], revision: str) -> Callable[..., Awaitable[Any]]:
    """The method with the revision in each answer, and with each error as the status that it stands for."""
    mark = ("kservekit-revision", revision)

    async def call(message: Any, context: grpc.aio.ServicerContext) -> Any:
        context.set_trailing_metadata((mark,))
        try:
            return await method(message, context)
        except Exception as error:
            await _abort(error, mark, context)

    return call


def _streamed(method: Callable[..., AsyncGenerator[Any]], revision: str) -> Callable[..., AsyncGenerator[Any]]:
    """The same for a method that yields."""
    mark = ("kservekit-revision", revision)

    async def call(requests: Any, context: grpc.aio.ServicerContext) -> AsyncGenerator[Any]:
        context.set_trailing_metadata((mark,))
        try:
            async with aclosing(method(requests, context)) as answers:
                async for answer in answers:
                    yield answer
        except Exception as error:
            await _abort(error, mark, context)

    return call


async def _abort(error: Exception, mark: tuple[str, str], context: grpc.aio.ServicerContext) -> None:
    if not isinstance(error, ServingError):
        log.exception("a fault of the server itself")
        error = ModelError("the server failed; its log has the reason")
    trailing = [mark, (ERROR_HEADER, type(error).__name__)]
    if error.retry_after is not None:
        trailing.append(("retry-after", str(math.ceil(error.retry_after))))
    await context.abort(getattr(grpc.StatusCode, error.grpc), error.message, tuple(trailing))


def _handlers(service: InferenceService, revision: str) -> dict[str, grpc.RpcMethodHandler]:
    """All methods of the protocol's service, each with its message classes; those that infer without."""
    handlers = {
        method.name: grpc.unary_unary_rpc_method_handler(
            _answered(getattr(service, method.name), revision),
            request_deserializer=getattr(messages, method.input_type.name).FromString,
            response_serializer=getattr(messages, method.output_type.name).SerializeToString,
        )
        for method in messages.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
        if method.name != "ModelInfer"
    }
    return handlers | {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(_answered(service.infer, revision)),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(_streamed(service.stream, revision)),
    }


async def start(
    service: InferenceService,
    revision: str,
    host: str,
    port: int,
    *,
    max_send_bytes: int,
    max_receive_bytes: int,
    share_port: bool,
) -> grpc.aio.Server:
    """A server that listens; CannotStart where the port is taken. `share_port`: with other workers of this server."""
    server = grpc.aio.server(
        options=[
            ("grpc.max_send_message_length", max_send_bytes),
            ("grpc.max_receive_message_length", max_receive_bytes),
            # Else a second server on the port would silently share its callers.
            ("grpc.so_reuseport", int(share_port)),
        ]
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, _handlers(service, revision)),))
    health_pb2_grpc.add_HealthServicer_to_server(HealthService(service.dataplane), server)
    names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    try:
        server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError:
        raise CannotStart(f"gRPC port {port} on {host} cannot be bound; choose another with --grpc_port") from None
    await server.start()
    return server
