"""Whatever comes in is a request or refused with a reason; whatever goes out comes back bit for bit.

The examples are the same in every run. CODEC_FUZZ_EXAMPLES=20000 looks for new ones, so many a test.
"""

import copy
import gzip
import json
import os
import zlib
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from atheris_codec import one_input
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from kserve.protocol.grpc import grpc_predict_v2_pb2 as kserve_messages

from kservekit.codec import grpc, rest_v1, rest_v2
from kservekit.codec.compression import unpack
from kservekit.codec.message import Answer, Request
from kservekit.errors import InvalidInput, ModelError, PayloadTooLarge, UnsupportedMedia
from kservekit.oip.triton_messages import messages as triton_messages
from kservekit.tensors import DATATYPES, ModelSpec, TensorSpec, check_outputs

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())

_MORE = os.environ.get("CODEC_FUZZ_EXAMPLES")
fuzz = settings(
    max_examples=int(_MORE or 100),
    derandomize=_MORE is None,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def taken(decode, *arguments, refusals=InvalidInput, **named):
    """What a decoder makes of it, or None where it refuses; anything else that it raises is a fault."""
    try:
        return decode(*arguments, **named)
    except refusals:
        return None


# What goes wrong in JSON, and at the ends of the datatypes.
sizes = st.sampled_from([0, 1, 2, 3, 7, 31, 32, 33, 2**31, 2**39, 2**40, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -1])
whole = st.integers(-(2**70), 2**70) | st.builds(
    lambda bits, near, sign: sign * (2**bits + near), st.integers(0, 70), st.integers(-2, 2), st.sampled_from([1, -1])
)
numbers = whole | sizes | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(codec="utf-8"), max_size=5) | st.sampled_from(["b64", "base64", "YQ==", "x", *DATATYPES])
leaves = st.none() | st.booleans() | numbers | texts
junk = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(texts, inner, max_size=3)
        | st.builds(lambda value: {"b64": value}, inner)
    ),
    max_leaves=8,
)


@st.composite
def tensors(draw, *, finite=False, rows=False):
    datatype = draw(st.sampled_from(sorted(DATATYPES)))
    smallest = 1 if rows else 0
    shape = tuple(draw(st.lists(st.integers(smallest, 4), min_size=smallest, max_size=4)))
    return draw(tensor(datatype, shape, finite=finite))


@st.composite
def tensor(draw, datatype, shape, *, finite=False):
    count = int(np.prod(shape))
    dtype = DATATYPES[datatype]
    if datatype == "BYTES":
        found = np.empty(count, dtype=object)
        found[:] = draw(st.lists(st.binary(max_size=6), min_size=count, max_size=count))
        return found.reshape(shape)
    if datatype == "BOOL":
        flags = draw(st.binary(min_size=count, max_size=count))
        return (np.frombuffer(flags, np.uint8) & 1).view(np.bool_).reshape(shape)
    size = count * dtype.itemsize
    values = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).copy()
    if finite and dtype.kind not in "iu":
        with np.errstate(invalid="ignore"):
            values[~np.isfinite(values.astype(np.float64))] = 0
    return values.reshape(shape)


def assert_same_bits(got, want):
    assert list(got) == list(want)
    for name, array in want.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        if array.dtype == object:
            assert got[name].tolist() == array.tolist()
        else:
            assert got[name].tobytes() == array.tobytes()


several = st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=4), tensors(), max_size=3)
several_finite = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=4), tensors(finite=True), max_size=3
)


# There and back


@fuzz
@given(several, st.sampled_from([kserve_messages, triton_messages]))
def test_grpc_brings_every_tensor_back_bit_for_bit(sent, messages):
    request = grpc.decode_request(grpc.encode_request(Request(sent, model="m"), messages), messages)
    assert_same_bits(request.tensors, sent)
    answer = grpc.decode_answer(grpc.encode_answer(Answer(sent, model="m"), messages), messages)
    assert_same_bits(answer.tensors, sent)


@fuzz
@given(several)
def test_rest_binary_brings_every_tensor_back_bit_for_bit(sent):
    parts, json_length = rest_v2.encode_request(Request(sent))
    request = rest_v2.decode_request(b"".join(parts), json_length)
    assert_same_bits(request.tensors, sent)
    parts, json_length = rest_v2.encode_answer(Answer(sent), request)
    assert_same_bits(rest_v2.decode_answer(b"".join(parts), json_length).tensors, sent)


