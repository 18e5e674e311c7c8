"""Tensors that lie on a GPU to a server on the same GPU: copied there, into memory that both have open.

The Open Inference Protocol's "CUDA-Shared-Memory Extension", as Triton has it. Experimental: no GPU has run it yet.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kservekit import gpu_tensors
from kservekit.codec import grpc as codec
from kservekit.codec.message import Answer, Request
from kservekit.codec.raw import raw_bytes
from kservekit.cuda import Cuda, CudaError
from kservekit.errors import ServingError, Unavailable
from kservekit.gpu_tensors import GpuArray
from kservekit.oip.grpc import GrpcBackend
from kservekit.oip.grpc_channel import GrpcFailure
from kservekit.oip.regions import PREFIX, QUARANTINE_S
from kservekit.oip.triton_memory import CALL_TIMEOUT_S, answered, refer
from kservekit.oip.triton_messages import messages

log = logging.getLogger(__name__)

_WHOLE = 2 * 2**20
"""Bytes that CUDA shares at least (cudaIpcGetMemHandle): what else lay there would be shared with it."""

_ALIGNED = 256


@dataclass(eq=False)
class Arena:
    """One GPU's part of the pool: made and registered once, and lent in places."""

    name: str
    device: int
    size: int
    address: int
    handle: bytes
    """A cudaIpcMemHandle_t."""
    registered: bool = False
    """With the server, as far as we know."""
    refused: bool = False
    """By the server, which cannot open it; then it is freed."""
    registering: asyncio.Lock = field(default_factory=asyncio.Lock)
    _taken: dict[int, int] = field(default_factory=dict)
    """Where each place begins, and where it ends."""
    _quarantined: list[tuple[float, int]] = field(default_factory=list)
    clock: Callable[[], float] = time.monotonic

    def take(self, size: int) -> int | None:
        """Where a place begins that nobody else has until it comes back; None where there is none."""
        while self._quarantined and self._quarantined[0][0] <= self.clock():
            self.give_back(self._quarantined.pop(0)[1])
        at = 0
        for start in sorted(self._taken):
            if start - at >= size:
                break
            at = self._taken[start]
        if self.size - at < size:
            return None
        self._taken[at] = at + -(-size // _ALIGNED) * _ALIGNED
        return at

    def give_back(self, at: int) -> None:
        del self._taken[at]

    def quarantine(self, at: int) -> None:
        """The engine may still read it, or the GPU write it."""
        self._quarantined.append((self.clock() + QUARANTINE_S, at))


@dataclass
class _Place:
    arena: Arena
    at: int
    array: GpuArray


class CudaMemory:
    """At most `max_bytes` of each GPU that tensors come from, taken whole with the first of them.

    Answers come by gRPC, because whoever asked reads them on the host.
    """

    def __init__(self, wire: GrpcBackend, *, max_bytes: int) -> None:
        self.wire = wire
        self.max_bytes = max_bytes // _WHOLE * _WHOLE
        self._owner = f"{PREFIX}cuda-{os.getpid()}-{secrets.token_hex(4)}"
        self._arenas: dict[int, asyncio.Task[Arena | None]] = {}
        self._cuda: Cuda | None = None
        self._usable: bool | None = None
        self._said: set[str] = set()

    async def infer(self, request: Request) -> Answer | None:
        """None, after a word in the log, where the tensors have to go by way of the host."""
        if self._cuda is None:  # importing it takes a while
            self._cuda = await asyncio.to_thread(gpu_tensors.cuda)
        cuda = self._cuda
        arrays = {name: gpu_tensors.look(name, array, cuda) for name, array in request.gpu_tensors.items()}
        if not all(array.nbytes for array in arrays.values()) or not await self._has_extension():
            return None
        places = await self._places(arrays, cuda)
        if places is None:
            return None
        try:
            await asyncio.to_thread(_fill, places, request.gpu_tensors, cuda)
            answer = await self.wire.ask(_message(request, places), request)
        except CudaError as error:
            _quarantine(places)
            self._say(f"a copy on the GPU failed: {error}")
            return None
        except ServingError as error:
            if not answered(error.__cause__):
                _quarantine(places)
                if isinstance(error, Unavailable):
                    self._usable = None  # it may be another one next time
                raise
            _give_back(places)
            if "nable to find shared memory region" not in str(error.__cause__):
                raise
            self._usable = None  # it was restarted
            for place in places.values():
                place.arena.registered = False
            return None
        except BaseException:
            _quarantine(places)
            raise
        _give_back(places)
        return answer

    async def close(self) -> None:
        """Frees everything; the server lets go first, as CUDA asks for."""
        for task in self._arenas.values():
            arena = await task
            if self._cuda is not None and arena is not None and not arena.refused:
                await self._unregister(arena)
                await asyncio.to_thread(_free, arena, self._cuda)
        self._arenas = {}

    async def _places(self, arrays: Mapping[str, GpuArray], cuda: Cuda) -> dict[str, _Place] | None:
        places: dict[str, _Place] = {}
        try:
            for name, array in arrays.items():
                arena = await self._open(array.device, cuda)
                at = arena.take(array.nbytes) if arena is not None else None
                if arena is None or at is None:
                    if arena is not None:
                        self._say(f"our {arena.size} bytes of GPU {arena.device} are in use, or too few for a request")
                    _give_back(places)
                    return None
                places[name] = _Place(arena, at, array)
        except BaseException:
            _give_back(places)
            raise
        return places

    async def _has_extension(self) -> bool:
        """Asked before the first use, and again when the server may be another one."""
        if self._usable is None:
            asked = messages.ServerMetadataRequest()
            try:
                server = await self.wire.stub().ServerMetadata(asked, timeout=CALL_TIMEOUT_S)
            except GrpcFailure:
                return False
            self._usable = "cuda_shared_memory" in server.extensions
            if not self._usable:
                self._say("the server has not the extension cuda_shared_memory")
        return self._usable

    async def _open(self, device: int, cuda: Cuda) -> Arena | None:
        """That GPU's memory, known to the server; None where it cannot be had."""
        if device not in self._arenas:
            made = asyncio.to_thread(_made, f"{self._owner}-{device}", device, self.max_bytes, cuda)
            self._arenas[device] = asyncio.create_task(self._or_say(made))
        arena = await asyncio.shield(self._arenas[device])  # whoever gives up does not take it from the others
        if arena is None:
            return None
        async with arena.registering:
            if not arena.registered and not arena.refused:
                await self._register(arena, cuda)
        return arena if arena.registered else None

    async def _or_say(self, made: Any) -> Arena | None:
        try:
            arena: Arena = await made
        except CudaError as error:
            self._say(f"there is no memory to share on the GPU: {error}")
            return None
        log.warning(
            "CUDA shared memory is experimental: its tests have had no GPU. The server is given %d bytes of GPU %d",
            arena.size,
            arena.device,
        )
        return arena

    async def _register(self, arena: Arena, cuda: Cuda) -> None:
        asked = messages.CudaSharedMemoryRegisterRequest(
            name=arena.name, raw_handle=arena.handle, device_id=arena.device, byte_size=arena.size
        )
        try:
            await self.wire.stub().CudaSharedMemoryRegister(asked, timeout=CALL_TIMEOUT_S)
        except GrpcFailure as error:
            if error.code != "ALREADY_EXISTS":
                if answered(error):
                    arena.refused = True
                    self._say(f"the server cannot open our memory of GPU {arena.device}: {error.details}")
                    await asyncio.to_thread(_free, arena, cuda)
                return
        arena.registered = True

    async def _unregister(self, arena: Arena) -> None:
        asked = messages.CudaSharedMemoryUnregisterRequest(name=arena.name)
        try:
            await self.wire.stub().CudaSharedMemoryUnregister(asked, timeout=CALL_TIMEOUT_S)
        except GrpcFailure as error:
            log.info("the server keeps %s: %s", arena.name, error)

    def _say(self, why: str) -> None:
        if why not in self._said:
            self._said.add(why)
            log.warning("tensors on the GPU are copied to the host, because %s", why)


def _made(name: str, device: int, size: int, cuda: Cuda) -> Arena:
    runtime = cuda.runtime
    with cuda.on(device):
        address = int(cuda(runtime.cudaMalloc, size))
        try:
            handle = cuda(runtime.cudaIpcGetMemHandle, address)
        except BaseException:
            cuda.release(runtime.cudaFree, address)
            raise
        return Arena(name, device, size, address, ctypes.string_at(handle.getPtr(), runtime.CUDA_IPC_HANDLE_SIZE))


def _free(arena: Arena, cuda: Cuda) -> None:
    with cuda.on(arena.device):
        cuda.release(cuda.runtime.cudaFree, arena.address)


def _fill(places: Mapping[str, _Place], arrays: Mapping[str, Any], cuda: Cuda) -> None:
    for device in {place.arena.device for place in places.values()}:
        mine = {name: place for name, place in places.items() if place.arena.device == device}
        gpu_tensors.copy(arrays, {name: item.arena.address + item.at for name, item in mine.items()}, device, cuda)


def _message(request: Request, places: Mapping[str, _Place]) -> bytes:
    """Tensors on the host beside those on the GPU go as raw contents: Triton takes both in one request."""
    message = codec.request_message(request, messages)
    message.raw_input_contents.extend(bytes(raw_bytes(values)) for values in request.tensors.values())
    for name, place in places.items():
        item = message.inputs.add(name=name, datatype=place.array.datatype, shape=place.array.shape)
        refer(item.parameters, place.arena.name, place.at, place.array.nbytes)
    data: bytes = message.SerializeToString()
    return data


def _give_back(places: Mapping[str, _Place]) -> None:
    for place in places.values():
        place.arena.give_back(place.at)


def _quarantine(places: Mapping[str, _Place]) -> None:
    for place in places.values():
        place.arena.quarantine(place.at)
