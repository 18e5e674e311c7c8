"""What is sent: three floats, one picture as a tensor, or eight; as a body for the load generators.

Every contender answers with what it was given, or with the beginning of it, as the output `output-0`.
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
    columns: int = 0
    """How many numbers of each row are the answer, as many as there are classes, say; 0: all, in the same shape."""
    instances: int = 1
    """Of Triton's model. With one, the model itself is what several large tensors wait for, however they came."""

    @property
    def array(self) -> np.ndarray:
        """Numbers that look like a prepared picture's, the same at every call."""
        return np.random.default_rng(224).standard_normal(self.shape, dtype=np.float32)

    @property
    def spec(self) -> ModelSpec:
        given = (-1, *self.shape[1:])
        answered = (-1, self.columns) if self.columns else given
        return ModelSpec((TensorSpec(INPUT, "FP32", given),), (TensorSpec(OUTPUT, "FP32", answered),))

    @property
    def answer(self) -> np.ndarray:
        array = self.array
        return array.reshape(len(array), -1)[:, : self.columns] if self.columns else array

    @property
    def request(self) -> Request:
        return Request({INPUT: self.array}, model=self.name)

    def rest(self, *, binary: bool) -> tuple[bytes, dict[str, str]]:
        """The body and headers of a POST to /v2/models/{name}/infer, as our own client sends them."""
        parts, json_length = rest_v2.encode_request(self.request, binary=binary, binary_answer=binary)
        return b"".join(parts), rest_v2.headers(json_length)

    def grpc(self) -> bytes:
        """A ModelInferRequest with raw contents, with gRPC's five bytes before it."""
        packed = grpc_codec.encode_request(self.request, messages)
        return struct.pack(">BI", 0, len(packed)) + packed


SMALL = Payload("small", (1, 3))
TENSOR = Payload("tensor", (1, 3, 224, 224))
MLP = Payload("mlp", (1, 2048))
CONVOLUTION = Payload("convolution", (1, 32, 32, 32))
PICTURES = Payload("pictures", (8, 3, 224, 224), instances=2)
SCORED = Payload("scored", (8, 3, 224, 224), columns=1000, instances=2)
PAYLOADS = {payload.name: payload for payload in (SMALL, TENSOR, PICTURES, SCORED)}
"""Those that Triton and the no-op models serve."""
