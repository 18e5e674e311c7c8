"""Two runs, or two revisions of one, side by side: better, worse, or cannot tell. Pure.

Requests close in time resemble each other, so what is drawn again in the bootstrap is not a request but a block of
seconds; where there are several runs of a side, first a run and then blocks of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kservekit.errors import CannotStart
from kservekit.loadtest.run import Run, Second, bin_seconds

BETTER, WORSE, CANNOT_TELL = "better", "worse", "cannot tell"

BLOCK_S = 5
FEWEST_BLOCKS = 6
DRAWS = 1000
CONFIDENCE = 0.99
LEAST = 0.02
"""A relative difference that nobody would act on; for error rates, in shares, a tenth of it."""

Side = Sequence[Sequence[Second]]
"""The seconds of each run of a side."""


@dataclass(frozen=True)
class Difference:
    name: str
    before: float
    after: float
    low: float
    """The interval of the difference: relative, but of the error rate itself, which may have been 0."""
    high: float
    verdict: str


@dataclass(frozen=True)
class Comparison:
    verdict: str
    reason: str
    differences: tuple[Difference, ...]


_MEASURES: tuple[tuple[str, bool], ...] = (("p50_ms", True), ("p90_ms", True), ("p99_ms", True), ("error_rate", False))
"""Whether a difference is relative."""


def compare(before: Side, after: Side, *, seed: int = 0) -> Comparison:
    """Of `after` against `before`. Worse in anything is worse. CannotStart where the runs are too short."""
    draw = np.random.default_rng(seed)
    sides = [[_blocks(run) for run in side] for side in (before, after)]
    for name, side in zip(("before", "after"), sides, strict=True):
        count = sum(map(len, side))
        if count < FEWEST_BLOCKS:
            least_s = FEWEST_BLOCKS * BLOCK_S
            raise CannotStart(f"{name} has {count} whole blocks of {BLOCK_S} s: expected {least_s} s or more")
    whole = [_measures(np.concatenate(side).sum(axis=0)) for side in sides]
    drawn = [np.array([_measures(_again(side, draw)) for _ in range(DRAWS)]) for side in sides]
    beyond = (1 - CONFIDENCE) / len(_MEASURES) / 2
    differences = []
    for at, (name, relative) in enumerate(_MEASURES):
        old, new = drawn[0][:, at], drawn[1][:, at]
        with np.errstate(all="ignore"):
            spread = new / old - 1 if relative else new - old
        if np.isnan(spread).all():
            continue
        low, high = (float(found) for found in np.nanquantile(spread, [beyond, 1 - beyond]))
        least = LEAST if relative else LEAST / 10
        verdict = WORSE if low > least else BETTER if high < -least else CANNOT_TELL
        differences.append(Difference(name, float(whole[0][at]), float(whole[1][at]), low, high, verdict))
    found = {difference.verdict for difference in differences}
    verdict = WORSE if WORSE in found else BETTER if BETTER in found else CANNOT_TELL
    return Comparison(verdict, _reason(verdict, differences), tuple(differences))


def sides_of(run: Run, before: str, after: str) -> tuple[Side, Side]:
    """Two revisions of one run: the fairest comparison, because they had the same minutes."""
    for name in (before, after):
        if name not in run.series:
            known = ", ".join(repr(revision) for revision in run.series) or "none"
            raise CannotStart(f"the run has no revision {name!r}; it has {known}")
    return [run.series[before]], [run.series[after]]


def _reason(verdict: str, differences: Sequence[Difference]) -> str:
    said = [difference for difference in differences if difference.verdict == verdict]
    if verdict == CANNOT_TELL:
        wide = max(
            (max(abs(one.low), abs(one.high)) for one in differences if one.name != "error_rate"), default=math.nan
        )
        return f"cannot tell: every interval has no difference in it; the widest reaches {wide:.0%}"
    return f"{verdict}: " + ", ".join(_shown(one) for one in said)


def _shown(one: Difference) -> str:
    if one.name == "error_rate":
        return f"error_rate {one.before:.2%} -> {one.after:.2%}"
    change = one.after / one.before - 1
    return f"{one.name} {one.before:.3g} -> {one.after:.3g} ({change:+.1%}, {one.low:+.1%} to {one.high:+.1%})"


MOST_BINS = 2300
"""An hour's bin and some."""


def _blocks(run: Sequence[Second]) -> np.ndarray:
    """A row for each block: how many latencies in each bin, then answers and errors."""
    rows = []
    for begin in range(0, len(run) - BLOCK_S + 1, BLOCK_S):
        row = np.zeros(MOST_BINS + 2)
        for second in run[begin : begin + BLOCK_S]:
            for index, count in second.bins.items():
                row[min(index, MOST_BINS - 1)] += count
            row[-2] += second.answers
            row[-1] += second.errors
        rows.append(row)
    return np.array(rows) if rows else np.zeros((0, MOST_BINS + 2))


def _again(side: Sequence[np.ndarray], draw: np.random.Generator) -> np.ndarray:
    runs = [side[at] for at in draw.integers(len(side), size=len(side))] if len(side) > 1 else side
    total = np.zeros(MOST_BINS + 2)
    for blocks in runs:
        times = np.bincount(draw.integers(len(blocks), size=len(blocks)), minlength=len(blocks))
        total += times @ blocks
    return total


_EDGES = np.array([bin_seconds(index) * 1000 for index in range(MOST_BINS)])


def _measures(row: np.ndarray) -> list[float]:
    cumulated = np.cumsum(row[:MOST_BINS])
    count = cumulated[-1]
    ended = row[-2] + row[-1]
    found = [
        float(_EDGES[min(int(np.searchsorted(cumulated, count * percent / 100)), MOST_BINS - 1)]) if count else math.nan
        for percent in (50, 90, 99)
    ]
    return [*found, float(row[-1] / ended) if ended else math.nan]
