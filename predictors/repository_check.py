"""What is wrong with somebody's Triton model repository, found without a Triton."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from kservekit.errors import CannotStart
from kservekit.oip.triton_messages import model_config
from kservekit.predictors.onnx_file import read_onnx
from kservekit.predictors.repository import datatype_name, declared
from kservekit.predictors.repository_check_ensemble import Model, alike, faults, is_ensemble, listed
from kservekit.tensors import TensorSpec

_FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan", "python": "model.py", "pytorch": "model.pt"}
_PLATFORMS = {"onnxruntime_onnx": "onnxruntime", "tensorrt_plan": "tensorrt", "pytorch_libtorch": "pytorch"}
_COMPLETED = ("onnxruntime", "tensorrt", "tensorflow", "openvino", "python")
"""Backends that find out by themselves what a model takes and gives (Triton, "Auto-Generated Model Configuration")."""


@dataclass(frozen=True)
class Finding:
    where: str
    what: str
    is_error: bool = True
    """Whether Triton would refuse the model, or answer wrongly; else it is worth a look."""


def check(repository: Path) -> list[Finding]:
    """All that is found, model by model; CannotStart where there is no repository."""
    if not repository.is_dir():
        raise CannotStart(f"{repository}: no such folder")
    folders = sorted(path for path in repository.iterdir() if path.is_dir() and not path.name.startswith("."))
    found: list[Finding] = []
    if (repository / "config.pbtxt").exists() or any(path.name.isdigit() for path in folders):
        found.append(Finding(".", "this is a model's own folder: the repository is the one above it"))
        return found
    if not folders:
        found.append(Finding(".", "no models: expected <model>/<version>/model.onnx, say"))
    configs: dict[str, Any] = {}
    for folder in folders:
        config = _config(folder, found)
        if config is not None:
            configs[folder.name] = config
            found += _model(folder, config)
    if ensembles := [name for name, config in configs.items() if is_ensemble(config)]:
        models = {name: _for_steps(repository / name, config) for name, config in configs.items()}
        for name in ensembles:
            found += [Finding(f"{name}/config.pbtxt", fault) for fault in faults(name, models)]
    return found


def _config(folder: Path, found: list[Finding]) -> Any:
    path = folder / "config.pbtxt"
    config = model_config.ModelConfig()
    if path.is_file():
        try:
            text_format.Parse(path.read_text(), config)
        except (text_format.ParseError, UnicodeDecodeError) as error:
            found.append(Finding(f"{folder.name}/config.pbtxt", f"line {error}"))
            return None
    return config


def _model(folder: Path, config: Any) -> Iterator[Finding]:
    where = f"{folder.name}/config.pbtxt"
    if config.name and config.name != folder.name:
        yield Finding(where, f"the name is {config.name!r}, and the folder's {folder.name!r}: make them one")
    versions = _versions(folder)
    if not versions or versions == [0]:
        yield Finding(folder.name, "no version: expected a folder called 1 with the model's file in it")
        return
    for path in folder.iterdir():
        if path.is_dir() and path.name.startswith("0"):
            yield Finding(folder.name, f"Triton leaves out the folder {path.name!r}: versions begin with 1 to 9")
    backend = config.backend or _PLATFORMS.get(config.platform, "")
    if is_ensemble(config):
        yield from _declarations(where, config, "ensemble")
        return
    if not backend:
        names = {file: backend for backend, file in _FILES.items()}
        backends = [names[path.name] for path in (folder / str(versions[-1])).iterdir() if path.name in names]
        if len(backends) != 1:
            yield Finding(where, f"no backend, and no file that says which: expected backend: {listed(_FILES)}")
            return
        (backend,) = backends
    file = config.default_model_filename or _FILES.get(backend)
    for version in versions:
        if file and not (folder / str(version) / file).exists():
            yield Finding(f"{folder.name}/{version}", f"no {file}, which the {backend} backend looks for")
    if config.version_policy.HasField("specific"):
        missing = [str(one) for one in config.version_policy.specific.versions if one not in versions]
        if missing:
            yield Finding(where, f"version_policy asks for {', '.join(missing)}: there is {listed(versions)}")
    yield from _declarations(where, config, backend)
    path = folder / str(versions[-1]) / "model.onnx"  # in the Python backend, too, where that is how ours runs it
    if backend in ("onnxruntime", "python") and path.is_file():
        yield from _against_onnx(where, config, path)


def _declarations(where: str, config: Any, backend: str) -> Iterator[Finding]:
    for kind, items in (("input", config.input), ("output", config.output)):
        if not items and backend not in _COMPLETED:
            yield Finding(where, f"no {kind} is declared, and the {backend} backend does not find out by itself")
        names = [item.name for item in items]
        for item in items:
            if names.count(item.name) > 1:
                yield Finding(where, f"{kind} {item.name!r} is there twice")
            if item.data_type == model_config.TYPE_INVALID:
                yield Finding(where, f"{kind} {item.name!r} has no data_type")
            if not item.dims:
                yield Finding(where, f"{kind} {item.name!r} has no dims")
            if any(size == 0 or size < -1 for size in item.dims):
                yield Finding(where, f"{kind} {item.name!r} has dims {list(item.dims)}: expected -1, or 1 and more")
    if config.HasField("dynamic_batching") and not config.max_batch_size:
        yield Finding(where, "dynamic_batching is set, and max_batch_size is 0: nothing is put into batches", False)
    over = [size for size in config.dynamic_batching.preferred_batch_size if size > config.max_batch_size]
    if over:
        yield Finding(where, f"preferred_batch_size {over[0]} is over max_batch_size {config.max_batch_size}")
    if config.HasField("dynamic_batching") and not config.dynamic_batching.default_queue_policy.allow_timeout_override:
        yield Finding(
            where,
            "a request's own time-out does not end its wait in the queue: set dynamic_batching { default_queue_policy "
            "{ allow_timeout_override: true } }",
            False,
        )


def _against_onnx(where: str, config: Any, path: Path) -> Iterator[Finding]:
    try:
        onnx = read_onnx(path)
    except CannotStart as error:
        yield Finding(where, str(error).replace(str(path), path.name))
        return
    if config.max_batch_size and not onnx.batches:
        yield Finding(where, f"max_batch_size is {config.max_batch_size}, and the file has a first size that is fixed")
    for kind, items, specs in (
        ("input", config.input, onnx.spec.inputs),
        ("output", config.output, onnx.spec.outputs),
    ):
        by_name = {spec.name: spec for spec in specs}
        for item in items:
            spec = by_name.get(item.name)
            if spec is None:
                yield Finding(where, f"{kind} {item.name!r} is not the file's: it has {listed(by_name)}")
            else:
                yield from _against(where, f"{kind} {item.name!r}", item, spec, config.max_batch_size)
        missing = by_name.keys() - {item.name for item in items}
        if kind == "input" and items and missing:
            yield Finding(where, f"input {listed(sorted(missing))} of the file is not declared")


def _against(where: str, label: str, item: Any, spec: TensorSpec, max_batch_size: int) -> Iterator[Finding]:
    datatype = datatype_name(item.data_type)
    if datatype not in (spec.datatype, "INVALID"):
        yield Finding(where, f"{label} is {datatype}, and in the file {spec.datatype}")
    dims = list(item.dims)
    expected = list(spec.shape[1:] if max_batch_size else spec.shape)
    if item.HasField("reshape") or 0 in dims:
        return
    if max_batch_size and len(dims) == len(expected) + 1:
        yield Finding(where, f"{label} has dims {dims}: with max_batch_size the batch is left out of them: {expected}")
    elif not alike(dims, expected):
        yield Finding(where, f"{label} has dims {dims}, and in the file {expected}")


def _for_steps(folder: Path, config: Any) -> Model:
    """As the steps of an ensemble see it: with what Triton fills in, and the versions that it serves."""
    versions = _versions(folder)
    path = folder / str(versions[-1] if versions else 0) / "model.onnx"
    if not config.input and not config.output and not is_ensemble(config) and path.is_file():
        with contextlib.suppress(CannotStart, ValueError):  # which _model says
            of_file = declared(config.name, read_onnx(path).spec, backend="", max_batch_size=config.max_batch_size)
            config = copy.deepcopy(config)
            config.input.extend(of_file.input)
            config.output.extend(of_file.output)
    policy = config.version_policy
    if policy.HasField("specific"):
        served = [version for version in versions if version in policy.specific.versions]
    else:
        served = versions if policy.HasField("all") else versions[-(policy.latest.num_versions or 1) :]
    return Model(config, served)


def _versions(folder: Path) -> list[int]:
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    return sorted(int(name) for name in names if name.isdigit())
