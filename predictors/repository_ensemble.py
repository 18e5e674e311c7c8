"""A model whose pictures are normalized on the server: UINT8 travels to Triton, a quarter of what FP32 takes.

Three models: `<name>` is the ensemble that callers ask, `<name>-normalize` and `<name>-model` are its steps.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from pathlib import Path
from typing import Any

from kservekit.errors import CannotStart
from kservekit.oip.triton_messages import model_config
from kservekit.predictors.onnx_normalize import PICTURE, PIXELS, Layout, Normalization, write_normalize
from kservekit.predictors.repository import write
from kservekit.predictors.repository_build import Build, Built, prepare
from kservekit.predictors.repository_limits import check_name
from kservekit.tensors import ModelSpec, TensorSpec

_PLACE = "An ensemble has no file of its own, and an object store keeps no empty folder.\n"


def build_normalizing(wanted: Build, how: Normalization, repository: Path) -> Built:
    """CannotStart for what contradicts itself, and for a model that takes no picture, before anything is written."""
    if wanted.keep != Build.keep:
        raise CannotStart(
            f"--keep is {wanted.keep!r}, and a model with --normalize has one version, because its steps are run in "
            "their latest: leave --keep out"
        )
    check_name(wanted.name, in_python=False)
    model = prepare(dataclasses.replace(wanted, name=f"{wanted.name}-model"))
    picture, layout = _picture(model.spec)
    _check_numbers(how, picture.shape[layout.index("C")])
    with tempfile.TemporaryDirectory(prefix="kservekit-") as folder:
        file, place = Path(folder, "normalize.onnx"), Path(folder, "place.txt")
        write_normalize(file, how, picture, layout, model.sizes[picture.name])
        place.write_text(_PLACE)
        normalize = prepare(
            Build(
                file,
                f"{wanted.name}-normalize",
                target=wanted.target,
                version=wanted.version,
                max_batch=model.config.max_batch_size,
                instances=wanted.instances,
                warm_up=wanted.warm_up and bool(model.config.model_warmup),
                sizes=wanted.sizes,
            )
        )
        ensemble = _ensemble(wanted.name, normalize.config, model.config)
        # The one that is asked comes last: a Triton that looks on finds its steps.
        for part in (model, normalize):
            write(repository, part.config, part.files, version=wanted.version)
        built = write(repository, ensemble, {"ensemble.txt": place}, version=wanted.version)
    return Built(built, ensemble, model.notes)


def _picture(spec: ModelSpec) -> tuple[TensorSpec, Layout]:
    """The model's only input, and the order of its dimensions."""
    if len(spec.inputs) == 1:
        item = spec.inputs[0]
        layouts: list[Layout] = ["NCHW", "NHWC"]
        if len(item.shape) == 4 and item.datatype in ("FP32", "FP16"):
            found = [layout for layout in layouts if item.shape[layout.index("C")] in (1, 3)]
            if len(found) == 1:
                return item, found[0]
    takes = ", ".join(f"{item.name!r} {item.datatype} {list(item.shape)}" for item in spec.inputs)
    raise CannotStart(
        f"--normalize is for a model that takes a picture, and this one takes {takes or 'what is not declared'}: "
        "expected one input, FP32 or FP16, of 4 dimensions, the second or the last of them 3 or 1 channels"
    )


def _check_numbers(how: Normalization, channels: int) -> None:
    for name, values in (("mean", how.mean), ("std", how.std)):
        if len(values) != channels or not all(map(math.isfinite, values)) or (name == "std" and 0 in values):
            raise CannotStart(
                f"--normalize has {name} {','.join(f'{value:g}' for value in values)}: expected {channels} "
                f"number{'s, one a channel of the model' if channels > 1 else ', for the one channel of the model'}"
                f"{', none of them 0' if name == 'std' else ''}"
            )


def _ensemble(name: str, normalize: Any, model: Any) -> Any:
    config = model_config.ModelConfig(name=name, platform="ensemble", max_batch_size=model.max_batch_size)
    config.version_policy.latest.num_versions = 1
    (pixels,), (picture,) = normalize.input, model.input
    config.input.add(name=picture.name, data_type=pixels.data_type, dims=pixels.dims)
    between = f"{picture.name}-normalized"
    first = config.ensemble_scheduling.step.add(model_name=normalize.name, model_version=-1)
    first.input_map[PIXELS], first.output_map[PICTURE] = picture.name, between
    second = config.ensemble_scheduling.step.add(model_name=model.name, model_version=-1)
    second.input_map[picture.name] = between
    for item in model.output:
        config.output.add(name=item.name, data_type=item.data_type, dims=item.dims)
        second.output_map[item.name] = item.name
    return config
