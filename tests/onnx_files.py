"""ONNX files that the tests write."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def write_onnx(path: Path, nodes, inputs, outputs, weights=(), *, opset: int = 19, **options) -> Path:
    """Inputs and outputs are (name, datatype, shape); a name in a shape is a size that is left open."""
    tensors = [[helper.make_tensor_value_info(*item) for item in items] for items in (inputs, outputs)]
    graph = helper.make_graph(nodes, "test", *tensors, initializer=list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.save(model, path, **options)
    return path


def write_doubles(path: Path, datatype=TensorProto.FLOAT, shape=("n", 2)) -> Path:
    """y = x + x."""
    nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    return write_onnx(path, nodes, [("x", datatype, shape)], [("y", datatype, shape)])
