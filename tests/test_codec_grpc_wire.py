import random

import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages

from kservekit.codec.grpc_wire import MOST_FIELDS, cut_out, put_in
from kservekit.errors import InvalidInput

RAW = 7


def request(*raw):
    message = messages.ModelInferRequest(model_name="m", model_version="1", id="\u00e9" * 200)
    message.inputs.add(name="x", datatype="FP32", shape=[1, -1, 2**40])
    message.parameters["p"].int64_param = -5
    message.raw_input_contents.extend(raw)
    return message


@pytest.mark.parametrize("raw", [(), (b"",), (b"a",), (b"a" * 127, b"b" * 128, b"", b"c" * 70_000)])
def test_what_is_cut_out_and_put_in_again_is_the_message(raw):
    message = request(*raw)
    head, parts, _ = cut_out(message.SerializeToString(), RAW)
    assert [bytes(part) for part in parts] == list(raw)
    without = messages.ModelInferRequest.FromString(head)
    assert not without.raw_input_contents
    assert without.inputs == message.inputs
    assert messages.ModelInferRequest.FromString(put_in(head, RAW, parts)) == message


def test_fields_may_come_in_any_order_and_be_unknown():
    field = b"\x3a\x02hi"  # 7, two bytes
    fixed = b"\xfd\x01" + b"1234" + b"\xf9\x01" + b"12345678"  # 31, of 4 and of 8 bytes
    data = field + b"\x0a\x01m" + fixed + field + b"\xf8\x01\xff\xff\x01"
    head, parts, _ = cut_out(data, RAW)
    assert [bytes(part) for part in parts] == [b"hi", b"hi"]
    assert head == b"\x0a\x01m" + fixed + b"\xf8\x01\xff\xff\x01"


def test_one_string_field_is_cut_out_beside_and_the_last_one_counts():
    data = b"\x1a\x01a" + b"\x0a\x01m" + b"\x3a\x02hi" + b"\x1a\x02bc"
    head, parts, id = cut_out(data, RAW, 3)
    assert (head, [bytes(part) for part in parts], id) == (b"\x0a\x01m", [b"hi"], "bc")


def test_contents_are_views_and_not_copies():
    data = request(b"a" * 1000).SerializeToString()
    assert cut_out(data, RAW)[1][0].obj is data


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a",
        b"\x3a\x05hi",
        b"\x3a" + b"\xff" * 11,
        b"\x3b",
        b"\x3f",
        b"\xfd\x01" + b"12",
        b"\x80" * 20,
        b"\x3a\xff\xff\xff\x7f",
    ],
)
def test_what_is_no_message_is_refused(data):
    with pytest.raises(InvalidInput, match="malformed protobuf message"):
        cut_out(data, RAW)


def test_a_message_of_endless_fields_is_refused():
    with pytest.raises(InvalidInput, match="over 10000 fields"):
        cut_out(b"\x0a\x00" * (MOST_FIELDS + 1), RAW)


def test_any_bytes_are_a_message_or_refused():
    chance = random.Random(7)
    good = request(b"abc" * 20).SerializeToString()
    refused = 0
    for _ in range(5000):
        data = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            head, parts, _ = cut_out(bytes(data[: chance.randrange(len(data) + 1)]), RAW)
            assert len(head) + sum(map(len, parts)) <= len(data)
        except InvalidInput:
            refused += 1
    assert 0 < refused < 5000
