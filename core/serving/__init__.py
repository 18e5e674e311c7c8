"""KServe in front, named arrays inside: base classes for a predictor and a transformer, and the server."""

# Before kserve, so that tritonclient.grpc stays importable in this process (see kservekit.oip.triton_messages).
import kservekit.oip.triton_messages  # noqa: F401  isort: skip
from kservekit.serving.flags import flags_parser
from kservekit.serving.model import Predictor, Transformer, current_request
from kservekit.serving.server import ModelServer, serve
from kservekit.tensors import ModelSpec, Tensors, TensorSpec

__all__ = [
    "ModelServer",
    "ModelSpec",
    "Predictor",
    "TensorSpec",
    "Tensors",
    "Transformer",
    "current_request",
    "flags_parser",
    "serve",
]
