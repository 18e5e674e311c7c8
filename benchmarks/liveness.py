"""How long a liveness probe waits while four handlers compute.

Probes are sent at their moments whether or not earlier ones were answered: a prober that waits for its answers would
meet a blocked server once, and then count thousands of quick ones.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kservekit.benchmarks.check import WrongAnswer, check
from kservekit.benchmarks.contest import Contender, Figure, Measure, Stage, Unit
from kservekit.benchmarks.h2load import percentile
from kservekit.benchmarks.payloads import OUTPUT, SMALL
from kservekit.codec.message import Answer, Request
from kservekit.errors import ServingError
from kservekit.oip.http import HttpBackend

HANDLERS = 4
EVERY_S = 0.02
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Liveness:
    unit = Unit("p99 of a probe", lambda value: f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms")
    needs: ClassVar[tuple[str, ...]] = ()

    def prepare(self, contender: Contender, stage: Stage, stack: ExitStack, seconds: int) -> Measure:
        server = stack.enter_context(contender.serve(stage))
        check(SMALL, "rest-json", http_url=server.http_url, grpc_url=server.grpc_url)
        return lambda: asyncio.run(_measure(f"http://{server.http_url}"))


async def _measure(base_url: str) -> Figure:
    backend = HttpBackend(base_url, timeout_s=PATIENCE_S, binary=False)
    try:
        await _probe(backend)  # the first one makes the connection
        work = asyncio.gather(*(backend.infer(SMALL.request) for _ in range(HANDLERS)))
        probes = []
        while not work.done():
            probes.append(asyncio.create_task(_probe(backend)))
            await asyncio.wait({work}, timeout=EVERY_S)
        answers: list[Answer] = await work
        waits = sorted(await asyncio.gather(*probes))
    except ServingError as error:
        raise WrongAnswer(f"while {HANDLERS} handlers compute: {type(error).__name__}: {error}") from error
    finally:
        await backend.close()
    if not all(np.array_equal(answer.tensors[OUTPUT], SMALL.array) for answer in answers):
        raise WrongAnswer("a handler that computes gives back other values than it was given")
    p50, p99 = (percentile(waits, percent) / 1e6 for percent in (50, 99))
    return Figure(p99, p50, p99)


async def _probe(backend: HttpBackend) -> int:
    """Microseconds."""
    began = time.perf_counter()
    await backend.call("GET", "/v2/health/live", Request({}, model=SMALL.name))
    return round((time.perf_counter() - began) * 1e6)
