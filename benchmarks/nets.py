"""Nets that cost what real ones cost and give back what they are given, so that every answer can be checked.

Their weights only move numbers about: multiplied and added like any others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kservekit.benchmarks import load
from kservekit.benchmarks.payloads import CONVOLUTION, INPUT, MLP, OUTPUT, Payload


def mlp() -> Path:
    """Four layers, each 2048 wide: 64 MiB of weights, which a run reads once whatever its rows."""
    order = np.random.default_rng(2048)
    first, second = (np.eye(2048, dtype=np.float32)[order.permutation(2048)] for _ in range(2))
    # Each of its own, because ONNX Runtime keeps equal weights once; and undone in the end.
    weights = [first, second, second.T, first.T]
    return _written(MLP, weights, lambda x, w, y: helper.make_node("MatMul", [x, w], [y]))


def convolution() -> Path:
    """Four layers of 3x3 over 32 channels of 32x32: few weights, and work that grows with the rows."""
    kernel = np.zeros((32, 32, 3, 3), np.float32)
    kernel[range(32), range(32), 1, 1] = 1
    return _written(CONVOLUTION, [kernel] * 4, lambda x, w, y: helper.make_node("Conv", [x, w], [y], pads=[1, 1, 1, 1]))


def _written(payload: Payload, weights: Sequence[np.ndarray], layer: Callable[[str, str, str], onnx.NodeProto]) -> Path:
    path = load.folder() / f"{payload.name}.onnx"
    if not path.exists():
        names = [INPUT, *(f"x{at}" for at in range(1, len(weights))), OUTPUT]
        nodes = [layer(names[at], f"w{at}", names[at + 1]) for at in range(len(weights))]
        shape: list[str | int | None] = ["n", *payload.shape[1:]]
        inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name in (INPUT, OUTPUT))
        initializers = [numpy_helper.from_array(values, f"w{at}") for at, values in enumerate(weights)]
        graph = helper.make_graph(nodes, payload.name, inputs, outputs, initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        load.file(path.name, model.SerializeToString())
    return path
