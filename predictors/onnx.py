"""A KServe predictor with ONNX Runtime in its own process: no GPU and no Triton needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kservekit import config
from kservekit.config import OnnxSettings
from kservekit.errors import CannotStart, InvalidInput
from kservekit.serving import Predictor, Tensors, TensorSpec

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class OnnxPredictor(Predictor):
    """Settings: KSERVEKIT_ONNX_MODEL_PATH, _THREADS. Takes and gives what the file declares; dynamic sizes are -1."""

    def __init__(self, name: str = "model", *, settings: OnnxSettings | None = None) -> None:
        super().__init__(name)
        self.settings = settings or config.read(OnnxSettings)
        self.session: Any = None

    def load(self) -> bool:
        try:
            import onnxruntime
        except ImportError:
            raise CannotStart("ONNX Runtime is not installed: pip install 'kservekit[onnx]'") from None
        path = Path(self.settings.model_path)
        if not path.is_file():
            raise CannotStart(f"KSERVEKIT_ONNX_MODEL_PATH is {str(path)!r}: no such file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.settings.threads
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base
            raise CannotStart(f"{path} is not a model that ONNX Runtime takes: {error}") from error
        self.inputs = [_spec(item) for item in self.session.get_inputs()]
        self.outputs = [_spec(item) for item in self.session.get_outputs()]
        self.ready = True
        return self.ready

    def infer(self, tensors: Tensors) -> Tensors:
        feed = {name: _text(name, values) if values.dtype.kind == "O" else values for name, values in tensors.items()}
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self.session.run(names, feed), strict=True))


def _text(name: str, values: np.ndarray) -> np.ndarray:
    """ONNX has strings and no bytes."""
    try:
        return np.array([value.decode() for value in values.ravel().tolist()], dtype=np.object_).reshape(values.shape)
    except UnicodeDecodeError:
        raise InvalidInput(f"input {name!r} holds bytes that are not UTF-8: this model takes text") from None


def _spec(item: Any) -> TensorSpec:
    if item.type not in _DATATYPES:
        raise CannotStart(f"{item.name!r} of the model is {item.type}, which the protocol has no datatype for")
    return TensorSpec(
        item.name, _DATATYPES[item.type], tuple(size if isinstance(size, int) else -1 for size in item.shape)
    )
