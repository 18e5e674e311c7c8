"""The demo's answer on one screen. Pure: figures in, text out."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from itertools import zip_longest

from kservekit.local.photos import Photo

COLUMN = 50
BAR = 12
BLOCK = "█"


@dataclass
class Result:
    photo: Photo
    top: list[tuple[str, float]]
    """Label and probability, best first."""
    right: bool
    """Whether the best class is one that the photograph is known to show, on every wire."""


@dataclass
class Wire:
    name: str
    milliseconds: list[float]
    agrees: bool
    """Whether its answers are those of the first wire."""


@dataclass
class Report:
    engine: str
    results: list[Result]
    wires: list[Wire]
    stages: dict[str, float]
    """Milliseconds by stage."""
    address: str
    model: str
    took_s: float = field(default=0.0)
    kept: bool = False
    """Whether the address goes on answering."""

    @property
    def right(self) -> bool:
        return all(result.right for result in self.results) and all(wire.agrees for wire in self.wires)


def screen(report: Report, *, block: str = BLOCK) -> str:
    lines = [f"EfficientNet-Lite0 (ImageNet), served by {report.engine}", ""]
    for pair in zip(report.results[::2], report.results[1::2], strict=True):
        for left, right in zip_longest(*(_photo(result, block) for result in pair), fillvalue=""):
            lines.append(f"{left:{COLUMN}}{right}".rstrip())
        lines.append("")
    lines += [*_wires(report), "", *_stages(report.stages, block), ""]
    if report.kept:
        lines += ["by hand, until Ctrl-C:", f"  {curl(report)}", ""]
    else:
        lines += ["by hand: `kservekit demo --keep` leaves it running, and says how", ""]
    count = len(report.results)
    if report.right:
        lines.append(
            f"All {len(report.wires)} wires answered and agreed, and {count} of {count} photographs are right."
        )
    else:
        lines += [
            f"WRONG: {result.photo.title} is {result.top[0][0]!r}" for result in report.results if not result.right
        ]
        lines += [
            f"WRONG: {wire.name} does not agree with {report.wires[0].name}" for wire in report.wires if not wire.agrees
        ]
    lines.append(f"{report.took_s:.1f} s in all.")
    return "\n".join(lines)


def curl(report: Report) -> str:
    path = report.results[0].photo.path
    body = f"""(printf '{{"instances":[{{"b64":"'; base64 < '{path}' | tr -d '\\n'; printf '"}}]}}')"""
    return f"{body} |\n    curl -s -d @- http://{report.address}/v1/models/{report.model}:predict"


def parse_server_timing(header: str) -> dict[str, float]:
    """Milliseconds by name, as Server-Timing (W3C) has them."""
    found = {}
    for metric in header.split(","):
        name, _, value = metric.strip().partition(";dur=")
        found[name] = float(value)
    return found


def _photo(result: Result, block: str) -> list[str]:
    verdict = "right" if result.right else "WRONG, expected " + " or ".join(result.photo.expected)
    lines = [f"{result.photo.title} ({result.photo.path.name}): {verdict}"]
    for label, score in result.top:
        lines.append(f"  {label[:22]:22} {score * 100:5.1f} % {block * round(score * BAR)}")
    return lines


def _wires(report: Report) -> list[str]:
    lines = [f"{'through the transformer':26}{'requests':>9}{'median ms':>11}{'worst ms':>10}  answers"]
    for wire in report.wires:
        times = wire.milliseconds
        agrees = "agree" if wire.agrees else "DIFFER"
        lines.append(f"  {wire.name:24}{len(times):9}{statistics.median(times):11.1f}{max(times):10.1f}  {agrees}")
    return lines


def _stages(stages: dict[str, float], block: str) -> list[str]:
    """Where a v2 REST binary request spends its time; the hop's remainder is the predictor and the two wires to it."""
    engine = {name: stages[name] for name in stages if name.startswith("triton_")}
    rows = [
        ("decode: the request and its picture", stages["read"] + stages["decode_image"]),
        ("transform: resize, normalize", stages["resize"] + stages["normalize"]),
        ("hop to the predictor and back", stages["predictor"]),
    ]
    if engine:
        compute = sum(value for name, value in engine.items() if name != "triton_queue")
        rows += [
            ("  of which Triton's queue", engine["triton_queue"]),
            ("  of which Triton's compute", compute),
            ("  of which predictor and wires", stages["predictor"] - compute - engine["triton_queue"]),
        ]
    rows.append(("scores to labels, and the answer", stages["from_tensors"] + stages["write"]))
    rows.append(("in all, at the transformer", stages["total"]))
    longest = max(value for _, value in rows)
    return ["where the time went (v2 REST binary, ms)"] + [
        f"  {name:38}{value:8.2f}  {block * round(value / longest * 24)}".rstrip() for name, value in rows
    ]
