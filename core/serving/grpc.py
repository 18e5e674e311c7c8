"""gRPC: the Open Inference Protocol's service on KServe's generated classes, health checks and reflection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import Any

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages

from kservekit.codec import grpc as codec
from kservekit.codec import grpc_stream
from kservekit.codec.message import Answer, Request
from kservekit.errors import InvalidInput, ModelNotFound, ServingError
from kservekit.identity import Principal
from kservekit.serving import kserve_types
from kservekit.serving.dataplane import DataPlane
from kservekit.serving.grpc_http2 import Call, Streaming, Unary
from kservekit.serving.headers import as_dict, seconds
from kservekit.telemetry import timing

log = logging.getLogger(__name__)

SERVICE = messages.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
INFER = f"/{SERVICE}/ModelInfer"
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_REFLECTION = reflection.ReflectionServicer((SERVICE, _HEALTH, reflection.SERVICE_NAME))
WATCH_S = 0.5
"""How often a health watcher looks."""


class InferenceService:
    """Its methods raise; the server makes of that what gRPC has for it."""

    def __init__(self, dataplane: DataPlane, *, server_timing: bool = False) -> None:
        self.dataplane = dataplane
        self.server_timing = server_timing

    def admit(self, path: str, call: Call) -> AbstractContextManager[None]:
        """Who asks, before a message is read, and a place within the limits on callers where they are for it."""
        if path != INFER:
            return nullcontext()
        call.asker = self._asker(call)
        return self.dataplane.room(call.asker[2])

    async def infer(self, data: bytes, call: Call) -> bytes:
        """ModelInfer, bytes in and bytes out: the codec's work, and not protobuf's."""
        stages = timing.measure() if self.server_timing else None
        with timing.stage("total"):
            headers, principal, tenant = call.asker
            deadline = self._deadline(headers, call)
            with timing.stage("read"):
                request = self._read(data)
            request.deadline, request.headers, request.source = deadline, headers, (kserve_types.from_grpc, data)
            request.principal, request.tenant = principal, tenant
            answer = await self.dataplane.infer(request)
            with timing.stage("write"):
                reply = codec.encode_answer(answer, messages)
        if stages is not None:
            call.trailing["server-timing"] = timing.as_header(stages)
        return reply

    async def stream(self, requests: AsyncIterator[bytes], call: Call) -> AsyncGenerator[bytes]:
        """ModelStreamInfer, Triton's: for each request its answers, before the next one is looked at."""
        headers, principal, tenant = self._asker(call)
        with_status = any(headers.get(name) == "true" for name in grpc_stream.ASKS_FOR_STATUS)
        async for data in requests:
            request = Request({})
            try:
                request = self._read(data)
                request.headers, request.principal, request.tenant = headers, principal, tenant
                request.source = (kserve_types.from_grpc, data)
                request.deadline = self._deadline(headers, call)
                say_last = bool(request.parameters.pop(grpc_stream.WANTS_LAST, False))
                given = request.id
                with self.dataplane.room(tenant):
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

    async def ServerLive(self, message: Any, call: Call) -> Any:
        return messages.ServerLiveResponse(live=True)

    async def ServerReady(self, message: Any, call: Call) -> Any:
        return messages.ServerReadyResponse(ready=await self.dataplane.ready())

    async def ModelReady(self, message: Any, call: Call) -> Any:
        if message.version:
            await self.dataplane.metadata(message.name, message.version)
        return messages.ModelReadyResponse(ready=await self.dataplane.model_ready(message.name))

    async def ServerMetadata(self, message: Any, call: Call) -> Any:
        return messages.ServerMetadataResponse(**self.dataplane.server_metadata())

    async def ModelMetadata(self, message: Any, call: Call) -> Any:
        return messages.ModelMetadataResponse(**await self.dataplane.metadata(message.name, message.version))

    async def RepositoryModelLoad(self, message: Any, call: Call) -> Any:
        await self.dataplane.load(message.model_name, self.dataplane.principal(self._headers(call)))
        return messages.RepositoryModelLoadResponse(model_name=message.model_name, isLoaded=True)

    async def RepositoryModelUnload(self, message: Any, call: Call) -> Any:
        await self.dataplane.unload(message.model_name, self.dataplane.principal(self._headers(call)))
        return messages.RepositoryModelUnloadResponse(model_name=message.model_name, isUnloaded=True)

    def _read(self, data: bytes) -> Request:
        settings = self.dataplane.settings
        return codec.decode_request(
            data, messages, max_tensors=settings.max_tensors, max_typed_bytes=settings.max_json_bytes
        )

    def _asker(self, call: Call) -> tuple[dict[str, str], Principal | None, str]:
        headers = self._headers(call)
        principal = self.dataplane.principal(headers)
        return headers, principal, self.dataplane.tenant(headers, principal)

    def _deadline(self, headers: dict[str, str], call: Call) -> float:
        """By grpc-timeout or by the header that REST has for it, whichever is less."""
        return min(self.dataplane.deadline(call.seconds_left), self.dataplane.deadline(seconds(headers)))

    def _headers(self, call: Call) -> dict[str, str]:
        return as_dict(call.pairs, self.dataplane.once)


