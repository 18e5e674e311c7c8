"""Optimization profiles: the shapes that an engine takes, chosen when it is built, and among them when it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kservekit.errors import CannotStart, InvalidInput

Shape = tuple[int, ...]


class Range(NamedTuple):
    """The smallest shape of an input, the one that kernels are chosen for, and the largest."""

    min: Shape
    opt: Shape
    max: Shape

    def takes(self, shape: Shape) -> bool:
        return len(shape) == len(self.min) and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )


Profile = Mapping[str, Range]
"""By input."""


def choose(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> int:
    """The profile whose kernels are for shapes nearest to these; InvalidInput where no profile takes them."""
    fitting = [
        index
        for index, profile in enumerate(profiles)
        if all(profile[name].takes(shape) for name, shape in shapes.items())
    ]
    if fitting:
        return min(fitting, key=lambda index: _distance(profiles[index], shapes))
    for name, shape in shapes.items():
        ranges = dict.fromkeys((profile[name].min, profile[name].max) for profile in profiles)
        if not any(profile[name].takes(shape) for profile in profiles):
            taken = ", or ".join(f"{list(low)} to {list(high)}" for low, high in ranges)
            raise InvalidInput(f"input {name!r} has shape {list(shape)}: this engine takes {taken}")
    together = ", ".join(f"{name!r} {list(shape)}" for name, shape in shapes.items())
    raise InvalidInput(f"this engine takes each of these shapes, and has no profile for all together: {together}")


def _distance(profile: Profile, shapes: Mapping[str, Shape]) -> int:
    return sum(abs(math.prod(profile[name].opt) - math.prod(shape)) for name, shape in shapes.items())


@dataclass(frozen=True)
class Sizes:
    """What is given to the sizes that an ONNX file leaves open: smallest, best and largest."""

    batch: tuple[int, int, int]
    """Of the first dimension."""
    others: tuple[tuple[str, tuple[int, int, int]], ...] = ()
    """Of the rest, by the file's own name for them, or by input and axis, as in x[2]."""


@dataclass(frozen=True)
class OpenInput:
    """An input of a file that leaves sizes open."""

    name: str
    shape: Shape
    """-1 where it does."""
    names: tuple[str | None, ...]
    """The file's names of its sizes."""


def profile(inputs: Sequence[OpenInput], sizes: Sizes) -> dict[str, Range]:
    """A profile for these inputs; CannotStart for a size that is left open and not given, or given and not there."""
    given, used = dict(sizes.others), set()
    ranges = {}
    for item in inputs:
        chosen = []
        for axis, size in enumerate(item.shape):
            place, own = f"{item.name}[{axis}]", item.names[axis]
            key = place if place in given or not own else own
            if size != -1:
                chosen.append((size, size, size))
            elif key in given:
                used.add(key)
                chosen.append(given[key])
            elif axis == 0:
                chosen.append(sizes.batch)
            else:
                raise CannotStart(
                    f"{item.name!r} of the model leaves its size at dimension {axis} open: "
                    f"set KSERVEKIT_TENSORRT_SIZES, such as {key}=1:128:512 (smallest, best, largest)"
                )
        ranges[item.name] = Range(*zip(*chosen, strict=True))
    if unused := [key for key in given if key not in used]:
        raise CannotStart(f"KSERVEKIT_TENSORRT_SIZES has {unused[0]!r}: the model leaves no size of that name open")
    return ranges


def sizes(text: str, batch: tuple[int, int, int]) -> Sizes:
    """KSERVEKIT_TENSORRT_SIZES and the batch's, checked; CannotStart names what is wrong."""
    if not 1 <= batch[0] <= batch[1] <= batch[2]:
        raise CannotStart(
            f"KSERVEKIT_TENSORRT_MIN_BATCH, _OPT_BATCH and _MAX_BATCH are {', '.join(map(str, batch))}: "
            "expected three numbers from 1, none smaller than the one before"
        )
    return Sizes(batch, tuple(_size(part.strip()) for part in text.split(",") if part.strip()))


def _size(text: str) -> tuple[str, tuple[int, int, int]]:
    name, _, numbers = text.rpartition("=")
    parts = numbers.split(":")
    found = list(map(int, parts)) if all(part.isdecimal() and len(part) < 11 for part in parts) else []
    if len(found) == 1:
        found *= 3
    if not name or len(found) != 3 or not 1 <= found[0] <= found[1] <= found[2]:
        raise CannotStart(
            f"KSERVEKIT_TENSORRT_SIZES has {text!r}: expected a name and one size, such as height=224, "
            "or smallest, best and largest, such as tokens=1:128:512"
        )
    return name, (found[0], found[1], found[2])
