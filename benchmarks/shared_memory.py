"""Callers in this process of Triton's no-op model: large tensors by shared memory, or by gRPC as all else."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kservekit.benchmarks.check import WrongAnswer, check
from kservekit.benchmarks.contest import OURS, Contender, Figure, Measure, Stage, Unit
from kservekit.benchmarks.payloads import OUTPUT, Payload
from kservekit.oip.backend import Backend
from kservekit.oip.grpc import GrpcBackend
from kservekit.oip.shared_memory import SharedMemoryBackend

WARM_UP = 3


@dataclass(frozen=True)
class SharedMemory:
    payload: Payload
    callers: int

    unit = Unit("answers a second", lambda value: f"{value:,.0f}/s")
    needs: ClassVar[tuple[str, ...]] = ()

    def prepare(self, contender: Contender, stage: Stage, stack: ExitStack, seconds: int) -> Measure:
        server = stack.enter_context(contender.serve(stage))
        check(self.payload, "grpc", http_url=server.http_url, grpc_url=server.grpc_url)
        return lambda: asyncio.run(self._measure(server.grpc_url, seconds, shared=contender.side == OURS))

    async def _measure(self, url: str, seconds: int, *, shared: bool) -> Figure:
        wire, request = GrpcBackend(url), self.payload.request
        backend: Backend = SharedMemoryBackend(wire) if shared else wire
        took: list[float] = []

        async def call() -> None:
            while (sent := time.perf_counter()) - began < seconds:
                await backend.infer(request)
                took.append(time.perf_counter() - sent)

        try:
            for _ in range(WARM_UP):
                answer = await backend.infer(request)
            if not np.array_equal(answer.tensors[OUTPUT], self.payload.answer):
                raise WrongAnswer(f"Triton's model {self.payload.name!r} gives back other values than it was given")
            began = time.perf_counter()
            await asyncio.gather(*(call() for _ in range(self.callers)))
            spent = time.perf_counter() - began
        finally:
            await backend.close()
        took.sort()
        return Figure(len(took) / spent, took[len(took) // 2], took[len(took) * 99 // 100])
