"""Writes Triton model repositories: `<name>/config.pbtxt` and `<name>/<version>/` with the model's files."""

from __future__ import annotations

import filecmp
import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from kservekit.oip.triton_messages import model_config
from kservekit.predictors.replace import replace
from kservekit.tensors import ModelSpec, TensorSpec

ONNX_IN_TRITON = Path(__file__).with_name("onnx_in_triton.py")
"""A model.py that runs `model.onnx` beside it: for a Triton that has the Python backend and no ONNX backend."""


def write_model(
    repository: Path,
    name: str,
    spec: ModelSpec,
    files: Mapping[str, Path],
    *,
    max_batch_size: int = 0,
    version: int = 1,
) -> Path:
    """A model for Triton's Python backend; `files` go beside each other, and one of them is `model.py`.

    With a `max_batch_size` the spec's first dimension is the batch, and Triton batches dynamically.
    """
    config = declared(name, spec, backend="python", max_batch_size=max_batch_size)
    if max_batch_size:
        config.dynamic_batching.SetInParent()
    return write(repository, config, files, version=version)


def declared(name: str, spec: ModelSpec, *, backend: str, max_batch_size: int = 0) -> Any:
    """A ModelConfig with the spec's inputs and outputs; with a `max_batch_size` without their first dimension."""
    config = model_config.ModelConfig(name=name, backend=backend, max_batch_size=max_batch_size)
    for kind, items in ((config.input, spec.inputs), (config.output, spec.outputs)):
        for item in items:
            dims = _dims(item, max_batch_size)
            given = kind.add(name=item.name, data_type=_datatype(item), dims=dims or (1,))
            if item.optional:
                given.optional = True
            if not dims:  # beside the batch; Triton has no empty dims: its callers see a 1, and the model does not
                given.reshape.SetInParent()
    return config


def write(repository: Path, config: Any, files: Mapping[str, Path], *, version: int = 1) -> Path:
    """`files` go into the version's folder, and the ModelConfig beside it. The model's folder.

    Files that differ are replaced, one by one and whole, so that neither a server that reads the folder meanwhile nor
    another process that writes the same model sees a half of one.
    """
    folder: Path = repository / config.name
    (folder / str(version)).mkdir(parents=True, exist_ok=True)
    for file, source in files.items():
        target = folder / str(version) / file
        if not (target.is_file() and filecmp.cmp(source, target, shallow=False)):
            target.parent.mkdir(parents=True, exist_ok=True)
            replace(target, functools.partial(shutil.copyfile, source))
    text, target = text_format.MessageToString(config), folder / "config.pbtxt"
    if not (target.is_file() and target.read_text() == text):
        replace(target, lambda partial: partial.write_text(text))
    return folder


def datatype_name(number: int) -> str:
    """The protocol's name of a ModelConfig's data_type."""
    name: str = model_config.DataType.Name(number)
    return name.removeprefix("TYPE_").replace("STRING", "BYTES")


def _datatype(spec: TensorSpec) -> int:
    number: int = model_config.DataType.Value("TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}")
    return number


def _dims(spec: TensorSpec, max_batch_size: int) -> tuple[int, ...]:
    return spec.shape[1:] if max_batch_size else spec.shape
