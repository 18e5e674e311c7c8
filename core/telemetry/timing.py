"""Where a request's time goes, stage by stage; sent as Server-Timing (W3C) where that is switched on."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable

Stages = dict[str, float]
"""Milliseconds by stage, in the order in which the stages ended."""

_stages: contextvars.ContextVar[Stages | None] = contextvars.ContextVar("kservekit_stages", default=None)


def measure() -> Stages:
    """Collects the stages from now on, of this task and of the handler threads that work for it."""
    stages: Stages = {}
    _stages.set(stages)
    return stages


class stage:
    """Adds the time inside to stage `name`; a name may recur, and its times add up. `observe` is told the seconds.

    A class, because it stands several times in every request and a generator costs three times as much.
    """

    __slots__ = ("name", "observe", "stages", "start")

    def __init__(self, name: str, observe: Callable[[float], None] | None = None) -> None:
        self.name, self.observe = name, observe

    def __enter__(self) -> None:
        self.stages = _stages.get()
        self.start = time.perf_counter()

    def __exit__(self, *_error: object) -> None:
        spent = time.perf_counter() - self.start
        if self.observe is not None:
            self.observe(spent)
        if self.stages is not None:
            self.stages[self.name] = self.stages.get(self.name, 0.0) + spent * 1000


def as_header(stages: Stages) -> str:
    return ", ".join(f"{name};dur={milliseconds:.2f}" for name, milliseconds in stages.items())
