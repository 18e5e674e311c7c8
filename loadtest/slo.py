"""What a run is held to: an SLO file's keys, or a profile's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kservekit.errors import CannotStart
from kservekit.loadtest import document

LATENCIES = ("p50_ms", "p75_ms", "p90_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms")


@dataclass(frozen=True)
class Canary:
    revision: str
    """`kservekit-revision` of the new one's answers."""
    share: float
    """Of the answers, as the split is set."""
    confidence: float = 0.99
    """How sure the split has to be wrong before it counts as wrong: chance alone moves it, too."""


@dataclass(frozen=True)
class Slo:
    """Latencies count from the intended start. None is not asked for."""

    p50_ms: float | None = None
    p75_ms: float | None = None
    p90_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    p999_ms: float | None = None
    max_ms: float | None = None
    cold_start_ms: float | None = None
    """Until the first answer of the run."""
    error_rate: float = 0.01
    """At most this share of the requests that ended."""
    goodput_ms: float | None = None
    """An answer within this is a good one."""
    goodput: float | None = None
    """At least this share of the asked requests has a good answer."""
    min_rate: float | None = None
    """Answers a second, at least."""
    achieved_rate: float = 0.95
    """At least this share of what was asked has been sent in time; below, the run has no say about the server."""
    canary: Canary | None = None


_UNITS = {
    **dict.fromkeys((*LATENCIES, "cold_start_ms", "goodput_ms"), "ms"),
    **dict.fromkeys(("error_rate", "goodput", "achieved_rate"), "share"),
    "min_rate": "per second",
}


def read(file: Path) -> Slo:
    """CannotStart names the key or the unit that is wrong, and what was likely meant."""
    return parse(document.read(file), str(file))


def parse(found: Mapping[Any, Any], where: str) -> Slo:
    document.check_keys(found, [*_UNITS, "canary"], where)
    given: dict[str, Any] = {
        key: document.number(found[key], unit, f"{where}: {key}") for key, unit in _UNITS.items() if key in found
    }
    if "canary" in found:
        given["canary"] = _canary(found["canary"], f"{where}: canary")
    slo = Slo(**given)
    if slo.goodput is not None and slo.goodput_ms is None:
        raise CannotStart(f"{where}: goodput needs goodput_ms, within which an answer is a good one")
    return slo


def _canary(found: Any, where: str) -> Canary:
    if not isinstance(found, dict):
        raise CannotStart(f"{where} is {found!r}: expected revision and share")
    names = [field.name for field in fields(Canary)]
    document.check_keys(found, names, where)
    if not isinstance(found.get("revision"), str) or not found["revision"] or "share" not in found:
        raise CannotStart(f"{where} needs revision, as its answers' kservekit-revision says, and share")
    shares = {key: document.number(found[key], "share", f"{where}.{key}") for key in names[1:] if key in found}
    if not 0 < shares.get("confidence", 0.99) < 1:
        raise CannotStart(f"{where}.confidence is {shares['confidence']:g}: expected a share between 0 and 1")
    return Canary(found["revision"], **shares)
