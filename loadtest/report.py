"""A run as one HTML page that needs no network. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from kservekit.loadtest import chart, page, table
from kservekit.loadtest.chart import Bound, Line
from kservekit.loadtest.request_id import REQUEST_ID
from kservekit.loadtest.run import Part, Run, percentile_of, together
from kservekit.loadtest.target import ATTEMPTS
from kservekit.loadtest.verdict import Objective, Verdict

MOST_POINTS = 240


def html(run: Run, verdict: Verdict) -> str:
    title = f"{run.target['model']} by {run.target['wire']}"
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Load test of {escape(title)}: {escape(verdict.outcome)}</title>",
            f"<style>{page.STYLE}</style></head><body><main>",
            f"<h1>Load test of {escape(title)}</h1>",
            f'<p class="soft">{escape(table.title(run))}<br>{escape(run.started)}, {run.duration_s:.1f} s</p>',
            f'<div class="verdict {verdict.outcome if verdict.exit_code < 3 else ""}">'
            f"<b>{escape(verdict.outcome)}</b><span>{escape(_reason(verdict))}</span></div>",
            _figures(run),
            "<h2>Objectives</h2>",
            _objectives(verdict.objectives),
            "<h2>Latency over time</h2>",
            '<p class="how">Counted from the moment at which each request ought to have started.</p>',
            _over_time(run, verdict.objectives),
            "<h2>Rate asked and achieved</h2>",
            '<p class="how">A second, by the moment of the intended start; errors stand at the bottom.</p>',
            _rates(run),
            "<h2>Percentiles</h2>",
            '<p class="how">From the send is what a closed loop sees: it leaves out how long a request had to wait '
            "for its turn.</p>",
            _percentiles(run),
            "<h2>Latency in milliseconds</h2>",
            _parts(run),
            *_server_side(run),
            *_errors(run),
            *_slowest(run),
            "<h2>Environment</h2>",
            page.rows((), [(name, escape(value)) for name, value in _environment(run)]),
            "</main></body></html>",
        ]
    )


def _reason(verdict: Verdict) -> str:
    return verdict.reason.removeprefix(f"{verdict.outcome}: ")


def _figures(run: Run) -> str:
    seconds = run.duration_s or 1.0
    ended = run.ended or 1
    shown = [
        ("answers/s", f"{run.answers / seconds:,.1f}", ""),
        ("asked/s", f"{run.load['asked_per_s']:,.1f}" if "asked_per_s" in run.load else "-", ""),
        ("median", _ms(run.total.latency_ms.get("p50")), "ms"),
        ("p99", _ms(run.total.latency_ms.get("p99")), "ms"),
        ("p99.9", _ms(run.total.latency_ms.get("p999")), "ms"),
        ("errors", f"{run.errors / ended:.3g}" if not run.errors else f"{run.errors / ended:.2%}", ""),
    ]
    cells = [f"<div><dt>{name}</dt><dd>{value} <small>{unit}</small></dd></div>" for name, value, unit in shown]
    return f'<dl class="figures">{"".join(cells)}</dl>'


def _objectives(objectives: Iterable[Objective]) -> str:
    classes = {True: ("held", "held"), False: ("broken", "broken"), None: ("unknown", "no data")}
    lines = []
    for one in objectives:
        style, word = classes[one.held]
        lines.append((f'<span class="{style}">{word}</span>', escape(one.text)))
    return page.rows((), lines)


def _over_time(run: Run, objectives: Iterable[Objective]) -> str:
    seconds = run.seconds()
    group = max(1, math.ceil(len(seconds) / MOST_POINTS))
    drawn: dict[str, list[tuple[float, float]]] = {"p50": [], "p99": [], "max": []}
    for begin in range(0, len(seconds), group):
        bins = together(seconds[begin : begin + group]).bins
        at = (begin + group / 2) * run.width_s
        for name, percent in (("p50", 50), ("p99", 99), ("max", 100)):
            drawn[name].append((at, percentile_of(bins, percent) * 1000))
    styles = {"max": "orange", "p99": "violet", "p50": "blue"}
    return chart.lines(
        [Line(name, drawn[name], style) for name, style in styles.items()],
        x_ticks=_time_ticks(run),
        unit="ms",
        bounds=_latency_bounds(objectives),
        logarithmic=True,
        described="latency over time",
    )


def _rates(run: Run) -> str:
    seconds, width = run.seconds(), run.width_s
    group = max(1, math.ceil(len(run.asked_series) / MOST_POINTS))

    def line(counts: Sequence[int]) -> list[tuple[float, float]]:
        points = []
        for begin in range(0, len(counts), group):
            covered_s = min((begin + group) * width, max(run.duration_s, begin * width + 1e-3)) - begin * width
            if covered_s >= 0.5 * width or len(counts) == 1:  # the last entry may be a moment
                points.append(((begin + group / 2) * width, sum(counts[begin : begin + group]) / covered_s))
        return points

    answers = [second.answers for second in seconds]
    return chart.lines(
        [
            Line("answers", line(answers), "blue"),
            Line("sent", line(run.sent_series), "orange"),
            Line("asked", line(run.asked_series), "gray"),
        ],
        x_ticks=_time_ticks(run),
        unit="/s",
        bars=line([second.errors for second in seconds]),
        described="requests asked, sent and answered a second",
    )


def _percentiles(run: Run) -> str:
    """By how many nines: the tail has as much room as the rest."""
    ticks = [(0.301, "p50"), (0.602, "p75"), (1.0, "p90"), (1.301, "p95"), (2.0, "p99"), (3.0, "p99.9"), (3.6, "max")]
    names = ("p50", "p75", "p90", "p95", "p99", "p999", "max")

    def line(found: dict[str, float]) -> list[tuple[float, float]]:
        return [(at, found[name]) for (at, _), name in zip(ticks, names, strict=True) if name in found]

    return chart.lines(
        [
            Line("intended start", line(run.total.latency_ms), "violet"),
            Line("send", line(run.total.from_send_ms), "gray"),
        ],
        x_ticks=ticks,
        unit="ms",
        logarithmic=True,
        described="latency by percentile",
    )


def _latency_bounds(objectives: Iterable[Objective]) -> list[Bound]:
    return [
        Bound(f"{_written(one.name.removesuffix('_ms'))} ≤ {chart.short(one.bound)} ms", one.bound)
        for one in objectives
        if one.name.startswith(("p", "max")) and one.name.endswith("_ms")
    ]


def _parts(run: Run) -> str:
    names = table.PERCENTILES
    head = ("requests", "revision", *map(page.right, ("answers", "errors", *map(_written, names))))
    parts: list[tuple[str, Part, dict[str, float]]] = [
        (" ".join((part.wire, part.name)), part, part.latency_ms) for part in run.parts if len(run.parts) > 1
    ]
    parts += [
        ("all, from the intended start", run.total, run.total.latency_ms),
        ("all, from the send", run.total, run.total.from_send_ms),
    ]
    lines = [
        (
            escape(name),
            escape(part.revision or "-"),
            *(page.right(f"{count:,}") for count in (part.answers, part.errors)),
            *(page.right(_ms(found.get(key))) for key in names),
        )
        for name, part, found in parts
    ]
    return page.rows(head, lines)


def _server_side(run: Run) -> Iterator[str]:
    """Bars on one scale: what the server says of its own time, below what was measured here."""
    if not run.server_ms:
        return
    yield "<h2>Where the time went</h2>"
    yield (
        '<p class="how">Means in milliseconds: as measured here from the send, and as the server says of its stages; '
        "Triton's are within those of the server that asks it.</p>"
    )
    shown = list(_stages(run))
    longest = max(value for _, _, value in shown) or 1.0
    yield page.rows(
        (),
        [
            (
                f'<span class="deep{depth}">{escape(name)}</span>',
                f'<div class="share" style="width: {100 * value / longest:.1f}%"></div>',
                page.right(_ms(value)),
            )
            for depth, name, value in shown
        ],
    )


def _stages(run: Run) -> Iterator[tuple[int, str, float]]:
    """How deep one lies within another, its name, and its milliseconds."""
    here = run.total.from_send_ms.get("mean", 0.0)
    yield 0, "all of it", here
    total = run.server_ms.get("total")
    if total is not None:
        yield 1, "on the way, and here", max(0.0, here - total)
        yield 1, "in the server", total
    for name, value in run.server_ms.items():
        if name.startswith("triton_"):
            yield 2, f"Triton: {name.removeprefix('triton_').replace('_', ' ')}", value
        elif name != "total":
            yield 2, name, value


def _slowest(run: Run) -> Iterator[str]:
    if not run.slowest:
        return
    yield "<h2>Slowest requests</h2>"
    yield '<p class="how">By the ids under which a server logs them; those with a trace have spans.</p>'
    lines = [
        (
            page.right(_ms(slow.latency_ms)),
            page.right(f"{slow.due_s:.1f} s"),
            escape(slow.error or slow.revision or "-"),
            f"<code>{escape(slow.request_id or '-')}</code>",
            f"<code>{escape(slow.trace_id or '-')}</code>",
        )
        for slow in run.slowest
    ]
    yield page.rows((page.right("ms"), page.right("due at"), "error or revision", REQUEST_ID, "trace"), lines)


def _errors(run: Run) -> Iterator[str]:
    if run.errors_by:
        yield "<h2>Errors</h2>"
        most = sorted(run.errors_by.items(), key=lambda item: item[1], reverse=True)
        yield page.rows((), [(escape(kind), page.right(f"{count:,}")) for kind, count in most])


def _environment(run: Run) -> Iterator[tuple[str, str]]:
    seconds = run.duration_s or 1.0
    yield (
        "generator",
        f"{run.generator.get('busy', 0):.0%} busy, at most {run.load.get('max_in_flight', '-')} in flight",
    )
    yield "bytes", f"{run.sent_bytes / seconds / 1e6:,.2f} MB/s out, {run.received_bytes / seconds / 1e6:,.2f} MB/s in"
    if run.retries is not None:
        yield "retries", f"{run.retries:,} of a proxy, by {ATTEMPTS}; the generator sends each request once"
    yield from run.target.items()
    yield from run.environment.items()


def _time_ticks(run: Run) -> list[tuple[float, str]]:
    end = max(len(run.asked_series), 1) * run.width_s
    step = next((one for one in (1, 2, 5, 10, 30, 60, 300, 600, 1800, 3600, 21600) if end / one <= 12), 86400)
    return [(at, f"{at} s" if at < 600 else f"{at // 60} min") for at in range(0, end + 1, step)]


def _written(percentile: str) -> str:
    return percentile.replace("p999", "p99.9")


def _ms(value: float | None) -> str:
    return (
        "-" if value is None else f"{value:.2f}" if value < 10 else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"
    )