@fuzz
@given(several_finite)
def test_rest_json_brings_every_finite_tensor_back_bit_for_bit(sent):
    parts, json_length = rest_v2.encode_request(Request(sent), binary=False, binary_answer=False)
    assert json_length is None
    request = rest_v2.decode_request(b"".join(parts))
    assert_same_bits(request.tensors, sent)
    spec = ModelSpec(outputs=tuple(TensorSpec(name, "BYTES", (-1,), content_type="base64") for name in sent))
    parts, _ = rest_v2.encode_answer(Answer(sent), request, spec)
    assert_same_bits(rest_v2.decode_answer(b"".join(parts)).tensors, sent)


@fuzz
@given(tensors(finite=True))
def test_nested_json_is_the_same_as_flat(sent):
    datatype = next(name for name, dtype in DATATYPES.items() if dtype == sent.dtype)
    values = sent.astype(np.float64).tolist() if datatype in ("FP16", "BF16", "FP32") else sent.tolist()
    if datatype == "BYTES":
        values = json.loads(rest_v1.encode_request({"x": sent[None]}))["instances"][0]
    item = {"name": "x", "datatype": datatype, "shape": list(sent.shape), "data": values}
    assert_same_bits(rest_v2.decode_request(json.dumps({"inputs": [item]}).encode()).tensors, {"x": sent})


@fuzz
@given(st.lists(tensors(finite=True, rows=True), min_size=1, max_size=3))
def test_v1_brings_every_finite_row_back_bit_for_bit(found):
    count = min(len(array) for array in found)
    sent = {str(index): array[:count] for index, array in enumerate(found)}
    names = {dtype: name for name, dtype in DATATYPES.items()}
    spec = ModelSpec(tuple(TensorSpec(name, names[array.dtype], array.shape) for name, array in sent.items()))
    request = rest_v1.decode_request(rest_v1.encode_request(sent), spec)
    assert_same_bits(request.tensors, sent)


# Numbers


@fuzz
@given(
    st.sampled_from([name for name, dtype in DATATYPES.items() if dtype.kind in "iu"]), st.lists(numbers, max_size=4)
)
@example("INT64", [-(2**63) - 1])
@example("INT64", [2**53 + 1, 1.0])
@example("UINT64", [2**64])
def test_a_whole_number_arrives_as_it_was_sent_or_not_at_all(datatype, values):
    item = {"name": "x", "datatype": datatype, "shape": [len(values)], "data": values}
    request = taken(rest_v2.decode_request, json.dumps({"inputs": [item]}).encode())
    limits = np.iinfo(DATATYPES[datatype])
    if request is not None:
        assert [Decimal(value) for value in request.tensors["x"].tolist()] == [Decimal(repr(value)) for value in values]
    else:
        fit = all(isinstance(value, int) and limits.min <= value <= limits.max for value in values)
        assert not fit


@fuzz
@given(st.lists(whole, min_size=1, max_size=4))
@example([2**63 + 1025, 1])
@example([2**63, -1])
def test_undeclared_whole_numbers_arrive_exactly_or_not_at_all(values):
    assume(all(-(2**63) <= value < 2**64 for value in values))  # JSON's reader makes floats of the others
    request = taken(rest_v1.decode_request, json.dumps({"instances": values}).encode())
    if request is not None:
        assert request.tensors["input-0"].tolist() == values
    else:
        assert min(values) < 0
        assert max(values) >= 2**63


# Whatever comes in


@fuzz
@given(st.binary(max_size=300), st.none() | st.integers(-2, 400) | st.text(max_size=4))
@example(b"", None)
@example(b"[" * 2000, None)
@example(b"{}", "\u00b2")
def test_any_bytes_are_a_request_or_refused(data, json_length):
    taken(rest_v2.decode_request, data, json_length)
    taken(rest_v2.decode_answer, data, json_length)
    taken(rest_v1.decode_request, data)
    taken(rest_v1.decode_answer, data)
    for messages in (kserve_messages, triton_messages):
        taken(grpc.decode_request, data, messages)
        taken(grpc.decode_answer, data, messages)


@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.name)
def test_what_fuzzing_by_coverage_found_is_a_request_or_refused(file):
    one_input(file.read_bytes())


