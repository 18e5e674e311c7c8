"""KServe in front, named arrays inside: base classes for a predictor and a transformer, and the server."""

import gc

# KServe's import makes 130,000 objects that stay. The collector would go through them again and again meanwhile and
# find nothing: some 4 % of the time from the command line to ready.
_collects = gc.isenabled()
gc.disable()
try:
    # Before kserve, so that tritonclient.grpc stays importable in this process (see kservekit.oip.triton_messages).
    import kservekit.oip.triton_messages  # noqa: F401  isort: skip
    from kservekit.serving.flags import flags_parser
    from kservekit.serving.model import Predictor, Transformer, current_request
    from kservekit.serving.server import ModelServer, serve
    from kservekit.tensors import ModelSpec, Tensors, TensorSpec
finally:
    if _collects:
        gc.enable()

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
