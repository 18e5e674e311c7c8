"""Python takes as many steps for a large body as for a small one; what grows with the body is the work of C."""

import json
import sys

import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages

from kservekit.codec import grpc, rest_v1, rest_v2
from kservekit.errors import InvalidInput


def steps(call):
    """The bytecodes of ours that run while a call lasts."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if not frame.f_globals["__name__"].startswith("kservekit."):
            return None
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def v2(data, shape, datatype="INT64", **more):
    return json.dumps({"inputs": [{"name": "x", "datatype": datatype, "shape": shape, "data": data}], **more}).encode()


def empty_bytes(count, shape):
    item = {"name": "x", "datatype": "BYTES", "shape": shape, "parameters": {"binary_data_size": 4 * count}}
    head = json.dumps({"inputs": [item]}).encode()
    return head + bytes(4 * count), len(head)


def typed(count):
    message = messages.ModelInferRequest()
    item = message.inputs.add(name="x", shape=[count], datatype="UINT8")
    item.contents.uint_contents.extend([1] * count)
    return message.SerializeToString()


SAID_TRUE = {"parameters": {"a": True}}

REFUSED = {
    "more BYTES than the shape holds": lambda n: rest_v2.decode_request(*empty_bytes(n, [1])),
    "more numbers than the shape holds": lambda n: rest_v2.decode_request(v2([1] * n, [1], **SAID_TRUE)),
    "empty lists": lambda n: rest_v2.decode_request(v2([[]] * n, [1])),
    "rows that the shape does not have": lambda n: rest_v2.decode_request(v2([[1]] * n, [1])),
    "a ragged last row": lambda n: rest_v2.decode_request(v2([[1]] * n + [[1, 2]], [n + 1, 1])),
    "a last row that is none": lambda n: rest_v2.decode_request(v2([[1]] * n + [1], [n + 1, 1])),
    "a ragged last row in v1": lambda n: rest_v1.decode_request(json.dumps({"instances": [[1]] * n + [[]]}).encode()),
    "a boolean at the end": lambda n: rest_v2.decode_request(v2([1] * n + [True], [n + 1])),
    "null at the end": lambda n: rest_v2.decode_request(v2([1] * n + [None], [n + 1])),
    "a large number at the end": lambda n: rest_v2.decode_request(v2([1] * n + [300], [n + 1], "UINT8")),
    "a fraction at the end": lambda n: rest_v2.decode_request(v2([1] * n + [0.5], [n + 1])),
    "more strings than the shape holds": lambda n: rest_v2.decode_request(v2(["a"] * n, [1], "BYTES")),
    "more tensors than there may be": lambda n: rest_v2.decode_request(b'{"inputs":[%s{}]}' % (b"{}," * n)),
    "a shape of many sizes": lambda n: rest_v2.decode_request(v2([1], [1] * n)),
    "a shape of many sizes within": lambda n: rest_v2.decode_request(v2([1], [[1] * n])),
}


@pytest.mark.parametrize("decode", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_takes_the_same_steps_however_large_it_is(decode):
    def refused(size):
        with pytest.raises(InvalidInput):
            decode(size)

    assert steps(lambda: refused(3000)) < steps(lambda: refused(1000)) + 100


TAKEN = {
    "numbers": lambda n: rest_v2.decode_request(v2([1] * n, [n])),
    "numbers beside a boolean": lambda n: rest_v2.decode_request(v2([1] * n, [n], **SAID_TRUE)),
    "nested numbers": lambda n: rest_v2.decode_request(v2([[1.5, 2]] * n, [n, 2], "FP32")),
    "large numbers": lambda n: rest_v2.decode_request(v2([2**64 - 1, 1] * n, [2 * n], "UINT64")),
    "large numbers among floats": lambda n: rest_v2.decode_request(v2([2**63, 1.0] * n, [2 * n], "UINT64")),
    "empty lists": lambda n: rest_v2.decode_request(v2([[]] * n, [n, 0])),
    "booleans": lambda n: rest_v2.decode_request(v2([True] * n, [n], "BOOL")),
    "strings": lambda n: rest_v2.decode_request(v2(["a"] * n, [n], "BYTES")),
    "v1 strings": lambda n: rest_v1.decode_request(json.dumps({"instances": ["a"] * n}).encode()),
    "v1 objects": lambda n: rest_v1.decode_request(json.dumps({"instances": [{"a": 1, "b": "c"}] * n}).encode()),
    "typed contents": lambda n: grpc.decode_request(typed(n), messages),
}


@pytest.mark.parametrize("decode", TAKEN.values(), ids=TAKEN.keys())
def test_what_is_taken_takes_the_same_steps_however_large_it_is(decode):
    assert steps(lambda: decode(3000)) < steps(lambda: decode(1000)) + 100
