"""Runs inside Triton's Python backend, the only one that the local Triton has: gives back what it is given.

Where its output is declared as less, the beginning of each row.
"""

import json

import numpy as np
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        given, answered = ([int(size) for size in config[kind][0]["dims"]] for kind in ("input", "output"))
        self.columns = answered[-1] if len(answered) < len(given) else 0

    def execute(self, requests):
        answers = []
        for request in requests:
            array = triton.get_input_tensor_by_name(request, "x").as_numpy()
            if self.columns:
                array = np.ascontiguousarray(array.reshape(len(array), -1)[:, : self.columns])
            answers.append(triton.InferenceResponse([triton.Tensor("output-0", array)]))
        return answers
