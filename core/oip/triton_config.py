"""A model's configuration as Triton gives it: what its metadata does not say.

Triton's "Model Configuration Extension", over gRPC and over HTTP.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import json_format

from kservekit.codec.message import Request
from kservekit.errors import ServingError
from kservekit.oip.grpc import GrpcBackend
from kservekit.oip.grpc_channel import GrpcFailure
from kservekit.oip.http import HttpBackend
from kservekit.oip.shared_memory import SharedMemoryBackend
from kservekit.oip.triton_messages import messages
from kservekit.oip.triton_messages import model_config as protocol

TritonBackend = GrpcBackend | HttpBackend | SharedMemoryBackend


async def model_config(backend: TritonBackend, model: str, version: str = "") -> Any:
    """A ModelConfig message; None where Triton keeps it to itself (it can be told to), or is none."""
    if isinstance(backend, HttpBackend):
        try:
            _, body = await backend.call("GET", f"{backend.path(model, version)}/config", Request({}, model=model))
            return json_format.Parse(body, protocol.ModelConfig(), ignore_unknown_fields=True)
        except (ServingError, json_format.ParseError):
            return None
    asked = messages.ModelConfigRequest(name=model, version=version)
    wire = backend.wire if isinstance(backend, SharedMemoryBackend) else backend
    try:
        return (await wire.stub().ModelConfig(asked, timeout=wire.timeout_s)).config
    except GrpcFailure:
        return None
