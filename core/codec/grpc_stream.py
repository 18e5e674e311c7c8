"""ModelStreamInfer's answers: Triton's message around a ModelInferResponse, or an error, as bytes.

Triton's "GRPC Extension", ModelStreamInferResponse: the error's text is its field 1, the response its field 2.
"""

from __future__ import annotations

from typing import Any

from kservekit.codec.grpc import decode_answer, encode_answer
from kservekit.codec.grpc_wire import cut_out, put_in
from kservekit.codec.message import Answer

_ERROR, _RESPONSE = 1, 2

WANTS_LAST = "triton_enable_empty_final_response"
"""The request's parameter: after the last answer comes an empty one that says so."""

IS_LAST = "triton_final_response"
"""What each answer says where that was asked for."""

STATUS = "kservekit-grpc-error"
"""The metadata: an error ends the stream with a status, as any call does, instead of coming as one more answer.

Triton's own name for it is not to be sent: a decoupled model of its Python backend that fails after an answer then ends
Triton 2.51 with a segmentation fault.
"""

ASKS_FOR_STATUS = (STATUS, "triton_grpc_error")


def encode(answer: Answer, messages: Any) -> bytes:
    return put_in(b"", _RESPONSE, [encode_answer(answer, messages)])


def encode_error(text: str, answer: Answer, messages: Any) -> bytes:
    """`answer` has no tensors, and says whose error it is."""
    return put_in(encode(answer, messages), _ERROR, [text.encode()])


def decode(data: bytes, messages: Any) -> tuple[Answer, str]:
    """The answer, or an empty one and what is wrong."""
    _, parts, error = cut_out(data, _RESPONSE, _ERROR)
    return decode_answer(bytes(parts[0]) if parts else b"", messages), error
