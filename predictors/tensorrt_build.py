"""An engine from an ONNX file, as bytes; TensorRT for RTX does it without a GPU."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kservekit.config import TensorRTSettings
from kservekit.errors import CannotStart
from kservekit.predictors.onnx_file import check_shapes
from kservekit.predictors.tensorrt_profiles import OpenInput, Sizes, profile, sizes
from kservekit.predictors.tensorrt_runtime import Library, recorder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """All that decides what is built, beside the file, the library and the GPU."""

    sizes: Sizes
    precision: tuple[str, ...] = ()
    """fp16, bf16, int8, fp8: what layers may compute in; nothing: in the datatypes that the file says."""


def options(settings: TensorRTSettings) -> Options:
    """What the settings say; CannotStart for those that cannot be, before a file is read or a GPU touched."""
    batch = (settings.min_batch, settings.opt_batch or settings.max_batch, settings.max_batch)
    return Options(sizes(settings.sizes, batch), settings.precision)


def build(library: Library, path: Path, wanted: Options) -> bytes:
    """CannotStart for a file that is no model, or none that this library builds with these options."""
    api, notes = library.api, recorder(library.api)
    notes.errors.clear()
    began = time.monotonic()
    try:
        builder = api.Builder(notes)
    except TypeError:  # pybind11's, for a constructor that gave nothing
        raise CannotStart(f"{library} cannot build engines here: {notes.reason()}") from None
    # Without it TensorRT 10 computes in FP32 and TF32, whatever the file says; later ones are always so.
    typed = 0 if wanted.precision else 1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    _parse(library, network, notes, path)
    config = builder.create_builder_config()
    for flag in _flags(library, network, wanted.precision):
        config.set_flag(flag)
    ranges = profile(_open_inputs(network, path), wanted.sizes)
    if ranges:
        shapes = builder.create_optimization_profile()
        for name, item in ranges.items():
            shapes.set_shape(name, *item)
        config.add_optimization_profile(shapes)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise CannotStart(f"{library} builds no engine from {path}: {notes.reason()}")
    engine = bytes(plan)
    took = time.monotonic() - began
    log.info("built an engine: model=%s library=%s bytes=%s seconds=%.1f", path, library, len(engine), took)
    return engine


def _parse(library: Library, network: Any, notes: Any, path: Path) -> None:
    parser = library.api.OnnxParser(network, notes)
    if not parser.parse_from_file(str(path)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = "; ".join(f"{_where(error)}{error.desc()}" for error in errors) or notes.reason()
        raise CannotStart(f"{path} is not a model that {library} takes: {reasons}")
    if not network.num_outputs:  # which the parser does not mind, even in an empty file
        raise CannotStart(f"{path} is not a model that {library} takes: it has no outputs")


def _where(error: Any) -> str:
    return f"{error.node_operator()} {error.node_name()!r}: " if error.node_operator() else ""


def _flags(library: Library, network: Any, precision: tuple[str, ...]) -> list[Any]:
    flags, kinds = library.api.BuilderFlag.__members__, library.api.LayerType
    known = [name for name in ("fp16", "bf16", "int8", "fp8") if name.upper() in flags]
    for name in precision:
        if name not in known:
            expected = ", ".join(known)
            raise CannotStart(
                f"KSERVEKIT_TENSORRT_PRECISION has {name!r}: {library} takes "
                + (expected or "a model's own datatypes alone; unset it, and export or quantize the model so")
            )
    quantized = any(network.get_layer(index).type == kinds.QUANTIZE for index in range(network.num_layers))
    for name in {"int8", "fp8"} & set(precision):
        if not quantized:
            raise CannotStart(
                f"KSERVEKIT_TENSORRT_PRECISION has {name!r}, and the model is not quantized: nothing says which values "
                "its numbers stand for; quantize it first (QuantizeLinear and DequantizeLinear in the file)"
            )
    return [flags[name.upper()] for name in precision]


def _open_inputs(network: Any, path: Path) -> list[OpenInput]:
    """Inputs with a size that the file leaves open; CannotStart for one whose values are sizes, or without a shape."""
    found = []
    items = [network.get_input(index) for index in range(network.num_inputs)]
    check_shapes(path, [item.name for item in items if not tuple(item.shape)])
    for item in items:
        shape = tuple(item.shape)
        if item.is_shape_tensor:
            raise CannotStart(
                f"{path}: the values of input {item.name!r} are the sizes of another tensor; "
                "export the model with constants there, or serve it with OnnxPredictor"
            )
        if -1 in shape:
            found.append(OpenInput(item.name, shape, tuple(map(item.get_dimension_name, range(len(shape))))))
    return found
