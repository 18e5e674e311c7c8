"""From a model's file to a Triton model: its configuration, and the files where Triton looks for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kservekit.errors import CannotStart
from kservekit.oip.triton_messages import model_config
from kservekit.predictors.onnx_file import OnnxFile, read_onnx
from kservekit.predictors.repository import ONNX_IN_TRITON, declared, write
from kservekit.predictors.repository_limits import (
    MOST_INT32,
    MOST_INT64,
    MOST_UINT32,
    MOST_UINT64,
    check_name,
    check_number,
    check_tensors,
    is_number,
)
from kservekit.predictors.shared_runs import CannotTell, on_the_cpu, shared_run_fault
from kservekit.tensors import ModelSpec, TensorSpec

MAX_BATCH = 8
"""Of a model that can take batches, where nobody says otherwise."""

MOST_WARM_UP_ELEMENTS = 2**27

ENGINE_CACHE = "/tmp/kservekit-engines"  # noqa: S108  in the container that Triton runs in
"""Where ONNX Runtime keeps the TensorRT engines that it builds; a volume there saves the next start minutes."""


@dataclass(frozen=True)
class Build:
    """What `kservekit repository build` is told."""

    model: Path
    """model.onnx, model.plan, or a model.py of Triton's Python backend."""
    name: str
    target: Literal["gpu", "local"] = "gpu"
    """NVIDIA's container, or the Triton of the PyPI wheel, which has the Python backend and no other."""
    version: int = 1
    max_batch: int | None = None
    """Rows of the largest batch that Triton makes; 0: none; None: 8 where the file leaves the first size open, and,
    of an ONNX file, nothing speaks against callers who share a run."""
    batch_delay_us: int = 0
    instances: int = 1
    keep: str = "latest:1"
    warm_up: bool = True
    sizes: Mapping[str, int] = field(default_factory=dict)
    """For warm-up, the sizes that the file leaves open, by their names, or by input and axis, as in x[2]."""
    response_cache: bool = False
    tensorrt: Literal["", "fp32", "fp16"] = ""
    inputs: Sequence[TensorSpec] = ()
    """What a plan or a model.py takes, which cannot be read from it."""
    outputs: Sequence[TensorSpec] = ()


