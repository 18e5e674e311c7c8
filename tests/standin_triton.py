"""A Triton on a GPU, as far as CUDA shared memory goes, for tests where there is no GPU: what is given comes back.

Its messages are the real ones, by a real gRPC server, and its errors say what Triton 2.51 says.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from standin_cuda import Gpu

from kservekit.oip.triton_messages import messages, stubs


class StandInTriton(stubs.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, gpu: Gpu, *, extensions: tuple[str, ...] = ("cuda_shared_memory",), opens: bool = True) -> None:
        self.gpu, self.extensions, self.opens = gpu, extensions, opens
        self.registered: dict[str, Any] = {}
        self.asked: list[Any] = []
        self.answers = asyncio.Event()
        self.answers.set()

    async def ServerMetadata(self, request, context):
        return messages.ServerMetadataResponse(name="triton", extensions=self.extensions)

    async def ModelMetadata(self, request, context):
        return messages.ModelMetadataResponse(name=request.name, versions=["1"])

    async def CudaSharedMemoryRegister(self, request, context):
        if request.name in self.registered:
            text = f"shared memory region '{request.name}' already in manager"
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, text)
        block = self.gpu.opened(request.raw_handle) if len(request.raw_handle) == 64 and self.opens else None
        if block is None or request.byte_size != ctypes.sizeof(block):
            text = f"failed to register CUDA shared memory region '{request.name}': failed to open CUDA IPC handle"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{text}: invalid argument")
        assert self.gpu.home[ctypes.addressof(block)] == request.device_id
        self.registered[request.name] = block
        return messages.CudaSharedMemoryRegisterResponse()

    async def CudaSharedMemoryUnregister(self, request, context):
        block = self.registered.pop(request.name)
        assert ctypes.addressof(block) in self.gpu.blocks, "freed while it was open here"
        return messages.CudaSharedMemoryUnregisterResponse()

    async def ModelInfer(self, request, context):
        self.asked.append(request)
        await self.answers.wait()
        reply = messages.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
        raw = iter(request.raw_input_contents)
        for item in request.inputs:
            reply.outputs.add(name=f"out_{item.name}", datatype=item.datatype, shape=item.shape)
            reply.raw_output_contents.append(await self._content(item, raw, context))
        return reply

    async def _content(self, item, raw, context):
        if "shared_memory_region" not in item.parameters:
            return next(raw)
        name = item.parameters["shared_memory_region"].string_param
        if name not in self.registered:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Unable to find shared memory region: '{name}'")
        at = item.parameters["shared_memory_offset"].int64_param
        return bytes(self.registered[name][at : at + item.parameters["shared_memory_byte_size"].int64_param])


@asynccontextmanager
async def serving(triton: StandInTriton, port: int = 0) -> AsyncIterator[int]:
    """On the loop that it is entered on; its port."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
    server = grpc.aio.server(options=options)
    stubs.add_GRPCInferenceServiceServicer_to_server(triton, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)
