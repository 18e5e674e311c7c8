"""What is wrong with a model's own config.pbtxt, whatever lies beside it: sentences without a full stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kservekit.oip.triton_messages import model_config
from kservekit.predictors.repository_check_ensemble import listed

PLATFORMS = {
    "onnxruntime_onnx": "onnxruntime",
    "tensorrt_plan": "tensorrt",
    "pytorch_libtorch": "pytorch",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
}
"""Backends by the name that `platform` has for them."""

_COMPLETED = ("onnxruntime", "tensorrt", "tensorflow", "openvino", "python")
"""Backends that find out by themselves what a model takes and gives (Triton, "Auto-Generated Model Configuration")."""


def config_faults(config: Any, backend: str) -> Iterator[str]:
    """All for which Triton would refuse it, or answer wrongly."""
    if config.max_batch_size < 0:
        yield f"max_batch_size is {config.max_batch_size}: expected 0, or the rows of the largest batch"
    of_platform = PLATFORMS.get(config.platform)
    if of_platform and config.backend in PLATFORMS.values() and config.backend != of_platform:
        yield f"platform is {config.platform!r}, and backend {config.backend!r}: leave platform out"
    if config.version_policy.HasField("latest") and not config.version_policy.latest.num_versions:
        yield "version_policy has latest without num_versions, and serves nothing: expected num_versions: 1, say"
    for kind, items in (("input", config.input), ("output", config.output)):
        if not items and backend not in _COMPLETED:
            yield f"no {kind} is declared, and the {backend} backend does not find out by itself"
        names = [item.name for item in items]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"{kind} {name!r} is there twice"
        for item in items:
            yield from _of_tensor(f"{kind} {item.name!r}", item)
    over = [size for size in config.dynamic_batching.preferred_batch_size if size > config.max_batch_size]
    if over:
        yield f"preferred_batch_size {over[0]} is over max_batch_size {config.max_batch_size}"
    for sample in config.model_warmup:
        yield from _of_warm_up(sample, config)


def config_notes(config: Any) -> Iterator[str]:
    """What is worth a look."""
    if config.HasField("dynamic_batching") and not config.max_batch_size:
        yield "dynamic_batching is set, and max_batch_size is 0: nothing is put into batches"
    if config.HasField("dynamic_batching") and not config.dynamic_batching.default_queue_policy.allow_timeout_override:
        yield (
            "a request's own time-out does not end its wait in the queue: set dynamic_batching { default_queue_policy "
            "{ allow_timeout_override: true } }"
        )


def _of_tensor(label: str, item: Any) -> Iterator[str]:
    if item.data_type == model_config.TYPE_INVALID:
        yield f"{label} has no data_type"
    if not item.dims:
        yield f"{label} has no dims"
    if any(size == 0 or size < -1 for size in item.dims):
        yield f"{label} has dims {list(item.dims)}: expected -1, or 1 and more"
    elif item.HasField("reshape") and _elements(item.dims) != _elements(item.reshape.shape):
        yield f"{label} has dims {list(item.dims)}, and a reshape to {list(item.reshape.shape)}: not the same elements"


def _elements(dims: Sequence[int]) -> list[int]:
    """How many there are before, between and after the open sizes, which stay where they are."""
    counts = [1]
    for size in dims:
        if size == -1:
            counts.append(1)
        else:
            counts[-1] *= size
    return counts


def _of_warm_up(sample: Any, config: Any) -> Iterator[str]:
    label = f"model_warmup {sample.name!r}"
    missing = [item.name for item in config.input if item.name not in sample.inputs and not item.optional]
    if missing:
        yield f"{label} has no input {listed(missing)}: it has {listed(sorted(sample.inputs))}"
    if sample.batch_size > max(1, config.max_batch_size):
        yield f"{label} has batch_size {sample.batch_size}, and max_batch_size is {config.max_batch_size}"
