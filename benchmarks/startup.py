"""From the command line to ready."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

from kservekit.benchmarks.check import check
from kservekit.benchmarks.contest import Contender, Figure, Measure, Stage, Unit
from kservekit.benchmarks.payloads import SMALL


@dataclass(frozen=True)
class Startup:
    unit = Unit("start to ready", lambda value: f"{value:.2f} s")
    needs: ClassVar[tuple[str, ...]] = ()

    def prepare(self, contender: Contender, stage: Stage, stack: ExitStack, seconds: int) -> Measure:
        # What pip installs has its bytecode. A checkout writes its own at the first start, unless it is told not to.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

        def measure() -> Figure:
            began = time.monotonic()
            with contender.serve(stage) as server:
                took = time.monotonic() - began
                check(SMALL, "rest-json", http_url=server.http_url, grpc_url=server.grpc_url)
            return Figure(took)

        measure()  # the first start reads the files that the next ones find in memory
        return measure
