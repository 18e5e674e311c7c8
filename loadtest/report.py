"""A run as one HTML page that needs no network. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from kservekit.loadtest import chart, table
from kservekit.loadtest.chart import Bound, Line
from kservekit.loadtest.run import Part, Run, percentile_of
from kservekit.loadtest.verdict import Objective, Verdict

STYLE = """\
:root { --ground: #fff; --ink: #1b1f24; --soft: #667180; --rule: #e3e7ec; --blue: #2563c9; --violet: #7a3fc0;
  --orange: #c2570c; --gray: #98a2af; --good: #1a7f4b; --bad: #c0262d; --dim: #8a6100; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --ink: #e6e9ed; --soft: #98a2af; --rule: #2b3138;
  --blue: #6ea2f5; --violet: #b48cf0; --orange: #f0965a; --gray: #6d7783; --good: #4cc38a; --bad: #f2777d;
  --dim: #d9a93a; --card: #1c2127; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 32px 40px 48px; }
h1 { font-size: 21px; line-height: 1.3; margin: 0 0 4px; } h2 { font-size: 15px; margin: 34px 0 8px; }
p { margin: 0; } .soft, .how { color: var(--soft); } .how { font-size: 13px; margin-bottom: 6px; }
.verdict { display: flex; gap: 14px; align-items: baseline; padding: 14px 18px; margin: 20px 0; border-radius: 8px;
  background: var(--card); border-left: 5px solid var(--dim); }
.verdict b { font-size: 17px; white-space: nowrap; color: var(--dim); }
.verdict.pass { border-color: var(--good); } .verdict.pass b { color: var(--good); }
.verdict.fail { border-color: var(--bad); } .verdict.fail b { color: var(--bad); }
dl.figures { display: grid; grid-template-columns: repeat(6, 1fr); gap: 10px; margin: 0; }
dl.figures div { background: var(--card); border-radius: 8px; padding: 10px 14px; }
dl.figures dt { color: var(--soft); font-size: 12.5px; } dl.figures dd { margin: 0; font-size: 20px; font-weight: 600;
  font-variant-numeric: tabular-nums; white-space: nowrap; } dl.figures small { font-size: 12.5px; font-weight: 400; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; color: var(--soft); } th, td { padding: 5px 12px 5px 0; vertical-align: top;
  border-bottom: 1px solid var(--rule); } .number { text-align: right; }
.held { color: var(--good); } .broken { color: var(--bad); font-weight: 600; } .unknown { color: var(--dim); }
svg { width: 100%; height: auto; display: block; } svg text { font: 11.5px system-ui, sans-serif; }
.grid { stroke: var(--rule); } .tick { fill: var(--soft); } .line { fill: none; stroke-width: 1.8;
  stroke-linejoin: round; } .bar { fill: var(--bad); opacity: .55; }
.line.blue { stroke: var(--blue); } .line.violet { stroke: var(--violet); } .line.orange { stroke: var(--orange); }
.line.gray { stroke: var(--gray); stroke-dasharray: 5 4; } circle { stroke: none; }
.name.blue, circle.blue { fill: var(--blue); } .name.violet, circle.violet { fill: var(--violet); }
.name.orange, circle.orange { fill: var(--orange); } .name.gray, circle.gray { fill: var(--gray); }
.share { background: var(--blue); height: 11px; margin-top: 5px; min-width: 1px; border-radius: 2px; }
td:has(.share) { width: 60%; }
.bound { stroke: var(--bad); stroke-dasharray: 2 3; } .bound-name { fill: var(--bad); }
"""

MOST_POINTS = 240

_NUMBER = ' class="number"'
_RIGHT = "\0"
"""Before a cell that is a number; no text has it."""


def html(run: Run, verdict: Verdict) -> str:
    title = f"{run.target['model']} by {run.target['wire']}"
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Load test of {escape(title)}: {escape(verdict.outcome)}</title>",
            f"<style>{STYLE}</style></head><body><main>",
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
            "<h2>Environment</h2>",
            _rows((), [(name, escape(value)) for name, value in _environment(run)]),
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
    rows = []
    for one in objectives:
        style, word = classes[one.held]
        rows.append((f'<span class="{style}">{word}</span>', escape(one.text)))
    return _rows((), rows)


def _over_time(run: Run, objectives: Iterable[Objective]) -> str:
    seconds = run.seconds()
    group = max(1, math.ceil(len(seconds) / MOST_POINTS))
    drawn: dict[str, list[tuple[float, float]]] = {"p50": [], "p99": [], "max": []}
    for begin in range(0, len(seconds), group):
        bins: dict[int, int] = {}
        for second in seconds[begin : begin + group]:
            for index, count in second.bins.items():
                bins[index] = bins.get(index, 0) + count
        at = (begin + group / 2) * run.width_s
        for name, percent in (("p50", 50), ("p99", 99), ("max", 100)):
            drawn[name].append((at, percentile_of(bins, percent) * 1000 if bins else math.nan))
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
        Bound(f"{one.name.removesuffix('_ms')} at most", one.bound)
        for one in objectives
        if one.name.startswith(("p", "max")) and one.name.endswith("_ms")
    ]


def _parts(run: Run) -> str:
    names = table.PERCENTILES
    head = ("requests", "revision", "answers", "errors", *names)
    parts: list[tuple[str, Part, dict[str, float]]] = [
        (" ".join((part.wire, part.name)), part, part.latency_ms) for part in run.parts if len(run.parts) > 1
    ]
    parts += [
        ("all, from the intended start", run.total, run.total.latency_ms),
        ("all, from the send", run.total, run.total.from_send_ms),
    ]
    rows = [
        (
            escape(name),
            escape(part.revision or "-"),
            *(_right(f"{count:,}") for count in (part.answers, part.errors)),
            *(_right(_ms(found.get(key))) for key in names),
        )
        for name, part, found in parts
    ]
    return _rows(head, rows)


def _server_side(run: Run) -> Iterator[str]:
    """Bars on one scale: what the server says of its own time, below what was measured here."""
    if not run.server_ms:
        return
    yield "<h2>Where the time went</h2>"
    yield '<p class="how">Means in milliseconds: as measured here, and as the server says of its stages.</p>'
    rows = {"here, from the send": run.total.from_send_ms.get("mean", 0.0)} | run.server_ms
    longest = max(rows.values()) or 1.0
    yield _rows(
        (),
        [
            (
                escape(name),
                f'<div class="share" style="width: {100 * value / longest:.1f}%"></div>',
                _right(_ms(value)),
            )
            for name, value in rows.items()
        ],
    )


def _errors(run: Run) -> Iterator[str]:
    if run.errors_by:
        yield "<h2>Errors</h2>"
        most = sorted(run.errors_by.items(), key=lambda item: item[1], reverse=True)
        yield _rows((), [(escape(kind), _right(f"{count:,}")) for kind, count in most])


def _environment(run: Run) -> Iterator[tuple[str, str]]:
    seconds = run.duration_s or 1.0
    yield (
        "generator",
        f"{run.generator.get('busy', 0):.0%} busy, at most {run.load.get('max_in_flight', '-')} in flight",
    )
    yield "bytes", f"{run.sent_bytes / seconds / 1e6:,.2f} MB/s out, {run.received_bytes / seconds / 1e6:,.2f} MB/s in"
    yield from run.target.items()
    yield from run.environment.items()


def _time_ticks(run: Run) -> list[tuple[float, str]]:
    end = max(len(run.asked_series), 1) * run.width_s
    step = next((one for one in (1, 2, 5, 10, 30, 60, 300, 600, 1800, 3600, 21600) if end / one <= 12), 86400)
    return [(at, f"{at} s" if at < 600 else f"{at // 60} min") for at in range(0, end + 1, step)]


def _ms(value: float | None) -> str:
    return (
        "-" if value is None else f"{value:.2f}" if value < 10 else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"
    )


def _right(text: str) -> str:
    return f"{_RIGHT}{text}"


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML."""
    parts = ["<table>"]
    if head:
        cells = (f"<th{_NUMBER if index > 1 else ''}>{name}</th>" for index, name in enumerate(head))
        parts.append(f"<tr>{''.join(cells)}</tr>")
    for row in rows:
        cells = (
            f"<td{_NUMBER}>{cell.removeprefix(_RIGHT)}</td>" if cell.startswith(_RIGHT) else f"<td>{cell}</td>"
            for cell in row
        )
        parts.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*parts, "</table>"])
