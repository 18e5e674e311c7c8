"""Counts what becomes of requests, in memory that does not grow with the length of the run."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from hdrh.histogram import HdrHistogram

from kservekit.loadtest.request_id import RequestId
from kservekit.loadtest.run import Part, Second, Slow, bin_of, together

PERCENTILES = {"p50": 50.0, "p75": 75.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p999": 99.9, "max": 100.0}

LONGEST_US = 3_600_000_000
DIGITS, APART_BITS = 3, 11
"""Of a latency, so that no percentile is wrong by more than 0.1 %."""

MOST_SLOTS = 1024
"""Of the series; twice as wide each time that it would have more."""
MOST_KINDS = 64
"""Of errors, and of combinations of wire, name and revision; the rest is counted as `other`."""

SLOWEST = 10
"""Requests whose ids are kept, and as many of those with spans."""

UNNAMED = RequestId("", "")

TIMED_OUT = "timed out"


@dataclass(slots=True)
class Outcome:
    """Of one request."""

    error: str = ""
    """Its kind and status, such as `HTTP 503`; empty where there was an answer."""
    revision: str = ""
    received: int = 0
    server_timing: str = ""
    """What the server says of where its time went."""
    request_id: str = ""
    """What the answer calls the request, where a proxy gave it another id than it came with."""
    attempts: int = 0
    """How often a proxy asked until it had this answer; 0 where nobody says so."""


@dataclass
class _Tally:
    """Latencies by microsecond, those together that are one to an HdrHistogram, which takes 4 us to take in one."""

    answers: int = 0
    errors: int = 0
    good: int = 0
    latency: dict[int, int] = field(default_factory=dict)
    from_send: dict[int, int] = field(default_factory=dict)

    def add(self, other: _Tally) -> None:
        self.answers += other.answers
        self.errors += other.errors
        self.good += other.good
        for mine, theirs in ((self.latency, other.latency), (self.from_send, other.from_send)):
            for us, count in theirs.items():
                mine[us] = mine.get(us, 0) + count


class Recorder:
    """Times are seconds from the beginning of the run. `good_ms`: up to which latency an answer is a good one."""

    def __init__(self, *, good_ms: float | None = None) -> None:
        self._good_s = math.inf if good_ms is None else good_ms / 1000
        self.asked = self.sent = self.answers = self.errors = self.good = 0
        self.sent_bytes = self.received_bytes = 0
        self.first_answer_s: float | None = None
        self.errors_by: dict[str, int] = {}
        self.retries: int | None = None
        self._slow: list[Slow] = []
        self._slow_with_spans: list[Slow] = []
        self._stages: dict[str, list[float]] = {}
        self.width_s = 1
        self._tallies: dict[tuple[str, str, str], _Tally] = {}
        self._asked: dict[int, int] = {}
        self._sent: dict[int, int] = {}
        self._series: dict[str, dict[int, Second]] = {}

    def ask(self, due_s: float) -> None:
        """A request ought to start."""
        self.asked += 1
        slot = self._slot(due_s)
        self._asked[slot] = self._asked.get(slot, 0) + 1

    def send(self, at_s: float, size: int) -> None:
        """It does."""
        self.sent += 1
        self.sent_bytes += size
        slot = self._slot(at_s)
        self._sent[slot] = self._sent.get(slot, 0) + 1

    def end(
        self,
        wire: str,
        name: str,
        outcome: Outcome,
        named: RequestId = UNNAMED,
        *,
        due_s: float,
        sent_s: float,
        end_s: float,
    ) -> None:
        """It is over."""
        revision = outcome.revision
        tally = self._tallies.get((wire, name, revision)) or self._tally(wire, name, revision)
        series = self._series.get(revision)
        if series is None:
            series = self._series_of(revision)
        slot = self._slot(due_s)
        second = series.get(slot)
        if second is None:
            second = series[slot] = Second()
        latency_s = end_s - due_s
        self.received_bytes += outcome.received
        if outcome.attempts:
            self.retries = (self.retries or 0) + outcome.attempts - 1
        self._keep_slow(latency_s, due_s, name, outcome, named)
        if outcome.error:
            self.errors += 1
            tally.errors += 1
            second.errors += 1
            self._count_error(outcome.error)
            if outcome.error != TIMED_OUT:
                return
        else:
            self.answers += 1
            tally.answers += 1
            second.answers += 1
            if outcome.server_timing:
                self._add_stages(outcome.server_timing)
            if self.first_answer_s is None:
                self.first_answer_s = latency_s
            if latency_s <= self._good_s:
                self.good += 1
                tally.good += 1
        us = _us(latency_s)
        tally.latency[us] = tally.latency.get(us, 0) + 1
        us = _us(end_s - sent_s)
        tally.from_send[us] = tally.from_send.get(us, 0) + 1
        index = bin_of(latency_s)
        second.bins[index] = second.bins.get(index, 0) + 1

    def slowest(self) -> list[Slow]:
        return sorted([*self._slow, *self._slow_with_spans], reverse=True)

    def stages_ms(self) -> dict[str, float]:
        """Means of the answers that had the stage."""
        return {name: spent / count for name, (count, spent) in self._stages.items()}

    def last_bins(self) -> dict[int, int]:
        """Of the last two slots with an answer in them, for whoever watches."""
        return together(series[slot] for series in self._series.values() for slot in sorted(series)[-2:]).bins

    def answers_by(self) -> dict[str, int]:
        """By revision."""
        found: dict[str, int] = {}
        for (_, _, revision), tally in self._tallies.items():
            found[revision] = found.get(revision, 0) + tally.answers
        return found

    def latencies_us(self) -> dict[str, dict[int, int]]:
        """By revision, how many of each latency, in microseconds from the intended start."""
        found: dict[str, _Tally] = {}
        for (_, _, revision), tally in self._tallies.items():
            found.setdefault(revision, _Tally()).add(tally)
        return {revision: tally.latency for revision, tally in found.items()}

    def parts(self) -> list[Part]:
        return [_part(*key, [tally]) for key, tally in sorted(self._tallies.items())]

    def total(self) -> Part:
        return _part("", "", "", self._tallies.values())

    def series(self) -> tuple[list[int], list[int], dict[str, list[Second]]]:
        """Asked, sent, and what came of it by revision; an entry for each `width_s`."""
        every: list[Iterable[int]] = [self._asked, self._sent, *self._series.values()]
        length = max((slot for series in every for slot in series), default=-1) + 1
        return (
            [self._asked.get(slot, 0) for slot in range(length)],
            [self._sent.get(slot, 0) for slot in range(length)],
            {
                revision: [series.get(slot) or Second() for slot in range(length)]
                for revision, series in self._series.items()
            },
        )

    def add(self, other: Recorder) -> None:
        """What another generator of the same run counted. Nothing is rounded by it."""
        for name in ("asked", "sent", "answers", "errors", "good", "sent_bytes", "received_bytes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if other.first_answer_s is not None:  # all of them met the cold start, and one of them first
            self.first_answer_s = max(self.first_answer_s or 0.0, other.first_answer_s)
        for kind, count in other.errors_by.items():
            self._count_error(kind, count)
        for name, (times, spent) in other._stages.items():
            self._add_stage(name, int(times), spent)
        for key, theirs in other._tallies.items():
            (self._tallies.get(key) or self._tally(*key)).add(theirs)
        while self.width_s < other.width_s:
            self._widen()
        if other.retries is not None:
            self.retries = (self.retries or 0) + other.retries
        for kept, theirs_slow in ((self._slow, other._slow), (self._slow_with_spans, other._slow_with_spans)):
            kept[:] = sorted(heapq.nlargest(SLOWEST, [*kept, *theirs_slow]))
        narrower = self.width_s // other.width_s
        for mine, counts in ((self._asked, other._asked), (self._sent, other._sent)):
            for slot, count in counts.items():
                mine[slot // narrower] = mine.get(slot // narrower, 0) + count
        for revision, series in other._series.items():
            ours = self._series_of(revision)
            for slot, second in series.items():
                ours.setdefault(slot // narrower, Second()).add(second)

    def as_data(self) -> dict[str, Any]:
        """All of it, as mappings, lists, numbers and text."""
        apart = ("_good_s", "_tallies", "_series", "_slow", "_slow_with_spans")
        plain = {name: value for name, value in vars(self).items() if name not in apart}
        return plain | {
            "_slow": [vars(slow) for slow in self._slow],
            "_slow_with_spans": [vars(slow) for slow in self._slow_with_spans],
            "_tallies": [[*key, vars(tally)] for key, tally in self._tallies.items()],
            "_series": {
                revision: {slot: vars(second) for slot, second in series.items()}
                for revision, series in self._series.items()
            },
        }

    @classmethod
    def from_data(cls, found: dict[str, Any]) -> Recorder:
        """Of what `as_data` gave."""
        recorder = cls()
        vars(recorder).update(found)
        recorder._slow = [Slow(**slow) for slow in found["_slow"]]
        recorder._slow_with_spans = [Slow(**slow) for slow in found["_slow_with_spans"]]
        recorder._tallies = {(wire, name, arm): _Tally(**tally) for wire, name, arm, tally in found["_tallies"]}
        recorder._series = {
            revision: {slot: Second(**second) for slot, second in series.items()}
            for revision, series in found["_series"].items()
        }
        return recorder

    def _keep_slow(self, latency_s: float, due_s: float, name: str, outcome: Outcome, named: RequestId) -> None:
        kept = self._slow_with_spans if named.traceparent else self._slow
        latency_ms = latency_s * 1000
        if len(kept) == SLOWEST and latency_ms <= kept[0].latency_ms:
            return
        request_id = outcome.request_id or named.request_id
        slow = Slow(latency_ms, due_s, name, outcome.revision, outcome.error, request_id, named.trace_id)
        if len(kept) < SLOWEST:
            heapq.heappush(kept, slow)
        else:
            heapq.heapreplace(kept, slow)

    def _count_error(self, kind: str, count: int = 1) -> None:
        kind = kind if kind in self.errors_by or len(self.errors_by) < MOST_KINDS else "other"
        self.errors_by[kind] = self.errors_by.get(kind, 0) + count

    def _series_of(self, revision: str) -> dict[int, Second]:
        if revision not in self._series and len(self._series) >= MOST_KINDS:
            revision = "other"
        return self._series.setdefault(revision, {})

    def _add_stage(self, name: str, count: int, spent_ms: float) -> None:
        if name in self._stages or len(self._stages) < MOST_KINDS:
            total = self._stages.setdefault(name, [0, 0.0])
            total[0] += count
            total[1] += spent_ms

    def _add_stages(self, header: str) -> None:
        for metric in header.split(","):
            name, _, value = metric.strip().partition(";dur=")
            with suppress(ValueError):
                self._add_stage(name, 1, float(value))

    def _tally(self, wire: str, name: str, revision: str) -> _Tally:
        key = (wire, name, revision) if len(self._tallies) < MOST_KINDS else (wire, "other", "other")
        return self._tallies.setdefault(key, _Tally())

    def _slot(self, at_s: float) -> int:
        slot = max(0, int(at_s / self.width_s))
        while slot >= MOST_SLOTS:
            self._widen()
            slot = int(at_s / self.width_s)
        return slot

    def _widen(self) -> None:
        self.width_s *= 2
        for counts in (self._asked, self._sent):
            merged: dict[int, int] = {}
            for slot, count in counts.items():
                merged[slot // 2] = merged.get(slot // 2, 0) + count
            counts.clear()
            counts.update(merged)
        for series in self._series.values():
            wider: dict[int, Second] = {}
            for slot, second in series.items():
                wider.setdefault(slot // 2, Second()).add(second)
            series.clear()
            series.update(wider)


def _us(seconds: float) -> int:
    us = min(max(1, int(seconds * 1e6)), LONGEST_US)
    apart = us.bit_length() - APART_BITS
    return us >> apart << apart if apart > 0 else us


def _part(wire: str, name: str, revision: str, tallies: Iterable[_Tally]) -> Part:
    whole = _Tally()
    for tally in tallies:
        whole.add(tally)
    figures = _milliseconds(whole.latency), _milliseconds(whole.from_send)
    return Part(wire, name, revision, whole.answers, whole.errors, whole.good, *figures, _as_hdr(whole.latency))


def _milliseconds(counts: dict[int, int]) -> dict[str, float]:
    """A value stands for the middle of those that are one with it."""
    if not counts:
        return {}
    count = sum(counts.values())
    found = {"mean": sum(_middle(us) * times for us, times in counts.items()) / count / 1000}
    ordered = iter(sorted(counts.items()))
    us = passed = 0
    for name, percent in PERCENTILES.items():
        rank = max(1, math.ceil(count * percent / 100))
        while passed < rank:
            us, times = next(ordered)
            passed += times
        found[name] = _middle(us) / 1000
    return found


def _middle(us: int) -> float:
    apart = us.bit_length() - APART_BITS
    return us + (1 << apart) / 2 if apart > 0 else float(us)


def _as_hdr(counts: dict[int, int]) -> str:
    histogram: Any = HdrHistogram(1, LONGEST_US, DIGITS)
    for us, count in counts.items():
        histogram.record_value(us, count)
    encoded: bytes = histogram.encode()
    return encoded.decode()
