"""What a run measured, as a file keeps it: all that a verdict, a comparison or a report needs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kservekit.errors import CannotStart

FORMAT = 1

BIN = math.log(1.01)
"""The series' bins are one percent wide."""


def bin_of(seconds: float) -> int:
    return int(math.log(seconds * 1e6) / BIN) if seconds > 1e-6 else 0


def bin_seconds(index: int) -> float:
    """The middle of a bin."""
    return math.exp((index + 0.5) * BIN) / 1e6


def percentile_of(bins: dict[int, int], percent: float) -> float:
    """Seconds; NaN of nothing."""
    rank = max(1, math.ceil(sum(bins.values()) * percent / 100))
    for index in sorted(bins):
        rank -= bins[index]
        if rank <= 0:
            return bin_seconds(index)
    return math.nan


@dataclass
class Second:
    """Requests by the moment that they ought to have started in."""

    answers: int = 0
    errors: int = 0
    bins: dict[int, int] = field(default_factory=dict)
    """How many latencies lie in which bin, counted from the intended start."""

    def add(self, other: Second) -> None:
        self.answers += other.answers
        self.errors += other.errors
        for index, count in other.bins.items():
            self.bins[index] = self.bins.get(index, 0) + count


def together(seconds: Iterable[Second]) -> Second:
    whole = Second()
    for second in seconds:
        whole.add(second)
    return whole


@dataclass
class Part:
    """Of the run, what one wire, payload and revision had."""

    wire: str
    name: str
    revision: str
    """`kservekit-revision` of the answers: the arm of a canary; empty where they had none."""
    answers: int
    errors: int
    good: int
    latency_ms: dict[str, float]
    """mean, p50, p75, p90, p95, p99, p999 and max, counted from the intended start. A request that ran into its
    time-out is among them, because whoever sent it waited at least so long."""
    from_send_ms: dict[str, float]
    """The same from the moment of sending: what a closed loop sees."""
    hdr: str = ""
    """The latencies, whole, in HdrHistogram's own form (microseconds)."""


@dataclass(order=True)
class Slow:
    """One of the slowest requests, by the ids under which a server's logs and its traces have it."""

    latency_ms: float
    due_s: float
    """When it ought to have started, from the beginning of the run."""
    name: str
    revision: str
    error: str
    request_id: str
    """x-request-id, as the answer has it where a proxy changed it."""
    trace_id: str
    """Empty where no spans were asked for."""


@dataclass
class Run:
    target: dict[str, str]
    load: dict[str, Any]
    """`loop` is open or closed; `asked_per_s` is the mean rate that was asked for."""
    started: str
    duration_s: float
    asked: int
    """Requests whose time to start had come; in a closed loop those sent."""
    sent: int
    answers: int
    errors: int
    good: int
    """Answers within the SLO's goodput_ms; all answers where it has none."""
    sent_bytes: int
    received_bytes: int
    first_answer_ms: float | None
    errors_by: dict[str, int]
    total: Part
    parts: list[Part]
    width_s: int
    """Of an entry in the series: seconds, one at first, more where the run was long."""
    asked_series: list[int]
    sent_series: list[int]
    series: dict[str, list[Second]]
    """By revision."""
    generator: dict[str, float]
    """busy: share of the time that its loop had work; blocked_s: waits for a place among those in flight."""
    environment: dict[str, str]
    server_ms: dict[str, float] = field(default_factory=dict)
    """Where the server says that the time went, means by stage: our Server-Timing, and Triton's statistics."""
    retries: int | None = None
    """Those of a proxy that says so; None where nobody does. The generator itself sends each request once."""
    slowest: list[Slow] = field(default_factory=list)
    """The slowest first; those with spans have a list of their own in it."""
    lost: list[str] = field(default_factory=list)
    """Generators of a distributed run that did not live to say what they counted."""
    interrupted: bool = False
    verdict: dict[str, Any] | None = None
    format: int = FORMAT

    @property
    def ended(self) -> int:
        return self.answers + self.errors

    def seconds(self) -> list[Second]:
        """The series of all revisions together."""
        return [together(seconds) for seconds in zip(*self.series.values(), strict=True)]


def save(run: Run, file: Path) -> None:
    write(file, json.dumps(dataclasses.asdict(run), indent=1, allow_nan=False))


def write(file: Path, text: str) -> None:
    try:
        file.write_text(text)
    except OSError as error:
        raise CannotStart(f"{file} cannot be written: {error.strerror}; choose another place") from None


def read(file: Path) -> Run:
    """CannotStart where it is not what `--json` writes."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CannotStart(f"the run {file} cannot be read: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise CannotStart(f"{file} is no run: expected what `kservekit loadtest --json FILE` wrote, format {FORMAT}")
    try:
        found["total"] = Part(**found["total"])
        found["parts"] = [Part(**part) for part in found["parts"]]
        found["slowest"] = [Slow(**slow) for slow in found.get("slowest", ())]
        found["series"] = {name: [_second(second) for second in series] for name, series in found["series"].items()}
        return Run(**found)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise CannotStart(f"{file} is a damaged run: {error}") from None


def _second(found: dict[str, Any]) -> Second:
    return Second(**{**found, "bins": {int(index): count for index, count in found["bins"].items()}})
