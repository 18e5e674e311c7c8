"""Whether callers may share a run of a model: each row of its answers is then one row's of its inputs.

An open first size need not be the batch's: a detector's is how many boxes it found, in all pictures together. The names
that an ONNX file gives its sizes tell most of it. Where its exporter left them out, or called each tensor's otherwise,
and of an engine, which has none, rows are tried, together and alone.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kservekit.cpus import usable_cpus
from kservekit.errors import CannotStart, Unavailable
from kservekit.tensors import DATATYPES, ModelSpec, Tensors, TensorSpec

log = logging.getLogger(__name__)

Run = Callable[[Tensors], Tensors]

MOST_ROWS = 3
"""So many are tried at once."""
_OPEN = 64
"""Tried for a size that the file leaves open and nobody gives: for pictures that a network halves, and for tokens."""
_TOLERANCE = 0.05
"""Of an output's largest value: quantized models round by what else is in the batch."""
_MOST_ELEMENTS = 2**27


class CannotTell(Exception):
    """The names do not say, and rows cannot be tried; why not."""


def check_shared_runs(
    setting: str,
    spec: ModelSpec,
    names: Mapping[str, Sequence[str]],
    run: Run,
    sizes: Mapping[str, int] | None = None,
    rows: int = MOST_ROWS,
) -> None:
    """CannotStart where callers may not, though `setting` says so; where it cannot be told, a warning."""
    try:
        fault = shared_run_fault(spec, names, run, sizes, rows)
    except CannotTell as error:
        log.warning(
            "%s is set, and nothing says that each row of this model's answers is one row's of its inputs, as it has "
            "to be in a batch: %s",
            setting,
            error,
        )
        return
    if fault:
        raise CannotStart(
            f"{setting} is set, and callers of this model would get each other's answers: {fault}; unset it"
        )


def shared_run_fault(
    spec: ModelSpec,
    names: Mapping[str, Sequence[str]],
    run: Run,
    sizes: Mapping[str, int] | None = None,
    rows: int = MOST_ROWS,
) -> str:
    """What speaks against it, for a `spec` whose first sizes are all open; empty where nothing does. May CannotTell.

    `names` are the file's of each tensor's sizes, empty where it has none. `sizes` are tried for those that are left
    open, by their names or, as in x[2], by input and axis.
    """
    first = {item.name: names[item.name][0] for item in (*spec.inputs, *spec.outputs)}
    for name, size in first.items():
        for other, others in names.items():
            if size and size in others[1:]:
                return f"{size!r} is the first size of {name!r}, and of {other!r} another one: it is no batch"
    if spec.inputs and len(set(first.values())) == 1 and all(first.values()):
        return ""
    return _tried(spec, names, run, sizes or {}, rows)


def on_the_cpu(path: Path) -> Run:
    """The model's outputs, whoever serves it later; it is loaded when it is first run."""

    @functools.cache
    def session() -> Any:
        # From 1.29 on it sends its makers usage data with an id of the machine, unless it is told not to.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = usable_cpus()
        options.log_severity_level = 4  # what fails is raised, too
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(tensors: Tensors) -> Tensors:
        names = [item.name for item in session().get_outputs()]
        return dict(zip(names, session().run(names, tensors), strict=True))

    return run


def _tried(spec: ModelSpec, names: Mapping[str, Sequence[str]], run: Run, sizes: Mapping[str, int], rows: int) -> str:
    random = np.random.default_rng(0)
    together = {item.name: _values(item, _shape(item, names[item.name], sizes, rows), random) for item in spec.inputs}
    try:
        outputs = run(together)
        alone = [run({name: array[at : at + 1] for name, array in together.items()}) for at in range(rows)]
    except Unavailable:  # which says nothing of the model
        raise
    except Exception as error:  # the engine's, which have no common base
        shapes = ", ".join(f"{name!r} {list(array.shape)}" for name, array in together.items())
        raise CannotTell(f"{shapes} of chance cannot be run: {type(error).__name__}: {error}") from error
    for name, array in outputs.items():
        for at, one in enumerate(alone):
            if array.shape[:1] != (rows,) or one[name].shape[:1] != (1,):
                return f"{name!r} has shape {list(array.shape)} for {rows} rows, and {list(one[name].shape)} for one"
            if not _alike(one[name][0], array[at]):
                return f"{name!r} has other values for a row that is alone than for the same row beside others"
    return ""


def _shape(item: TensorSpec, names: Sequence[str], sizes: Mapping[str, int], rows: int) -> tuple[int, ...]:
    places = [f"{item.name}[{axis}]" for axis in range(len(item.shape))]
    shape = tuple(
        sizes.get(place, sizes.get(name, _OPEN)) if size == -1 else size
        for place, name, size in zip(places, names, item.shape, strict=True)
    )
    if np.prod(shape[1:], dtype=float) * rows > _MOST_ELEMENTS:
        raise CannotTell(f"{rows} rows of {item.name!r} {list(shape[1:])} would take over {_MOST_ELEMENTS} elements")
    return (rows, *shape[1:])


def _values(item: TensorSpec, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Numbers from 0 to 1: whole ones are often places in a table, a mask or a kind, of which there are two."""
    dtype = DATATYPES[item.datatype]
    if dtype.kind in "biu":
        return random.integers(0, 2, shape).astype(dtype)
    values = random.random(shape)
    return values.astype(str).astype(object) if dtype.kind == "O" else values.astype(dtype)


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape or one.dtype.kind != "f":
        return np.array_equal(one, other)
    finite = np.abs(other[np.isfinite(other)], dtype=np.float64)
    return np.allclose(one, other, rtol=0, atol=_TOLERANCE * finite.max(initial=0), equal_nan=True)
