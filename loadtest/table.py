"""A run in a terminal: a line a second while it goes on, a table at its end. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from kservekit.loadtest.compare import Comparison
from kservekit.loadtest.limit import Limit
from kservekit.loadtest.request_id import REQUEST_ID
from kservekit.loadtest.run import Part, Run
from kservekit.loadtest.target import ATTEMPTS
from kservekit.loadtest.verdict import Verdict

PERCENTILES = ("p50", "p90", "p95", "p99", "p999", "max")

SHOWN_SLOW = 3

_COLUMNS = {"second": 7, "asked": 9, "sent": 9, "answers": 9, "errors": 8, "in flight": 11, "p50 ms": 9, "p99 ms": 9}

PROGRESS_HEAD = "".join(name.rjust(width) for name, width in _COLUMNS.items()) + "  busy"


def progress(
    second: int,
    asked: int,
    sent: int,
    answers: int,
    errors: int,
    in_flight: int,
    p50_s: float,
    p99_s: float,
    busy: float,
) -> str:
    """Counts since the line before."""
    counts = [f"{count:,}" for count in (asked, sent, answers, errors, in_flight)]
    cells = [f"{second}", *counts, _ms(p50_s * 1000), _ms(p99_s * 1000)]
    return "".join(map(str.rjust, cells, _COLUMNS.values())) + f"{busy:>6.0%}"


def summary(run: Run, verdict: Verdict) -> str:
    lines = [title(run), "", *_latencies(run), ""]
    seconds = run.duration_s or 1.0
    lines.append(
        f"{run.sent / seconds:,.1f} requests and {run.answers / seconds:,.1f} answers a second "
        f"for {run.duration_s:.1f} s; "
        f"{run.sent_bytes / seconds / 1e6:,.2f} MB/s out, {run.received_bytes / seconds / 1e6:,.2f} MB/s in; "
        f"generator {run.generator.get('busy', 0):.0%} busy"
    )
    if run.server_ms:
        stages = ", ".join(f"{name} {_ms(value)}" for name, value in run.server_ms.items())
        lines.append(f"means in ms: {_ms(run.total.latency_ms.get('mean', float('nan')))} here; at the server {stages}")
    lines += [
        f"  {count:,} x {kind}" for kind, count in sorted(run.errors_by.items(), key=lambda item: item[1], reverse=True)
    ]
    if run.retries is not None:
        lines.append(f"  {run.retries:,} retries of a proxy, by {ATTEMPTS}")
    for slow in run.slowest[:SHOWN_SLOW]:
        found_as = f"{REQUEST_ID} {slow.request_id}" + (f", trace {slow.trace_id}" if slow.trace_id else "")
        lines.append(f"  slow: {_ms(slow.latency_ms)} ms, due at {slow.due_s:.1f} s: {found_as}")
    lines.append("")
    lines += [f"  {mark(objective.held)}  {objective.text}" for objective in verdict.objectives]
    return "\n".join([*lines, "", verdict.reason])


def title(run: Run) -> str:
    load = run.load
    if load["loop"] == "closed":
        how = f"closed loop, {load['users']} users, {load['think_s']:g} s of thinking"
    else:
        random = f", Poisson, seed {load['seed']}" if "seed" in load else ""
        how = f"open loop, {load['shape']}{random}, {load['asked_per_s']:,.1f} asked a second"
    stopped = ", interrupted" if run.interrupted else ""
    return f"{run.target['model']} at {run.target['url']} by {run.target['wire']}: {how}{stopped}"


def mark(held: bool | None) -> str:
    return {True: "held  ", False: "BROKEN", None: "no data"}[held]


def limit(found: Limit) -> str:
    lines = [f"{'rate':>10}  held  why"]
    lines += [f"{trial.rate:>10,.1f}  {'yes ' if trial.held else 'no  '}  {trial.reason}" for trial in found.trials]
    return "\n".join([*lines, "", f"limit: {found.reason}"])


def comparison(found: Comparison) -> str:
    lines = [f"{'':12}{'before':>10}{'after':>10}{'difference':>12}   interval"]
    for one in found.differences:
        if one.name == "error_rate":
            cells = f"{one.before:>10.3%}{one.after:>10.3%}{one.after - one.before:>+12.3%}"
        else:
            cells = f"{_ms(one.before):>10}{_ms(one.after):>10}{one.after / one.before - 1:>+12.1%}"
        lines.append(f"{one.name:12}{cells}   {one.low:+.1%} to {one.high:+.1%}   {one.verdict}")
    return "\n".join([*lines, "", found.reason])


def _latencies(run: Run) -> Iterator[str]:
    """From the intended start; and from the send, which hides how long a request had to wait for its turn."""
    yield f"{'ms':34}{'answers':>9}{'errors':>8}" + "".join(f"{name:>10}" for name in PERCENTILES)
    if len(run.parts) > 1:
        for part in run.parts:
            yield _row(" ".join(filter(None, (part.name, part.revision))), part, part.latency_ms)
    yield _row("all, from the intended start", run.total, run.total.latency_ms)
    yield _row("all, from the send", run.total, run.total.from_send_ms)


def _row(name: str, part: Part, found: dict[str, float]) -> str:
    return f"{name[:33]:34}{part.answers:>9,}{part.errors:>8,}" + "".join(
        f"{_ms(found.get(key, float('nan'))):>10}" for key in PERCENTILES
    )


def _ms(value: float) -> str:
    if value != value:
        return "-"
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"