class HealthService:
    """grpc.health.v1: "" and the inference service stand for the server, other names for models."""

    def __init__(self, dataplane: DataPlane) -> None:
        self.dataplane = dataplane

    async def check(self, message: Any, call: Call) -> Any:
        status = await self._status(message.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            raise ModelNotFound(f"no service or model {message.service[:100]!r}")
        return health_pb2.HealthCheckResponse(status=status)

    async def watch(self, requests: AsyncIterator[bytes], call: Call) -> AsyncGenerator[bytes]:
        """Ends when the server does: a watcher must not hold up its end."""
        data = await anext(aiter(requests), None)
        if data is None:
            raise InvalidInput("no message: expected one")
        message = _read(health_pb2.HealthCheckRequest, data)
        told = None
        while not self.dataplane.closing:
            status = await self._status(message.service)
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status).SerializeToString()
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


def methods(service: InferenceService) -> tuple[dict[str, Unary], dict[str, Streaming]]:
    """What is served beside each other, by path: the protocol's service, grpc.health.v1, and reflection.

    Both of reflection's names stand for the same messages.
    """
    inference = messages.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    unary = {
        f"/{SERVICE}/{method.name}": _of_messages(
            getattr(service, method.name), getattr(messages, method.input_type.name)
        )
        for method in inference.methods
        if method.name not in ("ModelInfer", "ModelStreamInfer")
    }
    unary[INFER] = service.infer
    health = HealthService(service.dataplane)
    unary[f"/{_HEALTH}/Check"] = _of_messages(health.check, health_pb2.HealthCheckRequest)
    streaming: dict[str, Streaming] = {
        f"/{SERVICE}/ModelStreamInfer": service.stream,
        f"/{_HEALTH}/Watch": health.watch,
    }
    for version in ("v1alpha", "v1"):
        streaming[f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"] = _reflect
    return unary, streaming


def _of_messages(method: Callable[[Any, Call], Awaitable[Any]], kind: Any) -> Unary:
    """A method of protobuf's messages as one of bytes."""

    async def call(data: bytes, call: Call) -> bytes:
        reply: bytes = (await method(_read(kind, data), call)).SerializeToString()
        return reply

    return call


def _read(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise InvalidInput("malformed protobuf message") from None


async def _reflect(requests: AsyncIterator[bytes], call: Call) -> AsyncGenerator[bytes]:
    async for data in requests:
        request = _read(reflection_pb2.ServerReflectionRequest, data)
        for reply in _REFLECTION.ServerReflectionInfo(iter([request]), None):
            yield reply.SerializeToString()
