"""Tensors to a server on this machine through system shared memory: only what describes them goes by gRPC.

The Open Inference Protocol's "System-Shared-Memory Extension", as Triton has it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import weakref
from collections import OrderedDict
from collections.abc import AsyncGenerator, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from kservekit.codec import grpc as codec
from kservekit.codec.message import Answer, Request
from kservekit.codec.raw import RawLayout, raw_bytes
from kservekit.errors import InvalidInput, ServingError, Unavailable
from kservekit.oip.backend import backend_failed, call_timeout, on_host
from kservekit.oip.cuda_memory import CudaMemory
from kservekit.oip.grpc import GrpcBackend
from kservekit.oip.grpc_channel import GrpcFailure
from kservekit.oip.regions import Exhausted, Region, Regions, left_behind
from kservekit.oip.triton_memory import CALL_TIMEOUT_S, answered, refer
from kservekit.oip.triton_messages import messages
from kservekit.tensors import ModelSpec, Tensors

log = logging.getLogger(__name__)

LEAST_BYTES = 64 * 1024
"""Of a request's inputs, from which the way about a region is the shorter one."""

BELIEVED_S = 1.0
"""How long the outputs that a model had are asked for without a look at whether it has others now, after a reload."""

_ALIGNED = 64
_REMEMBERED = 256
"""Of how many kinds of request the outputs' sizes are known."""

_LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")


@dataclass(slots=True)
class _Learned:
    """The outputs that a kind of request was answered with: their sizes, or none where the inputs do not tell them."""

    sizes: dict[str, int]
    declared: Set[str] = frozenset()
    """All that the model had then."""
    believed_until: float = 0.0


def is_local(host: str) -> bool:
    return host.partition(":")[0] in _LOCAL_HOSTS or host.rpartition(":")[0] in _LOCAL_HOSTS