@dataclass(frozen=True)
class Prepared:
    """A model that contradicts itself nowhere, to be written."""

    config: Any
    """The ModelConfig."""
    files: Mapping[str, Path]
    spec: ModelSpec
    sizes: Mapping[str, tuple[str, ...]]
    """By input, the names of its sizes: the file's, else such as x[2]."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Built:
    folder: Path
    config: Any
    """The ModelConfig."""
    notes: tuple[str, ...]
    """What was left out, and the way to have it."""


def build(wanted: Build, repository: Path) -> Built:
    """CannotStart for what contradicts itself, before anything is written."""
    model = prepare(wanted)
    return Built(write(repository, model.config, model.files, version=wanted.version), model.config, model.notes)


def prepare(wanted: Build) -> Prepared:
    """What is to be written; CannotStart for what contradicts itself."""
    kind = wanted.model.suffix
    if kind not in (".onnx", ".plan", ".py"):
        raise CannotStart(f"{wanted.model} is not of a kind that is known here: expected .onnx, .plan or .py")
    if not wanted.model.is_file():
        raise CannotStart(f"{wanted.model}: no such file")
    if kind == ".plan" and wanted.target == "local":
        raise CannotStart(f"{wanted.model} needs a GPU and TensorRT, which the local Triton has not: use --target gpu")
    if wanted.tensorrt and (kind != ".onnx" or wanted.target == "local"):
        raise CannotStart("--tensorrt is for ONNX files on a GPU: leave it out")
    onnx = read_onnx(wanted.model) if kind == ".onnx" else None
    if onnx is not None and (wanted.inputs or wanted.outputs):
        raise CannotStart("an ONNX file says itself what it takes and gives: leave --input and --output out")
    spec = onnx.spec if onnx is not None else ModelSpec(tuple(wanted.inputs), tuple(wanted.outputs))
    in_python = kind == ".py" or (onnx is not None and wanted.target == "local")
    check_name(wanted.name, in_python)
    check_number("--version", wanted.version, 1, MOST_INT64)
    check_number("--max-batch", wanted.max_batch or 0, 0, MOST_INT32)
    check_number("--batch-delay-us", wanted.batch_delay_us, 0, MOST_UINT64)
    check_number("--instances", wanted.instances, 1, MOST_INT32)
    for what, items in (("input", spec.inputs), ("output", spec.outputs)):
        check_tensors(what, items, of_onnx_runtime=onnx is not None and in_python)
    sizes = {item.name: _size_names(item, onnx) for item in spec.inputs}
    max_batch, notes = _max_batch(wanted, onnx, spec)
    _check_sizes(wanted, spec, sizes, max_batch)
    files = {f"model{kind}": wanted.model}
    if onnx is not None:
        files |= {weights: wanted.model.parent / weights for weights in onnx.weights}
        if in_python:
            files["model.py"] = ONNX_IN_TRITON
    backend = "python" if in_python else {".onnx": "onnxruntime", ".plan": "tensorrt"}[kind]
    config = declared(wanted.name, spec, backend=backend, max_batch_size=max_batch)
    _set_batching(config, wanted, max_batch)
    _set_instances(config, wanted)
    _set_versions(config, wanted)
    if wanted.response_cache:
        config.response_cache.enable = True
    if wanted.tensorrt:
        _set_tensorrt(config, wanted.tensorrt)
    if wanted.warm_up:
        notes += _set_warm_up(config, wanted, spec, sizes, max_batch)
    undeclared = [f"{what}s" for what, items in (("input", spec.inputs), ("output", spec.outputs)) if not items]
    if kind == ".py" and undeclared:
        notes.append(f"no {' or '.join(undeclared)} are declared: model.py must have auto_complete_config")
    return Prepared(config, files, spec, sizes, tuple(notes))


def _size_names(item: TensorSpec, onnx: OnnxFile | None) -> tuple[str, ...]:
    """As --size calls them: by the file's own name where it has one, else by input and axis, as in x[2]."""
    names = onnx.sizes[item.name] if onnx is not None else ("",) * len(item.shape)
    return tuple(name or f"{item.name}[{axis}]" for axis, name in enumerate(names))


def _beside_the_batch(item: TensorSpec, names: Mapping[str, tuple[str, ...]], max_batch: int) -> list[tuple[str, int]]:
    return list(zip(names[item.name], item.shape, strict=True))[1 if max_batch else 0 :]


def _check_sizes(wanted: Build, spec: ModelSpec, names: Mapping[str, tuple[str, ...]], max_batch: int) -> None:
    """One that nothing would use is a slip of the pen."""
    left_open = [name for item in spec.inputs for name, size in _beside_the_batch(item, names, max_batch) if size == -1]
    for name in wanted.sizes:
        if name not in left_open:
            beside = " beside the batch" if max_batch else ""
            there = f"open are {', '.join(map(repr, left_open))}" if left_open else "none is open, so leave it out"
            raise CannotStart(f"--size has {name!r}, and no input leaves a size of that name open{beside}: {there}")


def _max_batch(wanted: Build, onnx: OnnxFile | None, spec: ModelSpec) -> tuple[int, list[str]]:
    """Rows of the largest batch, and why there are none where that is not plain."""
    tensors = (*spec.inputs, *spec.outputs)
    fixed = [item for item in tensors if not item.has_rows]
    if wanted.max_batch is None:
        if not tensors or fixed:
            return 0, []
        note = _no_batches(onnx, wanted.sizes) if onnx is not None else ""
        return (0, [note]) if note else (MAX_BATCH, [])
    if wanted.max_batch and fixed:
        what = "the file" if onnx is not None else "--input and --output"
        raise CannotStart(
            f"--max-batch is {wanted.max_batch}, and {fixed[0].name!r} has shape {list(fixed[0].shape)}: batches need "
            f"a first size that {what} leaves open (-1) in every input and output; use --max-batch 0"
        )
    return wanted.max_batch, []


