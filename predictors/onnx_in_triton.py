"""Runs inside Triton's Python backend, as `model.py` of a repository: ONNX Runtime on `model.onnx` beside it.

Imported by Triton's Python, never by ours: nothing of kservekit is there.
"""

import json
import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        folder = os.path.join(args["model_repository"], args["model_version"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("KSERVEKIT_ONNX_THREADS", "0"))
        self.session = onnxruntime.InferenceSession(
            os.path.join(folder, "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [item["name"] for item in config["input"]]
        self.outputs = [item["name"] for item in config["output"]]
        self.batched = config["max_batch_size"] > 0

    def execute(self, requests):
        feeds = [
            {name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            for request in requests
        ]
        if not self.batched:
            return [self._response(self.session.run(self.outputs, feed)) for feed in feeds]
        # One run for all that Triton's dynamic batching brought together, then each gets its own rows.
        joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in self.inputs}
        ends = np.cumsum([len(feed[self.inputs[0]]) for feed in feeds])[:-1]
        parts = [np.split(output, ends) for output in self.session.run(self.outputs, joined)]
        return [self._response(arrays) for arrays in zip(*parts, strict=True)]

    def _response(self, arrays):
        tensors = [triton.Tensor(name, array) for name, array in zip(self.outputs, arrays, strict=True)]
        return triton.InferenceResponse(tensors)
