"""One run in one process: its clock, its requests, and what they come to."""

from __future__ import annotations

import itertools
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore
from gevent.pool import Group

from kservekit.cpus import usable_cpus
from kservekit.loadtest.pace import LoopClock
from kservekit.loadtest.payload import Message, Payload
from kservekit.loadtest.recorder import Outcome, Recorder
from kservekit.loadtest.request_id import RequestId, RequestIds
from kservekit.loadtest.run import Run
from kservekit.loadtest.shapes import Closed, Load
from kservekit.loadtest.share import Share, run_of
from kservekit.loadtest.target import Target
from kservekit.tensors import ModelSpec

TURNS_AT_LEAST_EVERY = 16
"""Starts without a turn of the loop, where the dispatcher is behind."""

NAP_S = 0.1
"""After so long a wait it is asked anew whether the run goes on."""

PACKAGES = ("kservekit", "locust", "gevent", "geventhttpclient", "grpcio", "hdrhistogram")

Listener = Callable[[str, Outcome, float], None]
"""A payload's name, what became of the request, and its latency in seconds."""


class Wire(Protocol):
    target: Target

    def prepare(self, payload: Payload) -> Message: ...

    def send(self, message: Message, named: RequestId) -> Outcome: ...

    def probe(self) -> ModelSpec: ...

    def close(self) -> None: ...


class Session:
    def __init__(
        self,
        wire: Wire,
        payloads: Sequence[Payload],
        load: Load | Closed,
        *,
        good_ms: float | None,
        max_in_flight: int,
        trace_share: float = 0.0,
        part: tuple[int, int] = (0, 1),
        listener: Listener | None = None,
    ) -> None:
        """`part`: which of how many generators this is; each has the starts of its own of the one schedule."""
        self.wire, self.load, self.max_in_flight, self.part = wire, load, max_in_flight, part
        self.recorder = Recorder(good_ms=good_ms)
        self.in_flight = 0
        self.blocked_s = 0.0
        self.stopping = False
        self.over = Event()
        self.failure: Exception | None = None
        self._ids = RequestIds(wire.target.headers, trace_share)
        self._messages = itertools.cycle([(payload.name, wire.prepare(payload)) for payload in payloads])
        self._listener = listener
        self._end_s: float | None = None
        self._busy = 0.0
        self._clock = LoopClock()
        self.begin()

    def begin(self) -> None:
        """Time counts from here."""
        self.started = datetime.now(UTC)
        self._begin = time.perf_counter()
        self._clock.begin()

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._begin

    @property
    def busy(self) -> float:
        """Share of the run so far in which this process had no rest."""
        return self._busy if self._end_s is not None else self._clock.busy

    def dispatch(self) -> None:
        """The open loop: a request at each start that the load has, whatever became of those before. It returns when
        the load is over and all answers are there."""
        assert isinstance(self.load, Load)  # noqa: S101
        places, requests = BoundedSemaphore(self.max_in_flight), Group()
        index, generators = self.part
        starts = itertools.islice(self.load.starts(), index, None, generators)
        self.begin()
        behind = 0
        try:
            for due_s in starts:
                moment = self._begin + due_s
                if moment > time.perf_counter():
                    behind = 0
                    self._wait_until(moment)
                else:
                    behind += 1
                    if behind % TURNS_AT_LEAST_EVERY == 0:
                        gevent.sleep(0)
                if self.stopping or self.elapsed_s > self.load.duration_s:
                    self._count_rest(due_s, starts)
                    break
                self.recorder.ask(due_s)
                if not self._place_in(places):
                    self._count_rest(next(starts, math.inf), starts)
                    break
                requests.start(gevent.Greenlet(self._in_place, places, due_s))
            if math.isfinite(self.load.duration_s):
                self._wait_until(self._begin + self.load.duration_s)
            self.close_time()
            requests.join()
        finally:
            requests.kill(block=False)

    def request(self, due_s: float | None = None) -> Outcome:
        """One request, now; late by as much as its intended start lies back."""
        name, message = next(self._messages)
        sent_s = self.elapsed_s
        if due_s is None:
            due_s = sent_s
            self.recorder.ask(due_s)
        self.recorder.send(sent_s, len(message.head) + len(message.body))
        named = self._ids.next()
        self.in_flight += 1
        try:
            outcome = self.wire.send(message, named)
        finally:
            self.in_flight -= 1
        end_s = self.elapsed_s
        self.recorder.end(self.wire.target.wire, name, outcome, named, due_s=due_s, sent_s=sent_s, end_s=end_s)
        if self._listener is not None:
            self._listener(name, outcome, end_s - due_s)
        return outcome

    def close_time(self) -> None:
        """The run is over; what is in flight still counts, and no longer as time."""
        if self._end_s is None:
            self._busy = self._clock.busy
            self._end_s = self.elapsed_s
            self._clock.close()

    def finish(self) -> None:
        """Stops sending, and returns once what is in flight has ended."""
        self.stopping = True
        self.close_time()
        if isinstance(self.load, Load):
            self.over.wait()
        while self.in_flight:
            gevent.sleep(NAP_S)

    def share(self) -> Share:
        """What was counted until now, which ends the run's time."""
        self.close_time()
        return Share(
            self.recorder,
            started=self.started.isoformat(timespec="seconds"),
            duration_s=self._end_s or 0.0,
            generator={"busy": round(self._busy, 4), "blocked_s": round(self.blocked_s, 3)},
            environment=environment(),
        )

    def result(self, *, interrupted: bool = False) -> Run:
        return run_of([self.share()], self.wire.target, self.load, self.max_in_flight, interrupted=interrupted)

    def _wait_until(self, moment: float) -> None:
        """Not to the end where the run is stopped before."""
        while moment - time.perf_counter() > 2 * NAP_S and not self.stopping:
            gevent.sleep(NAP_S)
        if not self.stopping:
            self._clock.wait_until(moment)

    def _place_in(self, places: BoundedSemaphore) -> bool:
        """False where the run was over before there was one."""
        if places.acquire(blocking=False):
            return True
        assert isinstance(self.load, Load)  # noqa: S101
        since = time.perf_counter()
        left_s = max(0.0, self.load.duration_s - self.elapsed_s)
        found = places.acquire(timeout=left_s if math.isfinite(left_s) else None)
        self.blocked_s += time.perf_counter() - since
        return found and not self.stopping

    def _in_place(self, places: BoundedSemaphore, due_s: float) -> None:
        try:
            self.request(due_s)
        finally:
            places.release()

    def _count_rest(self, due_s: float, starts: Any) -> None:
        """What was to start by now, and did not."""
        assert isinstance(self.load, Load)  # noqa: S101
        over_s = min(self.elapsed_s if self._end_s is None else self._end_s, self.load.duration_s)
        while due_s < over_s:
            self.recorder.ask(due_s)
            due_s = next(starts, math.inf)


def environment() -> dict[str, str]:
    """What figures depend on."""
    found = {
        "machine": f"{usable_cpus()} cores, {platform.machine()}",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    if hasattr(os, "getloadavg"):
        found["load average"] = f"{os.getloadavg()[0]:.1f}"
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
