"""What is wrong with an ensemble of a Triton model repository: its steps, and the tensors that go between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kservekit.predictors.repository import datatype_name


@dataclass(frozen=True)
class Model:
    """One that a step may name."""

    config: Any
    """The ModelConfig, with the inputs and outputs that its file has where it declares none."""
    versions: Sequence[int]
    """Those that Triton serves."""


@dataclass(frozen=True)
class _End:
    """Where a tensor comes from, or goes to."""

    who: str
    datatype: int
    dims: tuple[int, ...] = ()
    batched: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (-1, *self.dims) if self.batched else self.dims


def is_ensemble(config: Any) -> bool:
    return bool(config.HasField("ensemble_scheduling") or config.platform == "ensemble")


def faults(name: str, models: Mapping[str, Model]) -> Iterator[str]:
    """All for which Triton would refuse the ensemble of this name; sentences without a full stop."""
    config = models[name].config
    steps = config.ensemble_scheduling.step
    yield from _own(config)
    yield from _ring(name, models)
    for number, step in enumerate(steps):
        yield from _step(number, step, config, models)
    sources, targets = _tensors(config, models)
    yield from _flow(steps, [item.name for item in config.input], sources, targets)
    for tensor, ends in targets.items():
        for end in ends:
            yield from _unlike(tensor, sources.get(tensor, [end])[0], end)


def _tensors(config: Any, models: Mapping[str, Model]) -> tuple[dict[str, list[_End]], dict[str, list[_End]]]:
    """By the name that a tensor has in the ensemble, where it comes from, and where it goes to."""
    sources: dict[str, list[_End]] = {}
    targets: dict[str, list[_End]] = {}
    for item in config.input:
        sources.setdefault(item.name, []).append(_end("the ensemble's input", item, config))
    for step in config.ensemble_scheduling.step:
        model = models.get(step.model_name)
        for kind, mapping, ends in (("input", step.input_map, targets), ("output", step.output_map, sources)):
            items = {item.name: item for item in getattr(model.config, kind)} if model else {}
            for key, tensor in mapping.items():
                who = f"{kind} {key!r} of {step.model_name!r}"
                end = _end(who, items[key], model.config) if model and key in items else _End(who, 0)
                ends.setdefault(tensor, []).append(end)
    for item in config.output if config.ensemble_scheduling.step else ():
        targets.setdefault(item.name, []).append(_end("the ensemble's output", item, config))
    return sources, targets


def _own(config: Any) -> Iterator[str]:
    if config.platform != "ensemble":
        yield f'platform is {config.platform!r} beside ensemble_scheduling: expected platform: "ensemble"'
    if config.backend:
        yield f"backend is {config.backend!r}, and an ensemble has none: leave it out"
    for field, _ in config.ListFields():
        if field.name in ("instance_group", "optimization", "model_warmup"):
            yield f"{field.name} is set, and an ensemble has none: set it in the models that its steps run"
    if not config.ensemble_scheduling.step:
        yield "no steps: expected ensemble_scheduling { step { model_name: ... } }"


def _ring(name: str, models: Mapping[str, Model]) -> Iterator[str]:
    """Whether its steps come back to it, by however many ensembles."""
    seen: set[str] = set()
    beyond = [name]
    while beyond:
        model = models.get(beyond.pop())
        inner = {step.model_name for step in model.config.ensemble_scheduling.step} if model else set()
        if name in inner:
            yield f"its steps come back to {name!r} itself, and would never end"
            return
        beyond += inner - seen
        seen |= inner


def _step(number: int, step: Any, config: Any, models: Mapping[str, Model]) -> Iterator[str]:
    for field in ("model_name", "input_map", "output_map"):
        if not getattr(step, field):
            yield f"step {number} has no {field}"
    if not step.model_name:
        return
    model = models.get(step.model_name)
    if model is None:
        yield f"step {number} runs {step.model_name!r}: there is {listed(sorted(models))}"
        return
    for kind, mapping in (("input", step.input_map), ("output", step.output_map)):
        items = {item.name: item for item in getattr(model.config, kind)}
        unknown = sorted(mapping.keys() - items.keys()) if items else []
        if unknown:
            yield f"{step.model_name!r} has no {kind} {listed(unknown)}: it has {listed(items)}"
        missing = [key for key, item in items.items() if key not in mapping and kind == "input" and not item.optional]
        if missing and mapping:
            yield f"step {number} gives {step.model_name!r} no {listed(missing)}"
    if step.model_version not in (-1, *model.versions):
        yield (
            f"step {number} runs version {step.model_version} of {step.model_name!r}: served are "
            f"{', '.join(map(str, model.versions)) or 'none'} (-1: the latest)"
        )
    if 0 < model.config.max_batch_size < config.max_batch_size:
        yield (
            f"max_batch_size is {config.max_batch_size}, and {step.model_name!r} takes {model.config.max_batch_size}: "
            "make the ensemble's no larger than that"
        )


def _flow(
    steps: Sequence[Any],
    inputs: Sequence[str],
    sources: Mapping[str, Sequence[_End]],
    targets: Mapping[str, Sequence[_End]],
) -> Iterator[str]:
    for tensor, ends in sources.items():
        if len(ends) > 1:  # of an input and a step Triton says nothing, and never answers
            yield f"{tensor!r} comes from {' and from '.join(end.who for end in ends)}: expected one of them"
        if tensor not in targets:
            yield f"nothing uses {tensor!r}, which comes from {ends[0].who}: leave it out"
    nowhere = sorted(targets.keys() - sources.keys())
    for tensor in nowhere:
        yield f"no step and no input gives {tensor!r}"
    there, waiting = {*inputs, *nowhere}, list(steps)
    while ready := [step for step in waiting if set(step.input_map.values()) <= there]:
        waiting = [step for step in waiting if step not in ready]
        there.update(tensor for step in ready for tensor in step.output_map.values())
    if waiting:
        wanted = {tensor for step in waiting for tensor in step.input_map.values()} - there
        yield f"steps wait for each other: nobody can be the first to give {listed(sorted(wanted))}"


def _unlike(tensor: str, source: _End, target: _End) -> Iterator[str]:
    one, other = source.datatype, target.datatype
    if one and other and one != other:
        yield f"{tensor!r} is {datatype_name(one)} as {source.who}, and {datatype_name(other)} as {target.who}"
    # With batches on one side only, Triton takes equal dims as well as equal shapes.
    if source.dims and target.dims and not (alike(source.dims, target.dims) or alike(source.shape, target.shape)):
        yield f"{tensor!r} is {list(source.shape)} as {source.who}, and {list(target.shape)} as {target.who}"


def alike(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether these dims can be the same; -1 can be any."""
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in zip(one, other, strict=True))


def _end(who: str, item: Any, config: Any) -> _End:
    return _End(who, item.data_type, tuple(item.dims), config.max_batch_size > 0)


def listed(names: Iterable[object]) -> str:
    return ", ".join(map(repr, names)) or "none"
