"""When requests ought to start: seconds from the run's beginning, whatever becomes of the requests. Pure."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence

Curve = Sequence[tuple[float, float]]
"""Seconds and requests a second there; straight lines between, and a jump where a second is there twice."""

DIURNAL_PIECES = 96
"""Straight pieces that stand for one period: a quarter of an hour each where it is a day."""


def constant(rate: float, duration_s: float) -> Curve:
    """`duration_s` may be infinite."""
    return [(0.0, rate), (duration_s, rate)]


def ramp(low: float, high: float, duration_s: float) -> Curve:
    return [(0.0, low), (duration_s, high)]


def steps(low: float, high: float, count: int, duration_s: float) -> Curve:
    """`count` flat steps of the same length, the first at `low` and the last at `high`."""
    rates = [low + (high - low) * index / max(count - 1, 1) for index in range(count)]
    length = duration_s / count
    return [
        point for index, rate in enumerate(rates) for point in ((index * length, rate), ((index + 1) * length, rate))
    ]


def spike(rate: float, peak: float, at_s: float, for_s: float, duration_s: float) -> Curve:
    """`peak` from `at_s` on for `for_s`, and `rate` before and after."""
    begin, end = min(at_s, duration_s), min(at_s + for_s, duration_s)
    return [(0.0, rate), (begin, rate), (begin, peak), (end, peak), (end, rate), (duration_s, rate)]


def diurnal(low: float, high: float, period_s: float, duration_s: float) -> Curve:
    """A day: from `low` up to `high` in the middle of the period and down again, over and over."""
    count = max(2, math.ceil(duration_s / period_s * DIURNAL_PIECES))
    times = [duration_s * index / count for index in range(count + 1)]
    return [(at, low + (high - low) * (1 - math.cos(2 * math.pi * at / period_s)) / 2) for at in times]


def arrivals(curve: Curve, *, seed: int | None = None) -> Iterator[float]:
    """Starts that follow the curve: evenly, or with a seed as a Poisson process, the same one for the same seed."""
    gaps = random.Random(seed)  # noqa: S311  a load, not a secret
    due = 0.0 if seed is None else gaps.expovariate(1.0)
    passed = 0.0  # requests that the curve asks for up to the segment
    for (begin, low), (end, high) in itertools.pairwise(curve):
        length = end - begin
        if length <= 0:
            continue
        asked = math.inf if math.isinf(length) else (low + high) / 2 * length
        slope = 0.0 if math.isinf(length) else (high - low) / length
        while due < passed + asked * (1 - 1e-12):
            yield begin + _seconds(due - passed, low, slope)
            due += 1.0 if seed is None else gaps.expovariate(1.0)
        passed += asked


def _seconds(requests: float, rate: float, slope: float) -> float:
    """How long it takes until so many are asked for."""
    root = math.sqrt(max(0.0, rate * rate + 2 * slope * requests))
    return 2 * requests / (rate + root) if requests else 0.0


def recorded(timestamps: Iterable[float], *, speed: float = 1.0) -> Iterator[float]:
    """What was recorded once, from its first request on; twice as fast with a `speed` of 2."""
    ordered = sorted(timestamps)
    return ((at - ordered[0]) / speed for at in ordered)


def asked_in(curve: Curve) -> float:
    """Requests that the whole curve asks for."""
    return sum((low + high) / 2 * (end - begin) for (begin, low), (end, high) in itertools.pairwise(curve))
