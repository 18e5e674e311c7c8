"""A shape of load as text: `ramp:from=10`. Pure but for the file of a replay."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from kservekit.errors import CannotStart
from kservekit.loadtest import schedule
from kservekit.loadtest.schedule import Curve

HELP = """\
constant                      --rate, all the time (default)
ramp[:from=0]                 from there to --rate over the run
steps[:from=0,count=5]        the same in so many flat steps
spike:peak=N[,at=S][,for=S]   --rate, but for a while `peak` (default: the middle tenth)
diurnal[:low=0,period=S]      from low to --rate and back, as a day does (default: once over the run)
replay:FILE[,speed=1]         the starts in FILE, one a line: seconds, or an ISO date and time"""

Values = dict[str, float]

_SHAPES: dict[str, tuple[tuple[str, ...], Callable[[float, float, Values], Curve]]] = {
    "constant": ((), lambda rate, s, _: schedule.constant(rate, s)),
    "ramp": (("from",), lambda rate, s, given: schedule.ramp(given.get("from", 0.0), rate, s)),
    "steps": (
        ("from", "count"),
        lambda rate, s, given: schedule.steps(given.get("from", 0.0), rate, max(1, int(given.get("count", 5))), s),
    ),
    "spike": (
        ("peak", "at", "for"),
        lambda rate, s, given: schedule.spike(
            rate, given["peak"], given.get("at", s * 0.45), given.get("for", s * 0.1), s
        ),
    ),
    "diurnal": (
        ("low", "period"),
        lambda rate, s, given: schedule.diurnal(given.get("low", 0.0), rate, given.get("period", s), s),
    ),
}


@dataclass(frozen=True)
class Load:
    """What an open loop follows."""

    text: str
    duration_s: float
    curve: Curve = ()
    timestamps: tuple[float, ...] = ()
    speed: float = 1.0
    seed: int | None = None

    def starts(self) -> Iterator[float]:
        if self.timestamps:
            return schedule.recorded(self.timestamps, speed=self.speed)
        return schedule.arrivals(self.curve, seed=self.seed)


@dataclass(frozen=True)
class Closed:
    """A closed loop: so many users, each with one request at a time and a pause after it."""

    users: int
    duration_s: float
    think_s: float = 0.0


def load(text: str, rate: float | None, duration_s: float, *, seed: int | None = None) -> Load:
    """CannotStart names the word that is wrong and the one that was likely meant."""
    name, _, rest = text.partition(":")
    if name == "replay":
        return _replay(text, rest, duration_s)
    if name not in _SHAPES:
        raise CannotStart(f"--shape is {text!r}: {meant(name, [*_SHAPES, 'replay'])}")
    known, make = _SHAPES[name]
    given = _values(text, rest, known)
    if name == "spike" and "peak" not in given:
        raise CannotStart(f"--shape is {text!r}: a spike needs its rate, such as spike:peak=500")
    if rate is None or not (math.isfinite(rate) and rate > 0):
        raise CannotStart(f"--rate is {rate}: expected requests a second, more than 0")
    if name != "constant" and math.isinf(duration_s):
        raise CannotStart(f"--shape is {text!r}, which needs the run's length: --duration, or locust's --run-time")
    return Load(text, duration_s, make(rate, duration_s, given), seed=seed)


def meant(word: str, known: list[str]) -> str:
    """`did you mean 'ramp'? expected one of ...`"""
    names = {one.lower(): one for one in known}
    close = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.4)
    return f"{f'did you mean {names[close[0]]!r}? ' if close else ''}expected one of {', '.join(known)}"


def _values(text: str, rest: str, known: tuple[str, ...]) -> Values:
    found = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in known:
            raise CannotStart(f"--shape is {text!r}: {key!r} is nothing that it takes; {meant(key, list(known))}")
        try:
            found[key] = float(value)
        except ValueError:
            raise CannotStart(f"--shape is {text!r}: {key} is {value!r}, expected a number") from None
        if not math.isfinite(found[key]) or found[key] < 0 or (found[key] == 0 and key in ("count", "period")):
            raise CannotStart(f"--shape is {text!r}: {key} is {value!r}, expected a number that is not negative")
    return found


def _replay(text: str, rest: str, most_s: float) -> Load:
    file, _, options = rest.partition(",")
    speed = _values(text, options, ("speed",)).get("speed", 1.0)
    if not speed:
        raise CannotStart(f"--shape is {text!r}: speed is 0, expected more")
    timestamps = tuple(_timestamps(Path(file)))
    if not timestamps:
        raise CannotStart(f"--shape is {text!r}: the file has no starts")
    span_s = (max(timestamps) - min(timestamps)) / speed
    # As a constant rate's, the run goes on for a gap after its last start.
    whole_s = span_s * len(timestamps) / (len(timestamps) - 1) if span_s else 1.0
    return Load(text, min(whole_s, most_s), timestamps=timestamps, speed=speed)


def _timestamps(file: Path) -> Iterator[float]:
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CannotStart(f"the recorded starts {file} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        word = line.strip()
        if not word or word.startswith("#"):
            continue
        try:
            yield float(word)
        except ValueError:
            try:
                yield datetime.fromisoformat(word).timestamp()
            except ValueError:
                raise CannotStart(f"{file}:{number} is {word!r}: expected seconds, or an ISO date and time") from None
