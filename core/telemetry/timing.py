"""Where a request's time goes, stage by stage; sent as Server-Timing (W3C) where that is switched on."""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Iterator

Stages = dict[str, float]
"""Milliseconds by stage, in the order in which the stages ended."""

_stages: contextvars.ContextVar[Stages | None] = contextvars.ContextVar("kservekit_stages", default=None)


@contextlib.contextmanager
def measured() -> Iterator[Stages]:
    """Collects the stages of everything inside, threads of the handler pool included."""
    stages: Stages = {}
    token = _stages.set(stages)
    try:
        yield stages
    finally:
        _stages.reset(token)


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Adds the time inside to stage `name`; a name may recur, and its times add up."""
    stages = _stages.get()
    if stages is None:
        yield
        return
    start = time.perf_counter()
    try:
        yield
    finally:
        stages[name] = stages.get(name, 0.0) + (time.perf_counter() - start) * 1000


def as_header(stages: Stages) -> str:
    return ", ".join(f"{name};dur={milliseconds:.2f}" for name, milliseconds in stages.items())