packings = st.sampled_from(["gzip", "x-gzip", "deflate", " GZIP ", "identity", "", "br", "gzip, gzip"])


@fuzz
@given(st.binary(max_size=300), packings, st.integers(0, 500), st.integers(0, 400), st.integers(0, 255))
def test_any_packed_body_is_unpacked_or_refused(data, encoding, limit, at, byte):
    refusals = (InvalidInput, PayloadTooLarge, UnsupportedMedia)
    for body in (data, gzip.compress(data), zlib.compress(data), zlib.compress(data, wbits=-15)):
        taken(unpack, body, encoding, limit, refusals=refusals)
        damaged = bytearray(body)
        if damaged:
            damaged[at % len(damaged)] = byte
        found = taken(unpack, damaged, encoding, limit, refusals=refusals)
        if found is not None and encoding.strip().lower() not in ("identity", ""):
            assert len(found) <= limit
    if len(data) <= limit:
        assert unpack(gzip.compress(data), "gzip", limit) == data
        assert unpack(zlib.compress(data), "deflate", limit) == data


@fuzz
@given(junk)
@example({"instances": [{}]})
@example({"inputs": {}})
@example({"inputs": 1})
@example({"inputs": [], "parameters": []})
def test_any_json_is_a_request_or_refused(value):
    for payload in (value, {"inputs": value}, {"instances": value}, {"inputs": [value], "outputs": value}):
        body = json.dumps(payload).encode()
        taken(rest_v2.decode_request, body)
        taken(rest_v1.decode_request, body)
        taken(rest_v1.request_from, payload)
    taken(rest_v2.decode_answer, json.dumps({"outputs": value}).encode())
    taken(rest_v1.decode_answer, json.dumps({"predictions": value}).encode())


@fuzz
@given(junk, st.none() | st.sampled_from(sorted(DATATYPES)), st.lists(sizes, max_size=4), st.booleans())
@example([], "FP32", [0, 2**39, 2**39], False)
@example([["a"]], "BYTES", [1, 1], True)
@example([10**400, 1.5], "FP32", [2], False)
def test_any_data_fits_its_shape_and_datatype_or_is_refused(data, datatype, shape, as_base64):
    item = {"name": "x", "datatype": datatype, "shape": shape, "data": data}
    if as_base64:
        item["parameters"] = {"content_type": "base64"}
    request = taken(rest_v2.decode_request, json.dumps({"inputs": [item]}).encode())
    if request is not None:
        assert request.tensors["x"].shape == tuple(shape)
        assert request.tensors["x"].dtype == DATATYPES[datatype]
    spec = ModelSpec((TensorSpec("x", datatype, (-1,), "base64" if as_base64 else ""),)) if datatype else ModelSpec()
    for payload in ({"instances": data}, {"inputs": {"x": data}}, {"instances": [{"x": data}]}):
        taken(rest_v1.request_from, payload, spec)


@st.composite
def damaged(draw, payload):
    """A message with one field gone, replaced or added."""
    payload = copy.deepcopy(payload)
    places = list(_places(payload))
    holder, key = draw(st.sampled_from(places))
    what = draw(st.sampled_from(["replace", "drop", "add"]))
    if what == "replace":
        holder[key] = draw(junk)
    elif what == "drop":
        del holder[key]
    elif isinstance(holder, list):
        holder.append(draw(junk))
    else:
        holder[draw(st.sampled_from(["data", "parameters", "outputs", "id", "b64", "binary_data_size"]))] = draw(junk)
    return payload


def _places(value):
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


@fuzz
@given(st.data())
def test_a_damaged_v2_request_is_a_request_or_refused(data):
    asked = {"y": {"binary_data": True}}
    parts, json_length = rest_v2.encode_request(
        Request(data.draw(several_finite), id="7", parameters={"a": 1}, outputs=asked), binary=data.draw(st.booleans())
    )
    head = json.dumps(data.draw(damaged(json.loads(parts[0])))).encode()
    taken(rest_v2.decode_request, b"".join([head, *parts[1:]]), len(head) if json_length is not None else None)


