"""A run against an SLO: pass, fail, or no verdict at all. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

from kservekit.loadtest.run import Run
from kservekit.loadtest.slo import LATENCIES, Canary, Slo

PASS, FAIL, NO_DATA, TOO_SLOW = "pass", "fail", "no data", "generator too slow"
EXIT_CODES = {PASS: 0, FAIL: 1, NO_DATA: 3, TOO_SLOW: 3}

BUSY = 0.85
"""A generator whose loop has work for more of the time measures itself as well."""


@dataclass(frozen=True)
class Objective:
    name: str
    bound: float
    measured: float | None
    held: bool | None
    """None where there is nothing to measure."""
    text: str


@dataclass(frozen=True)
class Verdict:
    outcome: str
    """pass, fail, no data or generator too slow."""
    reason: str
    objectives: tuple[Objective, ...] = ()

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.outcome]

    def as_dict(self) -> dict[str, object]:
        return {**dataclasses.asdict(self), "exit_code": self.exit_code}


def judge(run: Run, slo: Slo) -> Verdict:
    objectives = tuple(_objectives(run, slo))
    if run.lost:
        names = ", ".join(run.lost)
        reason = f"no data: {len(run.lost)} of the load's generators lost, with what they counted: {names}"
        return Verdict(NO_DATA, reason, objectives)
    if not run.sent:
        return Verdict(NO_DATA, f"no data: no request was sent in {run.duration_s:.1f} s", objectives)
    if not run.ended:
        return Verdict(NO_DATA, f"no data: none of {run.sent} requests ended in {run.duration_s:.1f} s", objectives)
    if not run.answers:
        most = max(run.errors_by, key=lambda kind: run.errors_by[kind])
        return Verdict(FAIL, f"fail: none of {run.ended} requests had an answer; most often: {most}", objectives)
    rate = next((objective for objective in objectives if objective.name == "achieved_rate"), None)
    if rate and not rate.held and _own_fault(run):
        return Verdict(
            TOO_SLOW, f"no verdict, the generator could not keep up: {rate.text}; {_way_out(run)}", objectives
        )
    broken = [objective for objective in objectives if objective.held is False]
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        return Verdict(FAIL, f"fail: {broken[0].text}{more}", objectives)
    unknown = [objective for objective in objectives if objective.held is None]
    if unknown:
        return Verdict(NO_DATA, f"no data: {unknown[0].text}", objectives)
    return Verdict(PASS, f"pass: {run.answers} answers, {len(objectives)} of {len(objectives)} objectives", objectives)


def _own_fault(run: Run) -> bool:
    """Whether the generator had no time left, or was late without having waited for the server."""
    late_for_the_server = run.generator.get("blocked_s", 0.0) >= 0.05 * run.duration_s
    return run.generator.get("busy", 0.0) >= BUSY or not late_for_the_server


def _way_out(run: Run) -> str:
    busy = run.generator.get("busy", 0.0)
    return f"it was busy {busy:.0%} of the time: ask for less, or give it more cores or machines"


def _objectives(run: Run, slo: Slo) -> Iterator[Objective]:
    """What is asked for, most telling first."""
    open_loop = run.load.get("loop") == "open"
    if open_loop:
        share = run.sent / run.asked if run.asked else None
        blocked = run.generator.get("blocked_s", 0.0)
        waited = f", and {blocked:.1f} s were waits for a place among those in flight" if blocked >= 0.1 else ""
        yield _at_least(
            "achieved_rate",
            slo.achieved_rate,
            share,
            f"{run.sent} of {run.asked} requests were sent in the time of the run{waited}",
        )
    ended = run.ended
    yield _at_most(
        "error_rate", slo.error_rate, run.errors / ended if ended else None, f"{run.errors} errors of {ended}", "share"
    )
    for name in LATENCIES:
        bound = getattr(slo, name)
        if bound is not None:
            yield _at_most(name, bound, run.total.latency_ms.get(name.removesuffix("_ms")), name, "ms")
    if slo.cold_start_ms is not None:
        yield _at_most("cold_start_ms", slo.cold_start_ms, run.first_answer_ms, "the first answer", "ms")
    if slo.goodput is not None:
        asked = max(run.asked, ended)
        share = run.good / asked if asked else None
        yield _at_least("goodput", slo.goodput, share, f"{run.good} of {asked} answered within {slo.goodput_ms:g} ms")
    if slo.min_rate is not None:
        rate = run.answers / run.duration_s if run.duration_s else None
        yield _at_least("min_rate", slo.min_rate, rate, "answers a second", unit="/s")
    if slo.canary is not None:
        yield _split(run, slo.canary)


def _at_most(name: str, bound: float, measured: float | None, what: str, unit: str) -> Objective:
    held = None if measured is None else measured <= bound
    return Objective(
        name, bound, measured, held, f"{name} {_shown(measured, unit)}, at most {_shown(bound, unit)}{_of(name, what)}"
    )


def _at_least(name: str, bound: float, measured: float | None, what: str, unit: str = "share") -> Objective:
    held = None if measured is None else measured >= bound
    return Objective(
        name, bound, measured, held, f"{name} {_shown(measured, unit)}, at least {_shown(bound, unit)}{_of(name, what)}"
    )


def _of(name: str, what: str) -> str:
    return "" if what == name else f" ({what})"


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return "not measured"
    if unit == "share":
        return f"{100 * value:.4g} %"
    return f"{value:,.4g}{unit if unit == '/s' else f' {unit}'}" if value < 1e4 else f"{value:,.0f} {unit}"


def _split(run: Run, canary: Canary) -> Objective:
    """Whether chance alone explains how far the split is from what it is set to."""
    known = [part for part in run.parts if part.revision]
    whole = sum(part.answers + part.errors for part in known)
    mine = sum(part.answers + part.errors for part in known if part.revision == canary.revision)
    if not whole:
        text = "canary split not measured: no answer says its revision (kservekit-revision)"
        return Objective("canary", canary.share, None, None, text)
    low, high = wilson(mine, whole, canary.confidence)
    held = low <= canary.share <= high
    text = (
        f"canary {canary.revision!r} had {mine} of {whole} answers, {mine / whole:.2%}; set is {canary.share:.2%}, "
        f"and at {canary.confidence:.4g} confidence it is {low:.2%} to {high:.2%}"
    )
    return Objective("canary", canary.share, mine / whole, held, text)


def wilson(hits: int, count: int, confidence: float) -> tuple[float, float]:
    """Wilson's interval of a share."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = hits / count
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, (middle - half) / (1 + z * z / count)), min(1.0, (middle + half) / (1 + z * z / count))
