"""What is sent: three floats, or one picture as a tensor; as a body for the load generators.

Every contender answers with what it was given, as the output `output-0`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from kservekit.codec import grpc as grpc_codec
from kservekit.codec import rest_v2
from kservekit.codec.message import Request
from kservekit.oip.triton_messages import messages
from kservekit.tensors import ModelSpec, TensorSpec

INPUT, OUTPUT = "x", "output-0"
WIRES = ("rest-json", "rest-binary", "grpc")


@dataclass(frozen=True)
class Payload:
    """`name` is also the model's, with every contender."""

    name: str
    shape: tuple[int, ...]

    @property
    def array(self) -> np.ndarray:
        """Numbers that look like a prepared picture's, the same at every call."""
        return np.random.default_rng(224).standard_normal(self.shape, dtype=np.float32)

    @property
    def spec(self) -> ModelSpec:
        shape = (-1, *self.shape[1:])
        return ModelSpec((TensorSpec(INPUT, "FP32", shape),), (TensorSpec(OUTPUT, "FP32", shape),))

    @property
    def request(self) -> Request:
        return Request({INPUT: self.array}, model=self.name)

    def rest(self, *, binary: bool) -> tuple[bytes, dict[str, str]]:
        """The body and headers of a POST to /v2/models/{name}/infer, as our own client sends them."""
        parts, json_length = rest_v2.encode_request(self.request, binary=binary, binary_answer=binary)
        if json_length is None:
            return b"".join(parts), {"content-type": "application/json"}
        headers = {"content-type": rest_v2.BINARY_CONTENT_TYPE, rest_v2.JSON_LENGTH_HEADER: str(json_length)}
        return b"".join(parts), headers

    def grpc(self) -> bytes:
        """A ModelInferRequest with raw contents, with gRPC's five bytes before it."""
        packed = grpc_codec.encode_request(self.request, messages)
        return struct.pack(">BI", 0, len(packed)) + packed


SMALL = Payload("small", (1, 3))
TENSOR = Payload("tensor", (1, 3, 224, 224))
MLP = Payload("mlp", (1, 2048))
CONVOLUTION = Payload("convolution", (1, 32, 32, 32))
PAYLOADS = {payload.name: payload for payload in (SMALL, TENSOR)}
"""Those that Triton and the no-op models serve."""