@fuzz
@given(st.data())
def test_a_damaged_v1_request_is_a_request_or_refused(data):
    found = data.draw(st.lists(tensors(finite=True, rows=True), min_size=1, max_size=2))
    count = min(len(array) for array in found)
    sent = {str(index): array[:count] for index, array in enumerate(found)}
    payload = data.draw(damaged(json.loads(rest_v1.encode_request(sent))))
    datatype = st.sampled_from(sorted(DATATYPES))
    spec = ModelSpec(tuple(TensorSpec(name, data.draw(datatype), array.shape) for name, array in sent.items()))
    for known in (spec, ModelSpec()):
        taken(rest_v1.decode_request, json.dumps(payload).encode(), known)


@st.composite
def typed_request(draw):
    message = kserve_messages.ModelInferRequest(model_name="m")
    for name in draw(st.lists(st.sampled_from("xyz"), max_size=3)):
        shape = draw(st.lists(st.integers(-1, 3) | st.sampled_from([2**39, 2**62]), max_size=3))
        item = message.inputs.add(name=name, datatype=draw(st.sampled_from(sorted(DATATYPES))), shape=shape)
        count = draw(st.sampled_from([abs(int(np.prod(shape, dtype=object))) % 100, 0, 1]))
        field, values = draw(
            st.sampled_from(
                [
                    ("bool_contents", True),
                    ("int_contents", -129),
                    ("int64_contents", -(2**63)),
                    ("uint_contents", 2**32 - 1),
                    ("uint64_contents", 2**64 - 1),
                    ("fp32_contents", float("nan")),
                    ("fp64_contents", 1e300),
                    ("bytes_contents", b"\xff\0"),
                ]
            )
        )
        getattr(item.contents, field).extend([values] * count)
        item.parameters["a"].bool_param = True
    message.raw_input_contents.extend(draw(st.lists(st.binary(max_size=9), max_size=2)))
    return message.SerializeToString()


@st.composite
def damaged_bytes(draw, data):
    data = bytearray(data)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        what = draw(st.sampled_from(["cut", "set", "insert"]))
        if what == "cut":
            del data[at : at + draw(st.integers(0, 8))]
        elif what == "insert":
            data[at:at] = draw(st.binary(max_size=4))
        elif at < len(data):
            data[at] = draw(st.integers(0, 255))
    return bytes(data)


@fuzz
@given(st.data())
def test_a_damaged_grpc_message_is_a_request_or_refused(data):
    good = data.draw(
        typed_request()
        | st.builds(
            lambda found: grpc.encode_request(Request(found, outputs={"y": {"k": 1}}), kserve_messages), several
        )
    )
    body = data.draw(damaged_bytes(good))
    for messages in (kserve_messages, triton_messages):
        taken(grpc.decode_request, body, messages)
        taken(grpc.decode_answer, body, messages)


@fuzz
@given(st.data())
def test_a_damaged_binary_body_is_a_request_or_refused(data):
    parts, json_length = rest_v2.encode_request(Request(data.draw(several)))
    body = data.draw(damaged_bytes(b"".join(parts)))
    taken(rest_v2.decode_request, body, json_length)
    taken(rest_v2.decode_answer, body, json_length)


# Whatever goes out

handed = st.recursive(
    st.none() | st.booleans() | whole | st.floats() | st.text(max_size=3) | st.binary(max_size=3) | tensors(),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=6,
)


@fuzz
@given(handed)
@example([b"a\0"])
@example([None])
@example(["a", 1])
@example(np.array([1.5], object))
def test_whatever_a_handler_returns_is_sent_on_every_wire_or_a_model_error(value):
    outputs = taken(check_outputs, {"y": value}, "M.infer", refusals=ModelError)
    if outputs is None:
        return
    answer = Answer(outputs)
    for messages in (kserve_messages, triton_messages):
        assert_same_bits(grpc.decode_answer(grpc.encode_answer(answer, messages), messages).tensors, outputs)
    binary = Request({}, binary_outputs=True)
    parts, json_length = rest_v2.encode_answer(answer, binary)
    assert_same_bits(rest_v2.decode_answer(b"".join(parts), json_length).tensors, outputs)
    taken(rest_v2.encode_answer, answer, Request({}), refusals=ModelError)
    written = taken(rest_v1.encode_answer, answer, refusals=ModelError)
    if written is not None and outputs["y"].size:
        assert rest_v1.decode_answer(written).tensors["output-0"].shape == outputs["y"].shape
