"""gRPC: the Open Inference Protocol's service, on KServe's generated classes."""

from __future__ import annotations

import logging
from typing import Any, NoReturn

import grpc
import grpc.aio
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

from kservekit.codec import grpc as codec
from kservekit.errors import ERROR_HEADER, CannotStart, Forbidden, ModelError, ServingError
from kservekit.serving.dataplane import DataPlane
from kservekit.telemetry import timing

log = logging.getLogger(__name__)


class InferenceService(stubs.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, dataplane: DataPlane, revision: str, *, server_timing: bool = False) -> None:
        self.dataplane = dataplane
        self.revision = revision
        self.server_timing = server_timing

    async def ModelInfer(self, message: Any, context: grpc.aio.ServicerContext) -> Any:
        trailing = [("kservekit-revision", self.revision)]
        with timing.measured() as stages:
            try:
                with timing.stage("total"):
                    with timing.stage("read"):
                        self.dataplane.model(message.model_name)
                        request = codec.decode_request(message)
                    request.headers = {
                        key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)
                    }
                    answer = await self.dataplane.infer(request)
                    with timing.stage("write"):
                        reply = codec.encode_answer(answer, messages)
            except Exception as error:
                await self._abort(context, error)
        if self.server_timing:
            trailing.append(("server-timing", timing.as_header(stages)))
        context.set_trailing_metadata(tuple(trailing))
        return reply

    async def ServerLive(self, message: Any, context: grpc.aio.ServicerContext) -> Any:
        return messages.ServerLiveResponse(live=True)

    async def ServerReady(self, message: Any, context: grpc.aio.ServicerContext) -> Any:
        return messages.ServerReadyResponse(ready=await self.dataplane.ready())

    async def ModelReady(self, message: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return messages.ModelReadyResponse(ready=await self.dataplane.model_ready(message.name))
        except ServingError as error:
            await self._abort(context, error)

    async def ServerMetadata(self, message: Any, context: grpc.aio.ServicerContext) -> Any:
        return messages.ServerMetadataResponse(**self.dataplane.server_metadata())

    async def ModelMetadata(self, message: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return messages.ModelMetadataResponse(**await self.dataplane.metadata(message.name))
        except ServingError as error:
            await self._abort(context, error)

    async def RepositoryModelLoad(self, message: Any, context: grpc.aio.ServicerContext) -> Any:
        await self._abort(context, Forbidden("this server does not load models on request"))

    async def RepositoryModelUnload(self, message: Any, context: grpc.aio.ServicerContext) -> Any:
        await self._abort(context, Forbidden("this server does not unload models on request"))

    async def _abort(self, context: grpc.aio.ServicerContext, error: Exception) -> NoReturn:
        if not isinstance(error, ServingError):
            log.error("a fault of the server itself", exc_info=error)
            error = ModelError("the server failed; its log has the reason")
        trailing = [("kservekit-revision", self.revision), (ERROR_HEADER, type(error).__name__)]
        if error.retry_after is not None:
            trailing.append(("retry-after", f"{error.retry_after:g}"))
        await context.abort(getattr(grpc.StatusCode, error.grpc), error.message, tuple(trailing))
        raise AssertionError("abort raises")


async def start(
    service: InferenceService, host: str, port: int, *, max_send_bytes: int, max_receive_bytes: int
) -> grpc.aio.Server:
    """A server that listens; CannotStart where the port is taken."""
    server = grpc.aio.server(
        options=[
            ("grpc.max_send_message_length", max_send_bytes),
            ("grpc.max_receive_message_length", max_receive_bytes),
            # Else a second server on the port would silently share its callers.
            ("grpc.so_reuseport", 0),
        ]
    )
    stubs.add_GRPCInferenceServiceServicer_to_server(service, server)
    try:
        server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        raise CannotStart(f"gRPC port {port} on {host} cannot be bound; choose another with --grpc_port") from None
    await server.start()
    return server
