"""By how much a server's resident memory grows over many tensors."""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kservekit.benchmarks import h2load
from kservekit.benchmarks.check import check
from kservekit.benchmarks.contest import Contender, Figure, Measure, Stage, Unit
from kservekit.benchmarks.payloads import Payload
from kservekit.errors import CannotStart
from kservekit.local.server import LocalServer

WARM_UP_REQUESTS = 2_000
REQUESTS = 20_000
SETTLE_S = 0.5


@dataclass(frozen=True)
class Memory:
    payload: Payload
    wire: str
    warm_up: int = WARM_UP_REQUESTS
    requests: int = REQUESTS

    unit = Unit("growth of resident memory", lambda value: f"{value:+.1%}")
    needs: ClassVar[tuple[str, ...]] = ("h2load",)

    def prepare(self, contender: Contender, stage: Stage, stack: ExitStack, seconds: int) -> Measure:
        """Nothing stays up in between: each measurement is of a new process."""

        def measure() -> Figure:
            with contender.serve(stage) as server:
                assert isinstance(server, LocalServer)  # noqa: S101  it has a process that we may look at
                self._load(server, self.warm_up)
                before = resident_bytes(server.process.pid)
                self._load(server, self.requests)
                after = resident_bytes(server.process.pid)
                return Figure(after / before - 1)

        return measure

    def _load(self, server: LocalServer, requests: int) -> None:
        check(self.payload, self.wire, http_url=server.http_url, grpc_url=server.grpc_url)
        address = server.grpc_url if self.wire == "grpc" else server.http_url
        h2load.run(self.payload, wire=self.wire, address=address, requests=requests)
        check(self.payload, self.wire, http_url=server.http_url, grpc_url=server.grpc_url)
        time.sleep(SETTLE_S)


def resident_bytes(pid: int) -> int:
    try:
        found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.M)
    except OSError:
        found = None
    if found is None:
        raise CannotStart(f"the resident memory of process {pid} cannot be read from /proc: it needs Linux")
    return int(found[1]) * 1024
