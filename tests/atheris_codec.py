"""Coverage-guided fuzzing of the codec, for as long as one likes.

    pip install atheris
    python tests/atheris_codec.py /tmp/corpus tests/corpus -max_total_time=600

It begins with tests/corpus and writes what reaches more of the code into /tmp/corpus: short ones are worth keeping.
A file of the corpus is one input: its first byte chooses the wire, and for binary bodies the next two say how long the
JSON is. tests/test_codec_fuzz.py takes them all in every ordinary run, without atheris.
"""

import sys

from google.protobuf.message import DecodeError
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages

from kservekit.codec import grpc, rest_v1, rest_v2
from kservekit.codec.message import Request
from kservekit.errors import InvalidInput


def one_input(data):
    """Raises where the codec does anything with it but read or refuse it, or where what it read is not carried on."""
    wire, body = data[:1], data[1:]
    try:
        if wire == b"\0":
            request = rest_v1.decode_request(body)
        elif wire == b"\1":
            request = rest_v2.decode_request(body)
        elif wire == b"\2":
            request = rest_v2.decode_request(body[2:], int.from_bytes(body[:2], "big"))
        else:
            request = _by_grpc(body)
    except InvalidInput:
        return
    again = grpc.decode_request(grpc.encode_request(Request(request.tensors), messages), messages)
    _same(again.tensors, request.tensors)
    parts, json_length = rest_v2.encode_request(Request(request.tensors))
    _same(rest_v2.decode_request(b"".join(parts), json_length).tensors, request.tensors)


def _by_grpc(body):
    request = grpc.decode_request(body, messages)
    try:
        theirs = messages.ModelInferRequest.FromString(body)
    except DecodeError:
        raise AssertionError("taken, and protobuf refuses it") from None
    assert (request.model, request.version, request.id) == (theirs.model_name, theirs.model_version, theirs.id)
    assert list(request.tensors) == [item.name for item in theirs.inputs]
    return request


def _same(found, sent):
    assert list(found) == list(sent)
    for name, array in sent.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        same = (
            found[name].tolist() == array.tolist()
            if array.dtype == object
            else found[name].tobytes() == array.tobytes()
        )
        assert same


if __name__ == "__main__":
    import atheris

    for module in [found for name, found in sys.modules.items() if name.startswith("kservekit.codec.")]:
        for function in vars(module).values():
            if getattr(function, "__module__", "") == module.__name__ and hasattr(function, "__code__"):
                atheris.instrument_func(function)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
