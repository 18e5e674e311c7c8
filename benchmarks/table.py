"""The benchmark's table. Pure: results in, Markdown out, aligned for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from kservekit.benchmarks.contest import STOCK, Result, Row, Target, Unit, met, ratios

HEAD = ("row", "contender", "handler", "median", "min..max", "p50", "p99", "ratio", "target", "met")
RIGHT = {"median", "min..max", "p50", "p99"}

Results = Sequence[tuple[Row, list[Result]]]


def render(results: Results) -> str:
    lines = [HEAD, *(line for row, found in results for line in _row(row, found))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = [f"{'-' * (width - 1)}:" if name in RIGHT else "-" * width for name, width in zip(HEAD, widths, strict=True)]
    sides = [">" if name in RIGHT else "<" for name in HEAD]
    aligned = [
        [f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)] for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (aligned[0], rule, *aligned[1:]))


def listing(rows: Iterable[Row]) -> str:
    """What a row's name stands for, and what is counted in it."""
    return "\n".join(f"  {row.name:17} {row.title}; {row.course.unit.what}" for row in rows)


def complaints(results: Results) -> list[str]:
    """A sentence for each contender that did not serve correctly, or could not take part."""
    sentences = []
    for row, found in results:
        for result in found:
            who = f"{row.name}, {result.contender.name} ({result.contender.handler})"
            if result.failure:
                sentences.append(f"FAILED: {who}: {result.failure}")
            elif result.absent:
                sentences.append(f"absent: {who}: {result.absent}")
    return sentences


def _row(row: Row, results: list[Result]) -> Iterator[tuple[str, ...]]:
    for result in results:
        unit, contender = row.course.unit, result.contender
        values = [figure.value for figure in result.figures]
        verdicts = {None: "-", True: "yes", False: "no"}
        yield (
            row.name,
            contender.name,
            contender.handler,
            unit.text(result.median) if values else _missing(result),
            f"{unit.text(min(values))}..{unit.text(max(values))}" if values else "",
            milliseconds(result.latency("p50_s")),
            milliseconds(result.latency("p99_s")),
            ", ".join(f"{value:.2f}x {side}" for side, value in _shown_ratios(result, results).items()),
            ", ".join(target_text(target, unit) for target in contender.targets),
            ", ".join(verdicts[met(target, result, results)] for target in contender.targets),
        )


def _missing(result: Result) -> str:
    return "FAILED" if result.failure else "absent"


def _shown_ratios(result: Result, results: list[Result]) -> dict[str, float]:
    """Ours to everyone; the others to stock, and stock to nobody."""
    found = {side: value for side, value in ratios(result, results).items() if not math.isnan(value)}
    if not result.contender.targets:
        return {side: value for side, value in found.items() if side == STOCK and result.contender.side != STOCK}
    return found


def target_text(target: Target, unit: Unit) -> str:
    bound = f"{target.bound:g}x {target.against}" if target.against else unit.text(target.bound)
    return f"{'goal ' if target.goal else ''}{'<=' if target.at_most else '>='} {bound}"


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    found = seconds * 1000
    return f"{found:.1f} ms" if found < 100 else f"{found:,.0f} ms"
