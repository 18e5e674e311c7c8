"""What an answer from the cache in memory costs, beside the call to Triton's no-op model that it saves."""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

from kservekit.benchmarks.check import check
from kservekit.benchmarks.contest import OURS, Contender, Figure, Measure, Stage, Unit
from kservekit.benchmarks.payloads import Payload
from kservekit.cache import MemoryStore, ResponseCache
from kservekit.oip.grpc import GrpcBackend

CALLS = 300


@dataclass(frozen=True)
class CacheHit:
    payload: Payload

    unit = Unit("one answer after the other; the median's time", lambda value: f"{value * 1e6:,.0f} us")
    needs: ClassVar[tuple[str, ...]] = ()

    def prepare(self, contender: Contender, stage: Stage, stack: ExitStack, seconds: int) -> Measure:
        server = stack.enter_context(contender.serve(stage))
        check(self.payload, "grpc", http_url=server.http_url, grpc_url=server.grpc_url)
        return lambda: asyncio.run(self._measure(server.grpc_url, kept=contender.side == OURS))

    async def _measure(self, url: str, *, kept: bool) -> Figure:
        backend, request = GrpcBackend(url), self.payload.request
        cache = ResponseCache(MemoryStore(64 * 2**20), ttl_s=600)
        took = []
        try:
            for _ in range(CALLS + 1):
                began = time.perf_counter()
                if kept:
                    await cache.answer(request, "1", lambda: backend.infer(request))
                else:
                    await backend.infer(request)
                took.append(time.perf_counter() - began)
        finally:
            await backend.close()
        took = sorted(took[1:])  # the first one connects, and fills the cache
        return Figure(statistics.median(took), took[len(took) // 2], took[len(took) * 99 // 100])
