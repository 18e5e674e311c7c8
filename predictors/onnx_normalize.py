"""An ONNX file that turns UINT8 pixels into what a model was trained on: (x - mean) / std, a channel each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from kservekit.errors import CannotStart
from kservekit.tensors import TensorSpec

Layout = Literal["NCHW", "NHWC"]

PIXELS, PICTURE = "pixels", "picture"
"""What it takes and gives."""

_OPSET, _IR = 13, 8
"""As old as can be, so that every ONNX Runtime and every TensorRT in use reads it."""


@dataclass(frozen=True)
class Normalization:
    mean: tuple[float, ...]
    """On 0 to 255, of each channel."""
    std: tuple[float, ...]
    layout: Layout | None = None
    """Of the pixels; None: as the model takes its picture."""


def write_normalize(path: Path, how: Normalization, model: TensorSpec, layout: Layout, sizes: Sequence[str]) -> None:
    """For a `model` that takes FP32 or FP16 in `layout`; `sizes` are the names of those that it leaves open."""
    try:
        from onnx import TensorProto, helper, numpy_helper, save
    except ImportError:
        raise CannotStart("ONNX files are made with onnx: pip install 'kservekit[local]'") from None
    pixels_layout = how.layout or layout
    order = [layout.index(axis) for axis in pixels_layout]
    shape = [size if size != -1 else name or None for size, name in zip(model.shape, sizes, strict=True)]
    kind = TensorProto.FLOAT16 if model.datatype == "FP16" else TensorProto.FLOAT
    nodes, last = [], PIXELS
    if pixels_layout != layout:  # while a value is still one byte
        perm = [pixels_layout.index(axis) for axis in layout]
        nodes.append(helper.make_node("Transpose", [last], ["turned"], perm=perm))
        last = "turned"
    nodes += [
        helper.make_node("Cast", [last], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["cast", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["scaled"]),
        helper.make_node("Cast", ["scaled"], [PICTURE], to=kind),
    ]
    beside = (-1,) if layout == "NHWC" else (-1, 1, 1)
    weights = [
        numpy_helper.from_array(np.array(values, np.float32).reshape(beside), name)
        for name, values in (("mean", how.mean), ("std", how.std))
    ]
    graph = helper.make_graph(
        nodes,
        "normalize",
        [helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, [shape[axis] for axis in order])],
        [helper.make_tensor_value_info(PICTURE, kind, shape)],
        weights,
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR), path)
