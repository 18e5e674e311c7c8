"""What Triton takes for a model's name, numbers and tensors; CannotStart for the rest, before anything is written."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from kservekit.errors import CannotStart
from kservekit.tensors import TensorSpec

MOST_INT32, MOST_INT64, MOST_UINT32, MOST_UINT64 = 2**31 - 1, 2**63 - 1, 2**32 - 1, 2**64 - 1
"""What the fields of a ModelConfig hold; a version beyond it ends Triton itself."""


def check_name(name: str, in_python: bool) -> None:
    if name in ("", ".", "..") or Path(name).name != name:
        raise CannotStart(f"--name is {name!r}: expected a folder's name in the repository, such as resnet")
    if in_python and shlex.quote(name) != name:
        raise CannotStart(
            f"--name is {name!r}, and Triton's Python backend opens a model's folder through a shell unquoted: use "
            "letters, digits and ._- only"
        )


def check_number(flag: str, number: int, least: int, most: int) -> None:
    if not least <= number <= most:
        raise CannotStart(f"{flag} is {number}: expected a number from {least} to {most}")


def is_number(text: str, most: int) -> bool:
    """Whether the text is a number from 1 to `most`, which has no more digits than an INT64."""
    return text.isdecimal() and len(text) < 20 and 1 <= int(text) <= most


def check_tensors(what: str, items: Sequence[TensorSpec], *, of_onnx_runtime: bool) -> None:
    names = [item.name for item in items]
    for item in items:
        if names.count(item.name) > 1:
            raise CannotStart(f"{what} {item.name!r} is there twice: give each a name of its own")
        if not item.shape:
            raise CannotStart(f"{item.name!r} is a scalar, which Triton does not serve: give it a size of 1")
        if not all(size == -1 or 1 <= size <= MOST_INT64 for size in item.shape):
            raise CannotStart(
                f"{what} {item.name!r} has shape {list(item.shape)}: Triton takes sizes from 1 to {MOST_INT64}, and -1 "
                "for one that is left open"
            )
        if of_onnx_runtime and item.datatype == "BF16":
            raise CannotStart(
                f"{what} {item.name!r} is BF16, which ONNX Runtime does not give as an array: export the model with "
                "FP16 or FP32 inputs and outputs; BF16 inside of it is fine"
            )
