"""A predictor as a KServe user writes it, under stock kserve.ModelServer: plain `predict`, KServe's types and flags.

`--compute` makes it busy for a second first, as our own busy models are.
"""

from __future__ import annotations

import argparse
from typing import Any

import kserve
from kserve import InferOutput, InferRequest, InferResponse
from kserve.model_server import parser as kserve_parser

from kservekit.benchmarks.work import compute_in_numpy, compute_in_python

parser = argparse.ArgumentParser(parents=[kserve_parser])
parser.add_argument("--compute", choices=("nothing", "numpy", "python"), default="nothing")


class NoOp(kserve.Model):  # type: ignore[misc]
    def __init__(self, name: str, compute: str) -> None:
        super().__init__(name)
        self.compute = {"numpy": compute_in_numpy, "python": compute_in_python}.get(compute)
        self.ready = True

    def predict(
        self, payload: InferRequest, headers: Any = None, response_headers: dict[str, str] | None = None
    ) -> InferResponse:
        if self.compute is not None:
            self.compute()
        x = payload.inputs[0].as_numpy()
        # KServe's get_predict_response would be shorter; over gRPC it answers with a list of floats instead of raw
        # contents, many times slower for a picture.
        output = InferOutput("output-0", list(x.shape), payload.inputs[0].datatype)
        output.set_data_from_numpy(x)
        return InferResponse(
            payload.id or "1",
            self.name,
            [output],
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


if __name__ == "__main__":
    options = parser.parse_args()
    kserve.ModelServer().start([NoOp(options.model_name, options.compute)])