class SharedMemoryBackend:
    """A GrpcBackend whose large tensors travel through at most `max_bytes` of regions; what does not fit goes by gRPC.

    So does everything where the server has not the extension or cannot open our regions (another user, a container
    without a common /dev/shm), which is said once in the log. An answer's tensors are read-only views, as from gRPC.
    A region is used again only after the server's answer, and when nobody has a tensor of it any more.

    Requests with tensors on a GPU go by CudaMemory, with as many bytes of each GPU, where they can.
    """

    def __init__(self, wire: GrpcBackend, *, max_bytes: int = 256 * 2**20) -> None:
        self.wire = wire
        self.regions = Regions(max_bytes, dropped=self._unregister_later)
        self.cuda = CudaMemory(wire, max_bytes=max_bytes)
        self._usable: bool | None = None
        self._looking = asyncio.Lock()
        self._learned: OrderedDict[Any, _Learned] = OrderedDict()
        self._unregistering: set[asyncio.Task[None]] = set()

    async def infer(self, request: Request) -> Answer:
        if request.gpu_tensors:
            answer = await self.cuda.infer(request)
            if answer is not None:
                return answer
            request = await on_host(request)
        if self._usable is False or not _worth_it(request.tensors) or not await self._has_extension():
            return await self.wire.infer(request)
        kind = _kind(request)
        outputs = await self._expected(kind, request)
        contents = {name: raw_bytes(array) for name, array in request.tensors.items()}
        places, size = _placed([*map(len, contents.values()), *outputs.values()])
        region = await self._registered(size)
        if region is None:
            return await self.wire.infer(request)
        try:
            answer = await self._through(region, request, contents, outputs, places)
        except ServingError as error:
            if not answered(error.__cause__):
                self.regions.quarantine(region)
                if isinstance(error, Unavailable):
                    self._usable = None  # it may be another one next time
                raise
            self.regions.give_back(region)
            original = str(error.__cause__)
            if "nable to find shared memory region" in original:  # it was restarted
                region.registered = False
                self._usable = None
            elif "shared memory size specified with the request for output" in original:
                self._learned[kind] = _Learned({})  # outputs whose size the inputs do not tell go by gRPC
            elif "unexpected inference output" in original and not request.outputs:
                self._learned.pop(kind, None)
            else:
                raise
            return await self.wire.infer(request)
        except BaseException:
            self.regions.quarantine(region)
            raise
        if not outputs:
            self.regions.give_back(region)
            await self._learn(kind, request, answer)
        return answer

    def stream(self, request: Request) -> AsyncGenerator[Answer]:
        """By gRPC: how many answers there will be, and so how much memory, nobody knows."""
        return self.wire.stream(request)

    async def ready(self, model: str, version: str = "") -> bool:
        return await self.wire.ready(model, version)

    async def spec(self, model: str, version: str = "") -> ModelSpec:
        return await self.wire.spec(model, version)

    async def close(self) -> None:
        await self.cuda.close()
        self.regions.drop_all()
        while self._unregistering:
            await asyncio.wait(self._unregistering)
        await self.wire.close()

    async def _through(
        self,
        region: Region,
        request: Request,
        contents: dict[str, bytes | memoryview],
        outputs: dict[str, int],
        places: list[int],
    ) -> Answer:
        message = codec.request_message(request, messages)
        for item, at in zip(message.inputs, places, strict=False):
            raw = contents[item.name]
            region.map[at : at + len(raw)] = raw
            refer(item.parameters, region.name, at, len(raw))
        wanted = dict(zip(outputs, places[len(contents) :], strict=True))
        if wanted:
            del message.outputs[:]
            for name in request.outputs or wanted:
                refer(message.outputs.add(name=name).parameters, region.name, wanted[name], outputs[name])
        reply = await self.wire.call(message.SerializeToString(), request)
        try:
            if not wanted:
                return codec.decode_answer(reply, messages)
            found = messages.ModelInferResponse.FromString(reply)
            memory = self._lent(region)
            tensors: Tensors = {}
            for item in found.outputs:
                layout = RawLayout.of(item.datatype, list(item.shape), f"output {item.name!r}")
                at, size = wanted[item.name], min(layout.count * layout.dtype.itemsize, outputs[item.name])
                tensors[item.name] = layout.tensor(memory[at : at + size].data)
        except InvalidInput as error:
            raise backend_failed(request, f"malformed answer: {error}") from error
        return Answer(tensors, model=found.model_name, version=found.model_version, id=found.id)

    def _lent(self, region: Region) -> np.ndarray:
        """The region's memory to read. It comes back to the pool when the last tensor is gone that lies in it."""
        memory = np.frombuffer(region.map, np.uint8)
        memory.flags.writeable = False
        weakref.finalize(memory, self.regions.give_back, region).atexit = False
        return memory

    async def _has_extension(self) -> bool:
        """Asked before the first use, and again when the server may be another one. Frees what dead processes left."""
        if self._usable is None:
            async with self._looking:
                if self._usable is None:
                    try:
                        self._usable = await self._look()
                    except GrpcFailure:
                        return False
        return self._usable

    async def _look(self) -> bool:
        stub = self.wire.stub()
        server = await stub.ServerMetadata(messages.ServerMetadataRequest(), timeout=CALL_TIMEOUT_S)
        if "system_shared_memory" not in server.extensions:
            return False
        asked = messages.SystemSharedMemoryStatusRequest()
        known = set((await stub.SystemSharedMemoryStatus(asked, timeout=CALL_TIMEOUT_S)).regions)
        self.regions.known_are(known)
        for name in left_behind():
            if name in known:
                await self._unregister(name)
        return True

    async def _registered(self, size: int) -> Region | None:
        """A region that is this request's alone and known to the server; None where there is none to be had."""
        try:
            region = self.regions.take(size)
        except Exhausted:
            return None
        if region.registered:
            return region
        asked = messages.SystemSharedMemoryRegisterRequest(
            name=region.name, key=f"/{region.name}", offset=0, byte_size=region.size
        )
        region.registered = True  # or about to be: nobody can tell, if this ends early
        try:
            await self.wire.stub().SystemSharedMemoryRegister(asked, timeout=CALL_TIMEOUT_S)
        except GrpcFailure as error:
            if error.code == "ALREADY_EXISTS":
                return region
            self.regions.drop(region)
            if answered(error):
                self._usable = False
                log.info("tensors go by gRPC, because the server cannot open our memory: %s", error.details)
            return None
        except BaseException:
            self.regions.drop(region)
            raise
        return region

    async def _expected(self, kind: Any, request: Request) -> dict[str, int]:
        """The outputs that get a place in the region, and their sizes; none where that is not known, or not any more.

        They are asked for by name, so that of an output which the model has got since nothing would be heard.
        """
        learned = self._learned.get(kind)
        # An output that does not fit means that the model runs again, which one with a state must not. One that has
        # parameters, such as classification, is not as large as it is without.
        by_reply = "sequence_id" in request.parameters or any(request.outputs.values())
        if learned is None or not learned.sizes or by_reply:
            return {}
        if not request.outputs and asyncio.get_running_loop().time() >= learned.believed_until:
            learned.believed_until = self._believed()
            if await self._declared(request) != learned.declared:
                self._learned.pop(kind, None)
                return {}
        return learned.sizes

    def _believed(self) -> float:
        return asyncio.get_running_loop().time() + BELIEVED_S

    async def _declared(self, request: Request) -> set[str]:
        """The names of the model's outputs, or none where that is not heard in time."""
        try:
            async with asyncio.timeout(call_timeout(request, CALL_TIMEOUT_S)):
                spec = await self.wire.spec(request.model, request.version)
        except TimeoutError:
            return set()
        return {item.name for item in spec.outputs}

    async def _learn(self, kind: Any, request: Request, answer: Answer) -> None:
        """What the next answer to such a request needs; BYTES have no size of their own."""
        arrays = answer.tensors.values()
        if kind in self._learned or any(array.dtype == object or not array.size for array in arrays):
            return
        sizes = {name: array.nbytes for name, array in answer.tensors.items()}
        if sum(sizes.values()) < LEAST_BYTES:
            return
        with suppress(ServingError):  # the answer is there all the same
            self._learned[kind] = _Learned(sizes, await self._declared(request), self._believed())
            if len(self._learned) > _REMEMBERED:
                self._learned.popitem(last=False)

    def _unregister_later(self, region: Region) -> None:
        if region.registered:
            task = asyncio.get_running_loop().create_task(self._unregister(region.name))
            self._unregistering.add(task)
            task.add_done_callback(self._unregistering.discard)

    async def _unregister(self, name: str) -> None:
        asked = messages.SystemSharedMemoryUnregisterRequest(name=name)
        for wait_s in (0.01, 0.1, 1.0, None):
            try:
                await self.wire.stub().SystemSharedMemoryUnregister(asked, timeout=CALL_TIMEOUT_S)
            except GrpcFailure as error:
                # Triton 24.09 and 24.10 refuse it for as long as they count a user, which an answer's caller still is.
                if wait_s is None or "in use" not in error.details:
                    return
                await asyncio.sleep(wait_s)
            else:
                return


def _worth_it(tensors: Tensors) -> bool:
    """Whether there is enough of it; an empty tensor has no place in a region."""
    arrays = tensors.values()
    return sum(array.nbytes for array in arrays if array.dtype != object) >= LEAST_BYTES and all(
        array.size for array in arrays
    )


def _kind(request: Request) -> Any:
    shapes = tuple((name, array.dtype, array.shape) for name, array in request.tensors.items())
    return request.model, request.version, tuple(request.outputs), shapes


def _placed(sizes: list[int]) -> tuple[list[int], int]:
    """Where in a region each begins, and how large it has to be."""
    places, at = [], 0
    for size in sizes:
        places.append(at)
        at += math.ceil(size / _ALIGNED) * _ALIGNED
    return places, at
