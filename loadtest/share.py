"""What one generator of a run counted, as data that travels, and the run that one or several of them are. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kservekit.loadtest.recorder import Recorder
from kservekit.loadtest.run import Run
from kservekit.loadtest.shapes import Closed, Load
from kservekit.loadtest.target import Target


@dataclass
class Share:
    recorder: Recorder
    started: str
    duration_s: float
    generator: dict[str, float]
    """busy: share of the time that its loop had work; blocked_s: waits for a place among those in flight."""
    environment: dict[str, str]

    def as_data(self) -> dict[str, Any]:
        """As mappings, lists, numbers and text; a view, to be sent before more is counted."""
        return vars(self) | {"recorder": self.recorder.as_data()}

    @classmethod
    def from_data(cls, found: dict[str, Any]) -> Share:
        return cls(**found | {"recorder": Recorder.from_data(found["recorder"])})


def run_of(
    shares: Sequence[Share],
    target: Target,
    load: Load | Closed,
    max_in_flight: int,
    *,
    lost: Sequence[str] = (),
    interrupted: bool = False,
) -> Run:
    """At least one share. Counts and histograms are sums, and a generator that had no time left speaks for all."""
    recorder = Recorder()
    for share in shares:
        recorder.add(share.recorder)
    asked, sent, series = recorder.series()
    duration_s = max(share.duration_s for share in shares)
    first = recorder.first_answer_s
    return Run(
        target={
            key: value
            for key, value in (
                ("url", target.url),
                ("model", target.model),
                ("version", target.version),
                ("wire", target.wire),
                ("host", target.host),
            )
            if value
        },
        load=_described(load, recorder, duration_s) | {"max_in_flight": max_in_flight},
        started=min(share.started for share in shares),
        duration_s=duration_s,
        asked=recorder.asked,
        sent=recorder.sent,
        answers=recorder.answers,
        errors=recorder.errors,
        good=recorder.good,
        sent_bytes=recorder.sent_bytes,
        received_bytes=recorder.received_bytes,
        first_answer_ms=None if first is None else first * 1000,
        errors_by=dict(recorder.errors_by),
        total=recorder.total(),
        parts=recorder.parts(),
        width_s=recorder.width_s,
        asked_series=asked,
        sent_series=sent,
        series=series,
        generator={name: max(share.generator[name] for share in shares) for name in shares[0].generator},
        environment=_environment(shares),
        server_ms=recorder.stages_ms(),
        retries=recorder.retries,
        slowest=recorder.slowest(),
        lost=list(lost),
        interrupted=interrupted,
    )


def _environment(shares: Sequence[Share]) -> dict[str, str]:
    if len(shares) == 1:
        return shares[0].environment
    generators = {
        f"generator {number}": f"{share.environment['machine']}, {share.generator['busy']:.0%} busy, "
        f"{share.recorder.sent:,} of {share.recorder.asked:,} requests sent"
        for number, share in enumerate(shares, 1)
    }
    common = {name: value for name, value in shares[0].environment.items() if name not in ("machine", "load average")}
    return generators | common


def _described(load: Load | Closed, recorder: Recorder, duration_s: float) -> dict[str, Any]:
    if isinstance(load, Closed):
        return {"loop": "closed", "users": load.users, "think_s": load.think_s}
    found: dict[str, Any] = {"loop": "open", "shape": load.text}
    if load.seed is not None:
        found["seed"] = load.seed
    return found | {"asked_per_s": recorder.asked / duration_s if duration_s else 0.0}
