"""What Triton is told, and says, of memory that it shares with us."""

from __future__ import annotations

from typing import Any

from kservekit.oip.grpc_channel import GrpcFailure

CALL_TIMEOUT_S = 5.0
"""Of the calls beside inference."""

_NOBODY_KNOWS = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN")


def answered(error: BaseException | None) -> bool:
    """Whether the server said so itself and is done with the request; after a deadline, say, it may be at it still."""
    if not isinstance(error, GrpcFailure) or not error.by_server:
        return False
    # Triton begins so what it says of a request; the same codes come from gRPC in it, which knows nothing of models.
    return error.code not in _NOBODY_KNOWS or error.details.startswith("[request id: ")


def refer(parameters: Any, region: str, at: int, size: int) -> None:
    parameters["shared_memory_region"].string_param = region
    parameters["shared_memory_byte_size"].int64_param = size
    parameters["shared_memory_offset"].int64_param = at
