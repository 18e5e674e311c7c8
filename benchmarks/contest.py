"""What a benchmark is made of: rows of contenders, a course that each of them runs, and what it is held to. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Protocol

OURS, STOCK, TRITON, BARE = "ours", "stock", "Triton", "bare"
ONE_WORKER, UNBATCHED = "1 worker", "unbatched"


class Server(Protocol):
    """What kservekit.local's servers have in common."""

    http_url: str
    """host:port."""
    grpc_url: str


class Stage(Protocol):
    """What contenders share: the Triton behind the transformers."""

    def triton(self) -> Server:
        """Started at the first call; TritonUnavailable where this machine can have none."""
        ...


@dataclass(frozen=True)
class Figure:
    """One measurement."""

    value: float
    p50_s: float | None = None
    p99_s: float | None = None


@dataclass(frozen=True)
class Unit:
    """How a row's values are written."""

    what: str
    text: Callable[[float], str]


@dataclass(frozen=True)
class Target:
    """At least (or at most) `bound` times the best of `against`; without `against`, `bound` itself."""

    bound: float
    against: str = ""
    at_most: bool = False
    goal: bool = False
    """Hoped for, where something else is the floor."""


@dataclass(frozen=True)
class Contender:
    side: str
    """Whose it is, and what ratios are taken to."""
    handler: str
    """plain, async or identity: what its handler is."""
    serve: Callable[[Stage], AbstractContextManager[Server]]
    note: str = ""
    targets: tuple[Target, ...] = ()
    workers: int = 1

    @property
    def name(self) -> str:
        return f"{self.side}, {self.note}" if self.note else self.side


Measure = Callable[[], Figure]


class Course(Protocol):
    @property
    def unit(self) -> Unit: ...

    @property
    def needs(self) -> tuple[str, ...]:
        """The programs that it runs."""
        ...

    def prepare(self, contender: Contender, stage: Stage, stack: ExitStack, seconds: int) -> Measure:
        """The contender ready and warm (what is started is `stack`'s to stop), and the way to measure it once.

        WrongAnswer or CannotStart, here and from the measure, where it does not serve correctly.
        """
        ...


@dataclass(frozen=True)
class Row:
    name: str
    title: str
    course: Course
    contenders: tuple[Contender, ...]


@dataclass
class Result:
    contender: Contender
    figures: list[Figure] = field(default_factory=list)
    failure: str = ""
    """Why it did not serve correctly."""
    absent: str = ""
    """Why it cannot take part on this machine."""

    @property
    def median(self) -> float:
        return statistics.median(figure.value for figure in self.figures) if self.figures else math.nan

    def latency(self, name: str) -> float | None:
        """The median over the repeats of `p50_s` or `p99_s`."""
        found = [value for figure in self.figures if (value := getattr(figure, name)) is not None]
        return statistics.median(found) if found else None


def ratios(result: Result, results: list[Result]) -> dict[str, float]:
    """A result's median over the best median of every other side that has a figure."""
    found: dict[str, float] = {}
    for other in results:
        side = other.contender.side
        if side not in (OURS, result.contender.side) and other.figures:
            found[side] = max(found.get(side, 0.0), other.median)
    return {side: result.median / best for side, best in found.items() if best}


def met(target: Target, result: Result, results: list[Result]) -> bool | None:
    """None where there is nothing to compare."""
    value = ratios(result, results).get(target.against) if target.against else result.median
    if value is None or math.isnan(value):
        return None
    return value <= target.bound if target.at_most else value >= target.bound
