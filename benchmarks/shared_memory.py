"""Callers in this process of Triton's no-op model: tensors by shared memory, by our gRPC, or by tritonclient's."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kservekit.benchmarks.check import WrongAnswer, check
from kservekit.benchmarks.contest import Contender, Figure, Measure, Stage, Unit
from kservekit.benchmarks.payloads import INPUT, OUTPUT, Payload
from kservekit.oip.backend import Backend
from kservekit.oip.grpc import GrpcBackend
from kservekit.oip.shared_memory import SharedMemoryBackend

WARM_UP = 3
MADE_THERE, COPIED = "made in shared memory", "copied to shared memory"
BY_GRPC, TRITONCLIENT = "gRPC", "tritonclient"
"""Sides that both send all by gRPC."""

Call = Callable[[], Awaitable[np.ndarray]]


@dataclass(frozen=True)
class SharedMemory:
    """Every caller has its tensor, finished, from the beginning, and sends it again and again."""

    payload: Payload
    callers: int

    unit = Unit("answers a second", lambda value: f"{value:,.0f}/s")
    needs: ClassVar[tuple[str, ...]] = ()

    def prepare(self, contender: Contender, stage: Stage, stack: ExitStack, seconds: int) -> Measure:
        server = stack.enter_context(contender.serve(stage))
        check(self.payload, "grpc", http_url=server.http_url, grpc_url=server.grpc_url)
        return lambda: asyncio.run(self._measure(server.grpc_url, seconds, contender.note or contender.side))

    async def _measure(self, url: str, seconds: int, way: str) -> Figure:
        took: list[float] = []

        async def calls(call: Call) -> None:
            while (sent := time.perf_counter()) - began < seconds:
                await call()
                took.append(time.perf_counter() - sent)

        async with _by_tritonclient(url, self) if way == TRITONCLIENT else _by_backend(url, self, way) as callers:
            for _ in range(WARM_UP):
                answers = await asyncio.gather(*(call() for call in callers))
            if not all(np.array_equal(answer, self.payload.answer) for answer in answers):
                raise WrongAnswer(f"Triton's model {self.payload.name!r} gives back other values than it was given")
            del answers
            began = time.perf_counter()
            await asyncio.gather(*map(calls, callers))
            spent = time.perf_counter() - began
        took.sort()
        return Figure(len(took) / spent, took[len(took) // 2], took[len(took) * 99 // 100])


@asynccontextmanager
async def _by_backend(url: str, course: SharedMemory, way: str) -> AsyncGenerator[list[Call]]:
    wire = GrpcBackend(url)
    backend: Backend = wire if way == BY_GRPC else SharedMemoryBackend(wire)
    given = course.payload.request

    def caller() -> Call:
        array = given.tensors[INPUT]
        if way == MADE_THERE:
            array = backend.empty(array.shape, array.dtype)
            array[...] = given.tensors[INPUT]
        request = dataclasses.replace(given, tensors={INPUT: array})

        async def call() -> np.ndarray:
            return (await backend.infer(request)).tensors[OUTPUT]

        return call

    try:
        yield [caller() for _ in range(course.callers)]
    finally:
        await backend.close()


@asynccontextmanager
async def _by_tritonclient(url: str, course: SharedMemory) -> AsyncGenerator[list[Call]]:
    from tritonclient.grpc import InferInput, aio

    array, model = course.payload.array, course.payload.name

    async def call() -> np.ndarray:
        given = InferInput(INPUT, list(array.shape), "FP32")
        given.set_data_from_numpy(array)
        found: np.ndarray = (await client.infer(model, [given])).as_numpy(OUTPUT)
        return found

    async with aio.InferenceServerClient(url) as client:
        yield [call] * course.callers
