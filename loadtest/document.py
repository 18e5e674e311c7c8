"""A file of settings, TOML or YAML, as a mapping; unknown keys and units are named with what was likely meant."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from kservekit.errors import CannotStart
from kservekit.loadtest.shapes import meant

UNITS: dict[str, dict[str, float]] = {
    "ms": {"us": 0.001, "ms": 1, "s": 1000, "min": 60_000},
    "s": {"ms": 0.001, "s": 1, "min": 60, "h": 3600},
    "share": {"%": 0.01},
    "per second": {"/s": 1, "/min": 1 / 60},
}
"""What a number may be followed by, in terms of the key's own unit."""

_NUMBER = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\S*)\s*")


def read(file: Path) -> dict[str, Any]:
    """CannotStart where the file cannot be read or is no mapping."""
    try:
        text = file.read_text("utf-8")
        found = tomllib.loads(text) if file.suffix.lower() == ".toml" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise CannotStart(f"{file} cannot be read: {said}") from None
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise CannotStart(f"{file} is not {_kind(file)}: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise CannotStart(f"{file} is {found!r:.40}: expected keys and values")
    return found


def check_keys(found: Mapping[Any, Any], known: Iterable[str], where: str) -> None:
    listed = list(known)
    for key in found:
        if key not in listed:
            raise CannotStart(f"{where}: unknown key {str(key)!r}; {meant(str(key), listed)}")


def number(value: Any, unit: str, where: str) -> float:
    """In `unit`, one of UNITS, which a bare number has; text may have another: `0.2 s`."""
    known = UNITS[unit]
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value)
        if not match:
            raise CannotStart(f"{where} is {value!r}: expected a number, alone or with one of {', '.join(known)}")
        if match[2] and match[2] not in known:
            raise CannotStart(f"{where} is {value!r}: unknown unit {match[2]!r}; {meant(match[2], list(known))}")
        value = float(match[1]) * known.get(match[2], 1)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise CannotStart(f"{where} is {value!r}: expected a number that is not negative")
    if unit == "share" and value > 1:
        raise CannotStart(f"{where} is {value:g}: expected a share from 0 to 1, or a text such as '5 %'")
    return float(value)


def _kind(file: Path) -> str:
    return "TOML" if file.suffix.lower() == ".toml" else "YAML"
