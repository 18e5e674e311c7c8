"""Tensors to a server on this machine through system shared memory: only what describes them goes by gRPC.

The Open Inference Protocol's "System-Shared-Memory Extension", as Triton has it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

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


@dataclass(frozen=True, slots=True)
class _Place:
    region: Region
    at: int
    size: int
    """In bytes, as `at`."""


@dataclass(slots=True)
class _Layout:
    """Where a request's tensors lie."""

    own: Region | None = None
    """Taken for this request; what the others hold is somebody's."""
    inputs: dict[str, _Place] = field(default_factory=dict)
    copied: dict[str, bytes | memoryview] = field(default_factory=dict)
    """Into `own`: the inputs that lie in no region yet."""
    outputs: dict[str, _Place] = field(default_factory=dict)
    """Empty where their sizes are not known: then they come with the reply."""

    def regions(self) -> set[Region]:
        return {place.region for place in (*self.inputs.values(), *self.outputs.values())}

    def give_back(self, regions: Regions) -> None:
        if self.own is not None:
            regions.give_back(self.own)

    def quarantine(self, regions: Regions) -> None:
        for region in self.regions():
            regions.quarantine(region)


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
        self._dropped: deque[Region] = deque()
        self.regions = Regions(max_bytes, dropped=self._dropped.append)
        self.cuda = CudaMemory(wire, max_bytes=max_bytes)
        self._usable: bool | None = None
        self._looking = asyncio.Lock()
        self._registering = asyncio.Lock()
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
        layout = await self._laid_out(request, await self._expected(kind, request))
        if layout is None:
            return await self.wire.infer(request)
        try:
            answer = await self._through(layout, request)
        except ServingError as error:
            if not answered(error.__cause__):
                layout.quarantine(self.regions)
                if isinstance(error, Unavailable):
                    self._usable = None  # it may be another one next time
                raise
            layout.give_back(self.regions)
            original = str(error.__cause__)
            if "nable to find shared memory region" in original:  # it was restarted
                for region in layout.regions():
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
            layout.quarantine(self.regions)
            raise
        if not layout.outputs:
            layout.give_back(self.regions)
            await self._learn(kind, request, answer)
        return answer

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
        found = np.dtype(dtype)
        size = math.prod(shape) * found.itemsize
        if size >= LEAST_BYTES and not found.hasobject and self._usable is not False:
            with suppress(Exhausted):
                memory = self.regions.lend(self.regions.take(size), writeable=True)
                return memory[:size].view(found).reshape(shape)
        return np.empty(shape, found)

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
        self._unregister_dropped()
        while self._unregistering:
            await asyncio.wait(self._unregistering)
        await self.wire.close()

    async def _laid_out(self, request: Request, outputs: dict[str, int]) -> _Layout | None:
        """In regions that the server knows; None where there are none to be had.

        An input that lies in one already, because `empty` made it or another answer had it, is left where it is.
        """
        layout = _Layout()
        for name, array in request.tensors.items():
            raw = raw_bytes(array)
            if lies := self.regions.place(raw):
                layout.inputs[name] = _Place(*lies, len(raw))
            else:
                layout.copied[name] = raw
        sizes = [*map(len, layout.copied.values()), *outputs.values()]
        if sizes:
            starts, size = _placed(sizes)
            try:
                layout.own = own = self.regions.take(size)
            except Exhausted:
                return None
            finally:
                self._unregister_dropped()
            places = [_Place(own, at, size) for at, size in zip(starts, sizes, strict=True)]
            layout.inputs |= zip(layout.copied, places, strict=False)
            layout.outputs = dict(zip(outputs, places[len(layout.copied) :], strict=True))
        try:
            for region in layout.regions():
                if not await self._register(region):
                    layout.give_back(self.regions)
                    return None
        except BaseException:
            layout.give_back(self.regions)
            raise
        return layout

    async def _through(self, layout: _Layout, request: Request) -> Answer:
        message = codec.request_message(request, messages)
        for item in message.inputs:
            place = layout.inputs[item.name]
            if raw := layout.copied.get(item.name):
                place.region.map[place.at : place.at + place.size] = raw
            refer(item.parameters, place.region.name, place.at, place.size)
        if layout.outputs:
            del message.outputs[:]
            for name in request.outputs or layout.outputs:
                place = layout.outputs[name]
                refer(message.outputs.add(name=name).parameters, place.region.name, place.at, place.size)
        reply = await self.wire.call(message.SerializeToString(), request)
        try:
            if layout.own is None or not layout.outputs:
                return codec.decode_answer(reply, messages)
            found = messages.ModelInferResponse.FromString(reply)
            memory = self.regions.lend(layout.own, writeable=False)
            tensors: Tensors = {}
            for item in found.outputs:
                form = RawLayout.of(item.datatype, list(item.shape), f"output {item.name!r}")
                place = layout.outputs[item.name]
                size = min(form.count * form.dtype.itemsize, place.size)
                tensors[item.name] = form.tensor(memory[place.at : place.at + size].data)
        except InvalidInput as error:
            raise backend_failed(request, f"malformed answer: {error}") from error
        return Answer(tensors, model=found.model_name, version=found.model_version, id=found.id)

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
        self._unregister_dropped()
        for name in left_behind():
            if name in known:
                await self._unregister(name)
        return True

    async def _register(self, region: Region) -> bool:
        """Whether the server knows it now; where it does not, the region is dropped."""
        if region.registered:
            return True
        async with self._registering:
            if region.registered:  # an array of several requests lies in it
                return True
            asked = messages.SystemSharedMemoryRegisterRequest(
                name=region.name, key=f"/{region.name}", offset=0, byte_size=region.size
            )
            try:
                await self.wire.stub().SystemSharedMemoryRegister(asked, timeout=CALL_TIMEOUT_S)
            except GrpcFailure as error:
                if error.code != "ALREADY_EXISTS":
                    self._drop(region)
                    if answered(error):
                        self._usable = False
                        log.info("tensors go by gRPC, because the server cannot open our memory: %s", error.details)
                    return False
            except BaseException:
                self._drop(region)
                raise
            region.registered = True
        return True

    def _drop(self, region: Region) -> None:
        region.registered = True  # it may be: nobody can tell
        self.regions.drop(region)
        self._unregister_dropped()

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

    def _unregister_dropped(self) -> None:
        while self._dropped:
            region = self._dropped.popleft()
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
