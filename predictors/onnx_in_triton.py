"""Runs inside Triton's Python backend, as `model.py` of a repository: ONNX Runtime on `model.onnx` beside it.

Imported by Triton's Python, never by ours: nothing of kservekit is there.
"""

import json
import os

# From 1.29 on ONNX Runtime sends usage data to its makers, unless it is told not to before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

_DTYPES = {"float": "float32", "double": "float64", "string": "object"}
"""NumPy's names, where ONNX has others."""


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.name = config["name"]
        folder = os.path.join(args["model_repository"], args["model_version"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("KSERVEKIT_ONNX_THREADS", "0"))
        self.session = onnxruntime.InferenceSession(
            os.path.join(folder, "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [item["name"] for item in config["input"]]
        self.outputs = [item["name"] for item in config["output"]]
        self.batched = config["max_batch_size"] > 0
        _check("input", config["input"], self.session.get_inputs(), self.batched)
        _check("output", config["output"], self.session.get_outputs(), self.batched)

    def execute(self, requests):
        feeds = [
            {name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            for request in requests
        ]
        if not self.batched or len(feeds) == 1:
            return [self._answer(feed) for feed in feeds]
        try:
            # One run for all that Triton's dynamic batching brought together, then each gets its own rows.
            outputs = self._run({name: np.concatenate([feed[name] for feed in feeds]) for name in self.inputs})
        except Exception:
            return [self._answer(feed) for feed in feeds]  # one's fault is not the others'
        ends = np.cumsum([len(feed[self.inputs[0]]) for feed in feeds])
        if any(output.shape[:1] != (ends[-1],) for output in outputs):
            shapes = [f"{name} {list(output.shape)}" for name, output in zip(self.outputs, outputs, strict=True)]
            triton.Logger.log_warn(
                f"{self.name}: {', '.join(shapes)} for {ends[-1]} rows: this model does not answer row by row, and "
                "its callers share no runs from now on; build it with --max-batch 0"
            )
            self.batched = False
            return [self._answer(feed) for feed in feeds]
        parts = [np.split(output, ends[:-1]) for output in outputs]
        return [self._response(arrays) for arrays in zip(*parts, strict=True)]

    def _answer(self, feed):
        try:
            return self._response(self._run(feed))
        except UnicodeDecodeError:
            fault = "this model takes text, and an input holds bytes that are not UTF-8", triton.TritonError.INVALID_ARG
        except InvalidArgument as error:
            reason = str(error).rpartition("INVALID_ARGUMENT : ")[2].rpartition("Status Message: ")[2]
            fault = f"the model does not take these values: {reason}", triton.TritonError.INVALID_ARG
        except Exception as error:
            fault = f"ONNX Runtime failed: {error}", triton.TritonError.INTERNAL
        return triton.InferenceResponse([], triton.TritonError(*fault))

    def _run(self, feed):
        return self.session.run(self.outputs, {name: _text(values) for name, values in feed.items()})

    def _response(self, arrays):
        tensors = [triton.Tensor(name, array) for name, array in zip(self.outputs, arrays, strict=True)]
        return triton.InferenceResponse(tensors)


def _text(values):
    """ONNX has strings and no bytes: of bytes ONNX Runtime would take what Python prints for them."""
    if values.dtype.kind != "O":
        return values
    return np.array([value.decode() for value in values.ravel()], dtype=object).reshape(values.shape)


def _check(kind, declared, actual, batched):
    """As Triton's own ONNX backend does: a config.pbtxt that contradicts the model is refused when it is loaded."""
    by_name = {item.name: item for item in actual}
    names = [item["name"] for item in declared]
    missing = [name for name in by_name if name not in names] if kind == "input" else []
    for name in [name for name in names if name not in by_name] + missing:
        raise triton.TritonModelException(
            f"config.pbtxt declares {kind} {', '.join(names)}, and model.onnx has {', '.join(by_name)}: "
            f"{name} is in one of them only"
        )
    for item in declared:
        of_file = by_name[item["name"]]
        kind_of_file = of_file.type.removeprefix("tensor(").removesuffix(")")
        sizes = [size if isinstance(size, int) else -1 for size in of_file.shape]
        dims = [-1] * batched + [int(size) for size in item.get("reshape", {}).get("shape", item["dims"])]
        dtype = np.dtype(triton.triton_string_to_numpy(item["data_type"])).name
        same_sizes = len(dims) == len(sizes) and all(
            -1 in pair or len(set(pair)) == 1 for pair in zip(dims, sizes, strict=False)
        )
        if dtype != _DTYPES.get(kind_of_file, kind_of_file) or not same_sizes:
            raise triton.TritonModelException(
                f"config.pbtxt declares {kind} {item['name']} {item['data_type']} {dims}, and in model.onnx it is "
                f"{kind_of_file} {sizes}"
            )
