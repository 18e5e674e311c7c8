"""What is wrong with somebody's Triton model repository, found without a Triton."""

from __future__ import annotations

import contextlib
import copy
import filecmp
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from kservekit.errors import CannotStart
from kservekit.oip.triton_messages import model_config
from kservekit.predictors.onnx_file import read_onnx
from kservekit.predictors.repository import ONNX_IN_TRITON, datatype_name, declared
from kservekit.predictors.repository_check_config import PLATFORMS, config_faults, config_notes
from kservekit.predictors.repository_check_ensemble import Model, alike, faults, is_ensemble, listed
from kservekit.predictors.repository_limits import MOST_INT64, is_number
from kservekit.predictors.shared_runs import CannotTell, on_the_cpu, shared_run_fault
from kservekit.tensors import TensorSpec

_FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan", "python": "model.py", "pytorch": "model.pt"}
_OTHERS = ("dali", "fil", "identity", "openvino", "repeat", "square", "tensorflow", "tensorrtllm", "vllm")
"""Backends of Triton's own, beside those."""


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
    if (repository / "config.pbtxt").exists() or any(_is_version(path.name) for path in folders):
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
        except text_format.ParseError as error:
            found.append(Finding(f"{folder.name}/config.pbtxt", f"line {error}"))
            return None
        except UnicodeDecodeError as error:
            found.append(Finding(f"{folder.name}/config.pbtxt", f"this is no text: {error}"))
            return None
    return config


def _model(folder: Path, config: Any) -> Iterator[Finding]:
    where = f"{folder.name}/config.pbtxt"
    if config.name and config.name != folder.name:
        yield Finding(where, f"the name is {config.name!r}, and the folder's {folder.name!r}: make them one")
    for path in folder.iterdir():
        if path.is_dir() and path.name.startswith("0"):
            yield Finding(folder.name, f"Triton leaves out the folder {path.name!r}: versions begin with 1 to 9")
        elif path.is_dir() and _is_version(path.name) and not is_number(path.name, MOST_INT64):
            yield Finding(folder.name, f"Triton ends over the folder {path.name!r}: versions go up to {MOST_INT64}")
    versions = _versions(folder)
    if not versions:
        yield Finding(folder.name, "no version: expected a folder called 1 with the model's file in it")
        return
    if is_ensemble(config):
        yield from _of_config(where, config, "ensemble")
        return
    backend = _backend(config, folder / str(versions[-1]))
    if not backend:
        unknown = f"platform {config.platform!r} is none of Triton's" if config.platform else "no backend"
        yield Finding(where, f"{unknown}, and no file says which backend it is: expected backend: {listed(_FILES)}")
        return
    if backend not in _FILES and backend not in _OTHERS:
        known = listed(sorted((*_FILES, *_OTHERS)))
        yield Finding(where, f"backend {backend!r} is none of Triton's own: it has {known}", False)
    yield from _of_config(where, config, backend)
    served = _served(config, versions)
    missing = [str(one) for one in config.version_policy.specific.versions if one not in versions]
    if missing:
        asked = f"version_policy asks for {', '.join(missing)}: there is {', '.join(map(str, versions))}"
        yield Finding(where, asked, is_error=not served)
    for version in served:
        yield from _of_files(folder / str(version), config, backend)
    if served and (onnx := _onnx(folder / str(served[-1]), config, backend)) and onnx.is_file():
        yield from _against_onnx(where, config, onnx, backend)


def _backend(config: Any, version: Path) -> str:
    """As the config says, or as the version's file does where it says nothing; empty where nobody does."""
    if config.backend or config.platform:
        return config.backend or PLATFORMS.get(config.platform, "")
    backends = [backend for backend, file in _FILES.items() if (version / file).exists()]
    return backends[0] if len(backends) == 1 else ""


def _of_config(where: str, config: Any, backend: str) -> Iterator[Finding]:
    yield from (Finding(where, fault) for fault in config_faults(config, backend))
    yield from (Finding(where, note, False) for note in config_notes(config))


