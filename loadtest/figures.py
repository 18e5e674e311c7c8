"""The figures of a run that is under way, in no system's own form. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from kservekit.loadtest.recorder import Recorder
from kservekit.loadtest.run import percentile_of

BOUNDS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
"""Upper bounds of a histogram's buckets, each with its bound in it; one more has what is above."""

QUANTILES = (0.5, 0.9, 0.99, 0.999)

COUNTER, GAUGE = "counter", "gauge"


@dataclass(frozen=True)
class Figure:
    name: str
    kind: str
    unit: str
    """As OpenTelemetry has it: s, 1, {request}."""
    what: str
    points: list[tuple[dict[str, str], float]]


@dataclass(frozen=True)
class Buckets:
    counts: list[int]
    sum_s: float
    low_s: float
    high_s: float


@dataclass(frozen=True)
class Histogram:
    name: str
    what: str
    points: list[tuple[dict[str, str], Buckets]]


def figures(
    recorder: Recorder, labels: Mapping[str, str], *, in_flight: int, busy: float
) -> tuple[list[Figure], Histogram]:
    """Counts since the run's beginning, and what is at the moment. `labels` go with each of them."""

    def figure(name: str, kind: str, unit: str, what: str, points: Mapping[tuple[str, str], float]) -> Figure:
        return Figure(
            f"kservekit_loadtest_{name}",
            kind,
            unit,
            what,
            [({**labels, **({key: value} if key else {})}, number) for (key, value), number in points.items()],
        )

    alone = ("", "")
    arms = {("revision", arm): count for arm, count in recorder.answers_by().items()}
    errors = {("kind", kind): count for kind, count in recorder.errors_by.items()}
    bins = recorder.last_bins()
    recent = {("quantile", f"{one:g}"): percentile_of(bins, one * 100) for one in QUANTILES} if bins else {}
    found = [
        figure("asked", COUNTER, "{request}", "Requests whose time to start had come", {alone: recorder.asked}),
        figure("sent", COUNTER, "{request}", "Requests sent", {alone: recorder.sent}),
        figure("answers", COUNTER, "{request}", "Answers", arms),
        figure("errors", COUNTER, "{request}", "Errors", errors),
        figure("in_flight", GAUGE, "{request}", "Requests without an answer yet", {alone: in_flight}),
        figure("busy", GAUGE, "1", "Share of the time in which the generator had no rest", {alone: busy}),
        figure("recent_latency", GAUGE, "s", "Latency of the last two seconds, from the intended start", recent),
    ]
    if recorder.retries is not None:
        found.append(figure("retries", COUNTER, "{request}", "Retries of a proxy", {alone: recorder.retries}))
    latency = Histogram(
        "kservekit_loadtest_latency",
        "Latency of answers and time-outs, from the intended start",
        [({**labels, "revision": arm}, _buckets(us)) for arm, us in recorder.latencies_us().items() if us],
    )
    return found, latency


def _buckets(counts: Mapping[int, int]) -> Buckets:
    found = [0] * (len(BOUNDS_S) + 1)
    total_us = 0
    for us, count in counts.items():
        found[bisect_left(BOUNDS_S, us / 1e6)] += count
        total_us += us * count
    return Buckets(found, total_us / 1e6, min(counts) / 1e6, max(counts) / 1e6)
