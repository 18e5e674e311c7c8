"""The highest rate that holds an SLO: up by doubling until it breaks, then by halves. Pure, and the trials by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

GROWTH = 0.10
GROWTH_MS = 1.0
"""Answers become slower and slower where each of a trial's last quarters has a median that is more than a tenth, and a
millisecond, above the one before. That it goes up and down is no sign of a queue."""

PRECISION = 0.05
MOST_TRIALS = 24


@dataclass(frozen=True)
class Trial:
    rate: float
    held: bool
    """The SLO, and stably so."""
    reason: str
    own_fault: bool = False
    """The generator was too slow, so that nothing is known of the server."""


@dataclass
class Limit:
    rate: float
    """The highest that held; 0 where none did."""
    broke_at: float | None
    """The lowest that did not; None where the search ended before one was found."""
    reason: str
    trials: list[Trial] = field(default_factory=list)


def is_stable(medians_ms: Sequence[float]) -> bool:
    """Whether the answers of a trial did not become slower and slower: its parts' medians, in order."""
    last = medians_ms[-3:]
    if len(last) < 3 or any(map(math.isnan, last)):
        return False
    return not all(new > max(old * (1 + GROWTH), old + GROWTH_MS) for old, new in itertools.pairwise(last))


def search(trial: Callable[[float], Trial], start: float, *, most: float) -> Limit:
    """A rate that breaks is tried once more, so that a single bad moment is not taken for the limit."""
    trials: list[Trial] = []

    def holds(rate: float) -> bool:
        for _ in range(2):
            trials.append(trial(rate))
            if trials[-1].held or trials[-1].own_fault:
                break
        return trials[-1].held

    held, broke = 0.0, None
    rate = start
    while len(trials) < MOST_TRIALS:
        if holds(rate):
            held = rate
        else:
            broke = rate
        if broke is None and held >= most:
            return Limit(held, None, f"{held:g}/s held, the most that was to be tried", trials)
        if broke is None:
            rate = min(most, held * 2)
        elif held == 0.0:
            rate = broke / 2
            if rate < start / 64:
                break
        elif broke <= held * (1 + PRECISION):
            break
        else:
            rate = (held + broke) / 2
    last = next((one for one in reversed(trials) if one.rate == broke), None)
    if last is None:
        reason = f"{held:g}/s held; after {MOST_TRIALS} trials none had broken"
    elif last.own_fault:
        reason = f"{held:g}/s held; at {last.rate:g}/s the generator gave out, not the server: {last.reason}"
    else:
        reason = f"{held:g}/s held, {last.rate:g}/s did not: {last.reason}"
    return Limit(held, broke, reason, trials)
