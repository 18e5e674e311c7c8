"""EfficientNet-Lite0: from its published PyTorch weights to an ONNX file, without PyTorch.

The network is the one of "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (Tan and Le, 2019)
in its Lite form (TensorFlow's TPU model garden, efficientnet/lite): no squeeze-and-excitation, ReLU6 instead of swish,
stem and head unscaled. The weights were carried over from TensorFlow, which shows in three places: "SAME" padding is
uneven where the stride is 2, batch normalization divides by sqrt(variance + 0.001), and the convolutions lie in the
file in TensorFlow's axis order, behind PyTorch strides.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kservekit.errors import CannotStart
from kservekit.local.torch_weights import Arrays, read_weights

if TYPE_CHECKING:
    import onnx

BUILD = 1
"""Raise it when the same weights give another graph: a model built by an older number is built again."""

SIZE = 224
CLASSES = 1000
EPSILON = 1e-3


class Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    """Of the first block; the others keep the size."""
    expand: int
    inputs: int
    outputs: int


STAGES = (
    Stage(1, 3, 1, 1, 32, 16),
    Stage(2, 3, 2, 6, 16, 24),
    Stage(2, 5, 2, 6, 24, 40),
    Stage(3, 3, 2, 6, 40, 80),
    Stage(3, 5, 1, 6, 80, 112),
    Stage(4, 5, 2, 6, 112, 192),
    Stage(1, 3, 1, 6, 192, 320),
)


def build_onnx(weights: Path, target: Path) -> None:
    """Writes the ONNX model of these weights: `image` FP32 [N, 3, 224, 224] in, `logits` FP32 [N, 1000] out.

    The same weights give the same bytes. `target` appears whole or not at all.
    """
    try:
        import onnx
    except ImportError as error:
        raise CannotStart(
            f"{weights.name} cannot be converted: the package onnx is not installed; pip install 'kservekit[local]'"
        ) from error

    arrays = read_weights(weights)
    try:
        model = _model(arrays)
    except ValueError as error:
        raise CannotStart(f"{weights} is not EfficientNet-Lite0: {error}; delete it to fetch it again") from error
    onnx.checker.check_model(model, full_check=True)

    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(model.SerializeToString(deterministic=True))
        os.replace(partial, target)
    except OSError as error:
        raise CannotStart(f"{target} cannot be written: {error}; free the disk or choose another folder") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def fold(weight: np.ndarray[Any, Any], gamma: Any, beta: Any, mean: Any, variance: Any) -> tuple[Any, Any]:
    """The convolution [O, I, k, k] and bias [O] that do the work of a bias-free convolution and its batch norm."""
    scale = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + EPSILON)
    folded = weight * scale[:, None, None, None]
    return folded.astype(np.float32), (beta - mean * scale).astype(np.float32)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME: zeros around for ceil(size / stride) positions to come out; the odd one goes after."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class _Graph:
    """Nodes and weights as they come, and the tensors of the file that nobody has asked for yet."""

    def __init__(self, arrays: Arrays) -> None:
        self.unused = dict(arrays)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.constant("zero", np.float32(0))
        self.constant("six", np.float32(6))

    def take(self, name: str, *shape: int) -> np.ndarray[Any, Any]:
        array = self.unused.pop(name, None)
        if array is None:
            raise ValueError(f"{name} is missing")
        if array.shape != shape or array.dtype != np.float32:
            raise ValueError(f"{name} is {array.dtype}{list(array.shape)}, expected float32{list(shape)}")
        return array

    def constant(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, output: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def conv(self, x: str, conv: str, norm: str, shape: tuple[int, ...], size: int, stride: int = 1) -> str:
        """Convolution and batch norm as one; `size` is the height and width that come in, `shape` is [O, I, k, k]."""
        outputs, inputs, kernel, _ = shape
        depthwise = inputs == 1
        normal = (self.take(f"{norm}.{part}", outputs) for part in ("weight", "bias", "running_mean", "running_var"))
        weight, bias = fold(self.take(f"{conv}.weight", *shape), *normal)
        before, after = same_padding(size, kernel, stride)
        return self.node(
            "Conv",
            conv,
            x,
            self.constant(f"{conv}.weight", weight),
            self.constant(f"{conv}.bias", bias),
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[before, before, after, after],
            group=outputs if depthwise else 1,
        )

    def relu6(self, x: str) -> str:
        return self.node("Clip", f"{x}.relu6", x, "zero", "six")

    def block(self, x: str, name: str, stage: Stage, inputs: int, size: int, stride: int) -> str:
        """Widen, look around per channel, narrow; what came in is added where the shape allows it."""
        wide = inputs * stage.expand
        y = x
        if stage.expand != 1:
            y = self.relu6(self.conv(y, f"{name}._expand_conv", f"{name}._bn0", (wide, inputs, 1, 1), size))
        kernel = (wide, 1, stage.kernel, stage.kernel)
        y = self.relu6(self.conv(y, f"{name}._depthwise_conv", f"{name}._bn1", kernel, size, stride))
        y = self.conv(y, f"{name}._project_conv", f"{name}._bn2", (stage.outputs, wide, 1, 1), math.ceil(size / stride))
        if stride == 1 and inputs == stage.outputs:
            y = self.node("Add", f"{name}.sum", y, x)
        return y


def _model(arrays: Arrays) -> onnx.ModelProto:
    from onnx import TensorProto, helper

    graph = _Graph(arrays)
    size = SIZE // 2
    x = graph.relu6(graph.conv("image", "_conv_stem", "_bn0", (32, 3, 3, 3), SIZE, stride=2))
    number = 0
    for stage in STAGES:
        inputs, stride = stage.inputs, stage.stride
        for _ in range(stage.repeats):
            x = graph.block(x, f"_blocks.{number}", stage, inputs, size, stride)
            size = math.ceil(size / stride)
            inputs, stride, number = stage.outputs, 1, number + 1
    x = graph.relu6(graph.conv(x, "_conv_head", "_bn1", (1280, 320, 1, 1), size))
    x = graph.node("Flatten", "features", graph.node("GlobalAveragePool", "pool", x))
    weight = graph.constant("_fc.weight", graph.take("_fc.weight", CLASSES, 1280))
    bias = graph.constant("_fc.bias", graph.take("_fc.bias", CLASSES))
    graph.node("Gemm", "logits", x, weight, bias, transB=1)

    # num_batches_tracked counts training steps; inference has no use for it.
    strangers = [name for name in graph.unused if not name.endswith(".num_batches_tracked")]
    if strangers:
        raise ValueError(f"{strangers[0]} is not part of the network ({len(strangers)} such tensors)")

    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "efficientnet-lite0",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
            graph.initializers,
        ),
        # Both stated, or the onnx package in use would choose, and an older runtime could not load the file.
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="kservekit",
    )