def _no_batches(onnx: OnnxFile, sizes: Mapping[str, int]) -> str:
    try:
        fault = shared_run_fault(onnx.spec, onnx.sizes, on_the_cpu(onnx.path), sizes)
        way_out = f"--max-batch {MAX_BATCH} where each row of an answer is a caller's own all the same"
    except CannotTell as error:
        fault = f"nothing says that each row of an answer is one row's of the inputs, and {error}"
        way_out = f"--max-batch {MAX_BATCH} where that is so, or --size where other sizes can be run"
    return fault and f"callers do not share runs: {fault}; give {way_out}"


def _set_batching(config: Any, wanted: Build, max_batch: int) -> None:
    if not max_batch:
        if wanted.batch_delay_us:
            raise CannotStart("--batch-delay-us is set, and this model has no batches (--max-batch)")
        return
    config.dynamic_batching.max_queue_delay_microseconds = wanted.batch_delay_us
    # So that a request's deadline, which TritonPredictor sends along, ends its wait in Triton's queue, too.
    policy = config.dynamic_batching.default_queue_policy
    policy.allow_timeout_override = True
    policy.timeout_action = model_config.ModelQueuePolicy.REJECT


def _set_instances(config: Any, wanted: Build) -> None:
    on = "KIND_GPU" if wanted.target == "gpu" and wanted.model.suffix != ".py" else "KIND_CPU"
    config.instance_group.add(count=wanted.instances, kind=model_config.ModelInstanceGroup.Kind.Value(on))


def _set_versions(config: Any, wanted: Build) -> None:
    kind, _, count = wanted.keep.partition(":")
    if wanted.keep == "all":
        config.version_policy.all.SetInParent()
    elif kind == "latest" and is_number(count, MOST_UINT32):
        config.version_policy.latest.num_versions = int(count)
    elif all(is_number(part, MOST_INT64) for part in wanted.keep.split(",")):
        versions = list(map(int, wanted.keep.split(",")))
        if wanted.version not in versions:
            raise CannotStart(
                f"--keep is {wanted.keep!r}, and does not serve version {wanted.version}: add it, or say all"
            )
        config.version_policy.specific.versions.extend(versions)
    else:
        raise CannotStart(f"--keep is {wanted.keep!r}: expected latest:2, all, or versions such as 1,3")


def _set_tensorrt(config: Any, precision: str) -> None:
    accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
    accelerator.parameters.update(
        {
            "precision_mode": precision.upper(),
            "max_workspace_size_bytes": str(2**30),
            "trt_engine_cache_enable": "true",
            "trt_engine_cache_path": ENGINE_CACHE,
        }
    )


def _set_warm_up(
    config: Any, wanted: Build, spec: ModelSpec, names: Mapping[str, tuple[str, ...]], max_batch: int
) -> list[str]:
    """One row and a full batch, of zeros: the first caller should not pay for what the engine puts off."""
    if not spec.inputs:
        return ["no warm-up: no inputs are declared"]
    shapes = {}
    for item in spec.inputs:
        sizes = _beside_the_batch(item, names, max_batch)
        dims = [wanted.sizes.get(name, size) for name, size in sizes]
        if -1 in dims:
            name = sizes[dims.index(-1)][0]
            return [f"no warm-up: size {name!r} of input {item.name!r} is open; give --size {name}=224, say"]
        if math.prod(dims) * max(1, max_batch) > MOST_WARM_UP_ELEMENTS:
            return [f"no warm-up: input {item.name!r} of {dims} would take over {MOST_WARM_UP_ELEMENTS} elements"]
        shapes[item.name] = dims
    for batch in sorted({1, max_batch} if max_batch else {0}):
        sample = config.model_warmup.add(name=f"rows-{batch}" if batch else "once", batch_size=batch)
        for declared_input in config.input:
            given = sample.inputs[declared_input.name]
            given.data_type, given.zero_data = declared_input.data_type, True
            given.dims.extend(shapes[declared_input.name] or [1])
    return []