def _of_files(version: Path, config: Any, backend: str) -> Iterator[Finding]:
    where = f"{version.parent.name}/{version.name}"
    file = config.default_model_filename or _FILES.get(backend)
    if file and not (version / file).exists():
        yield Finding(where, f"no {file}, which the {backend} backend looks for")
        return
    if backend == "python" and file and (version / file).is_file():
        if fault := _syntax(version / file):
            yield Finding(where, f"{file} is no Python: {fault}")
        if (path := _onnx(version, config, backend)) and not path.is_file():
            yield Finding(where, f"no {path.name}, which {file} looks for")


def _syntax(path: Path) -> str:
    """What is wrong with a file's Python; empty where nothing is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are its author's
            compile(path.read_bytes(), path.name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:  # the latter for a NUL
        return str(error)
    return ""


def _onnx(version: Path, config: Any, backend: str) -> Path | None:
    """The ONNX file that a version runs: in the Python backend where its model.py is ours, and not one's own."""
    file = version / (config.default_model_filename or _FILES.get(backend, ""))
    if backend == "onnxruntime":
        return file
    is_ours = backend == "python" and file.is_file() and filecmp.cmp(ONNX_IN_TRITON, file, shallow=False)
    return version / "model.onnx" if is_ours else None


def _against_onnx(where: str, config: Any, path: Path, backend: str) -> Iterator[Finding]:
    try:
        onnx = read_onnx(path)
    except CannotStart as error:
        yield Finding(where, str(error).replace(str(path), path.name))
        return
    if config.max_batch_size and not onnx.batches:
        yield Finding(where, f"max_batch_size is {config.max_batch_size}, and the file has a first size that is fixed")
    elif config.max_batch_size:
        with contextlib.suppress(CannotTell):
            if fault := shared_run_fault(onnx.spec, onnx.sizes, on_the_cpu(path)):
                what = f"max_batch_size is {config.max_batch_size}, and callers may get each other's answers: {fault}"
                yield Finding(where, what, False)
    for kind, items, specs in (
        ("input", config.input, onnx.spec.inputs),
        ("output", config.output, onnx.spec.outputs),
    ):
        by_name = {spec.name: spec for spec in specs}
        if backend == "python" and (bf16 := [spec.name for spec in specs if spec.datatype == "BF16"]):
            yield Finding(where, f"{kind} {listed(bf16)} is BF16, which ONNX Runtime does not give as an array")
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
    dims = list(item.reshape.shape if item.HasField("reshape") else item.dims)
    expected = list(spec.shape[1:] if max_batch_size else spec.shape)
    if 0 in dims:
        return
    if max_batch_size and len(dims) == len(expected) + 1:
        yield Finding(where, f"{label} has dims {dims}: with max_batch_size the batch is left out of them: {expected}")
    elif not alike(dims, expected):
        yield Finding(where, f"{label} has dims {dims}, and in the file {expected}")


def _for_steps(folder: Path, config: Any) -> Model:
    """As the steps of an ensemble see it: with what Triton fills in, and the versions that it serves."""
    versions = _versions(folder)
    served = _served(config, versions)
    if served and not config.input and not config.output and not is_ensemble(config):
        version = folder / str(served[-1])
        path = _onnx(version, config, _backend(config, version))
        if path is not None and path.is_file():
            with contextlib.suppress(CannotStart, ValueError):  # which _model says
                of_file = declared(config.name, read_onnx(path).spec, backend="", max_batch_size=config.max_batch_size)
                config = copy.deepcopy(config)
                config.input.extend(of_file.input)
                config.output.extend(of_file.output)
    return Model(config, served)


def _served(config: Any, versions: list[int]) -> list[int]:
    policy = config.version_policy
    if policy.HasField("specific"):
        return [version for version in versions if version in policy.specific.versions]
    return versions if policy.HasField("all") else versions[-(policy.latest.num_versions or 1) :]


def _versions(folder: Path) -> list[int]:
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    return sorted(int(name) for name in names if is_number(name, MOST_INT64) and name.isascii() and name[0] != "0")


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdecimal()
