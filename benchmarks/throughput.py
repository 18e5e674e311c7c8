"""Answers a second, p50 and p99 under a load generator; a real call before and after shows that they are right."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from kservekit.benchmarks import h2load, wrk
from kservekit.benchmarks.check import check
from kservekit.benchmarks.contest import Contender, Figure, Measure, Server, Stage, Unit
from kservekit.benchmarks.load import Load
from kservekit.benchmarks.payloads import Payload
from kservekit.errors import CannotStart

WARM_UP_S = 1
ENOUGH = 12
"""Answers that a figure should stand on."""
SLOW_S = 10
"""Stock gives three to twenty tensors a second: who has fewer than enough after the warm-up is measured so long."""
LISTEN_TIMEOUT_S = 30.0
LISTENING = "0A"


@dataclass(frozen=True)
class Throughput:
    payload: Payload
    wire: str
    """rest-json, rest-binary or grpc."""

    unit = Unit("answers a second", lambda value: f"{value:,.0f}/s" if value >= 100 else f"{value:.1f}/s")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("h2load",) if self.wire == "grpc" else ("wrk",)

    def prepare(self, contender: Contender, stage: Stage, stack: ExitStack, seconds: int) -> Measure:
        server = stack.enter_context(contender.serve(stage))
        if contender.workers > 1:
            wait_for_listeners(int(server.http_url.split(":")[1]), contender.workers)
        self._check(server)
        if self._load(server, WARM_UP_S).answers < ENOUGH:
            seconds = max(seconds, SLOW_S)

        def measure() -> Figure:
            self._check(server)
            found = self._load(server, seconds)
            self._check(server)
            return found.figure

        return measure

    def _check(self, server: Server) -> None:
        check(self.payload, self.wire, http_url=server.http_url, grpc_url=server.grpc_url)

    def _load(self, server: Server, seconds: int) -> Load:
        if self.wire == "grpc":
            return h2load.run(self.payload, wire="grpc", address=server.grpc_url, seconds=seconds)
        return wrk.run(self.payload, binary=self.wire == "rest-binary", address=server.http_url, seconds=seconds)


def wait_for_listeners(port: int, count: int) -> None:
    """Ready is what the first of several workers says; here all of them listen. As Linux knows it."""
    deadline = time.monotonic() + LISTEN_TIMEOUT_S
    while True:
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        found = sum(row[1].endswith(f":{port:04X}") and row[3] == LISTENING for row in rows)
        if found >= count:
            return
        if time.monotonic() > deadline:
            raise CannotStart(f"{found} workers listen on port {port} after {LISTEN_TIMEOUT_S:g} s: expected {count}")
        time.sleep(0.05)
