"""Line charts as SVG, in text. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 880, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 92, 28, 30
LABEL_HEIGHT = 14.0

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    name: str
    points: Points
    style: str
    """A class of the page's style sheet: its colour."""


@dataclass(frozen=True)
class Bound:
    name: str
    value: float


def lines(
    drawn: Sequence[Line],
    *,
    x_ticks: Sequence[tuple[float, str]],
    unit: str,
    bounds: Iterable[Bound] = (),
    logarithmic: bool = False,
    bars: Points = (),
    described: str,
) -> str:
    """`bars` stand at the bottom, in the same unit, for what went wrong."""
    bounds = list(bounds)
    values = [y for line in drawn for _, y in line.points if y == y] + [bound.value for bound in bounds]
    values += [y for _, y in bars]
    x_low, x_high = x_ticks[0][0], max(x_ticks[-1][0], x_ticks[0][0] + 1e-9)
    if logarithmic:
        low = min((value for value in values if value > 0), default=1.0)
        y_ticks = _decades(low, max(values, default=10.0))
    else:
        y_ticks = _round_steps(max(values, default=1.0))
    bottom, top = _scaled(y_ticks[0], logarithmic), _scaled(y_ticks[-1], logarithmic)

    def x(value: float) -> float:
        return LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        share = (_scaled(max(value, y_ticks[0]), logarithmic) - bottom) / (top - bottom)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(described)}">']
    for tick in y_ticks:
        at = y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{short(tick)}</text>')
    parts.append(f'<text class="tick" x="{LEFT - 8}" y="{TOP - 14}" text-anchor="end">{escape(unit)}</text>')
    for tick, text in x_ticks:
        parts.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(text)}</text>'
        )
    for at, value in bars:
        if value:
            parts.append(
                f'<rect class="bar" x="{x(at) - 1.5:.1f}" width="3" y="{y(value):.1f}" '
                f'height="{HEIGHT - BOTTOM - y(value):.1f}"/>'
            )
    labels: list[tuple[float, str, str]] = []
    for bound in bounds:
        at = y(bound.value)
        parts.append(f'<line class="bound" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        labels.append((at, bound.name, "bound-name"))
    for line in drawn:
        for piece in _pieces(line.points):
            if len(piece) == 1:
                parts.append(
                    f'<circle class="{line.style}" cx="{x(piece[0][0]):.1f}" cy="{y(piece[0][1]):.1f}" r="2"/>'
                )
            path = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in piece)
            parts.append(f'<polyline class="line {line.style}" points="{path}"/>')
        last = next((value for _, value in reversed(line.points) if value == value), None)
        if last is not None:
            labels.append((y(last), line.name, f"name {line.style}"))
    for at, name, style in _apart(labels):
        parts.append(f'<text class="{style}" x="{WIDTH - RIGHT + 8}" y="{at + 4:.1f}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"])


def short(value: float) -> str:
    """`1.5k`, `250`, `0.2`."""
    if value >= 1_000_000:
        return f"{value / 1e6:g}M"
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:,.6g}"


def _scaled(value: float, logarithmic: bool) -> float:
    return math.log10(value) if logarithmic else value


def _decades(low: float, high: float) -> list[float]:
    begin, end = math.floor(math.log10(low)), math.ceil(math.log10(max(high, low * 1.01)))
    return [10.0**power for power in range(begin, max(end, begin + 1) + 1)]


def _round_steps(high: float) -> list[float]:
    """0 and up in round numbers, five or so, past the highest value."""
    raw = max(high, 1e-9) / 4
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * times for times in (1, 2, 2.5, 5, 10) if size * times >= raw)
    return [step * index for index in range(math.ceil(high / step) + 1)] if high > 0 else [0.0, 1.0]


def _pieces(points: Points) -> list[list[tuple[float, float]]]:
    """Between gaps, where there is no value."""
    found: list[list[tuple[float, float]]] = [[]]
    for at, value in points:
        if value == value:
            found[-1].append((at, value))
        elif found[-1]:
            found.append([])
    return [piece for piece in found if piece]


def _apart(labels: list[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    """Names at the ends of lines, moved so that none covers another."""
    placed: list[tuple[float, str, str]] = []
    for at, name, style in sorted(labels):
        placed.append((max(at, placed[-1][0] + LABEL_HEIGHT) if placed else at, name, style))
    over = placed[-1][0] - (HEIGHT - BOTTOM) if placed else 0.0
    return [(at - max(0.0, over), name, style) for at, name, style in placed]
