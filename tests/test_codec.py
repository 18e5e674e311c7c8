"""Every wire carries every datatype there and back, bit for bit, and refuses what is not the protocol's."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as kserve_messages

from kservekit.codec import grpc, rest_v1, rest_v2
from kservekit.codec.message import Answer, Request
from kservekit.errors import InvalidInput, ModelError
from kservekit.oip.triton_messages import messages as triton_messages
from kservekit.tensors import DATATYPES, ModelSpec, TensorSpec

NUMBERS = {
    "BOOL": [True, False, True],
    "FP16": [0.5, -65504, 0.1],
    "BF16": [0.5, -3e38, 0.1],
    "FP32": [0.1, -3.4e38, 1e-45],
    "FP64": [0.1, -1.7e308, 5e-324],
}
for name, dtype in DATATYPES.items():
    if dtype.kind in "iu":
        NUMBERS[name] = [np.iinfo(dtype).min, np.iinfo(dtype).max, 7]

SHAPES = [(3,), (1, 3, 1), (3, 0), ()]


def tensor(datatype, shape):
    if datatype == "BYTES":
        values = np.array([b"\xff\xd8JPEG\x00", b"", "Äther".encode()], dtype=np.object_)
    else:
        values = np.array(NUMBERS[datatype], dtype=DATATYPES[datatype])
    count = int(np.prod(shape))
    return np.resize(values, count)[:count].reshape(shape)


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert got[name].dtype == array.dtype
        assert got[name].shape == array.shape
        assert got[name].tolist() == array.tolist()


ALL = [(datatype, shape) for datatype in DATATYPES for shape in SHAPES]


@pytest.mark.parametrize(("datatype", "shape"), ALL)
@pytest.mark.parametrize("messages", [kserve_messages, triton_messages], ids=["kserve", "tritonclient"])
def test_grpc_carries_every_datatype_there_and_back(messages, datatype, shape):
    tensors = {"x": tensor(datatype, shape), "y": np.arange(2)}
    sent = grpc.encode_request(
        Request(tensors, model="m", version="2", id="7", parameters={"a": 1, "b": "c", "d": True}), messages
    )
    request = grpc.decode_request(sent, messages)
    assert_same(request.tensors, tensors)
    assert (request.model, request.version, request.id) == ("m", "2", "7")
    assert request.parameters == {"a": 1, "b": "c", "d": True}
    reply = grpc.encode_answer(Answer(request.tensors, "m", "2", "7"), messages)
    assert_same(grpc.decode_answer(reply, messages).tensors, tensors)
    # What was put together by hand is what protobuf itself reads, and writes the same.
    for kind, data in ((messages.ModelInferRequest, sent), (messages.ModelInferResponse, reply)):
        assert len(kind.FromString(data).SerializeToString()) == len(data)


def test_requests_alike_but_for_id_and_contents_share_nothing_that_can_be_written():
    def sent(id, value):
        request = Request({"x": np.full((1, 2), value)}, model="alike", id=id, parameters={"a": 1})
        request.outputs = {"y": {"classification": 3}}
        return grpc.encode_request(request, kserve_messages)

    first = grpc.decode_request(sent("1", 1.0), kserve_messages)
    first.tensors["more"] = first.tensors["x"]
    first.parameters["a"] = 2
    first.outputs["y"]["classification"] = 4
    first.outputs["z"] = {}
    second = grpc.decode_request(sent("2", 2.0), kserve_messages)
    assert_same(second.tensors, {"x": np.full((1, 2), 2.0)})
    assert (second.id, second.parameters) == ("2", {"a": 1})
    assert second.outputs == {"y": {"classification": 3}}


def test_a_head_that_was_read_before_is_checked_against_the_contents_that_come_with_it():
    good = grpc.encode_request(Request({"x": np.zeros(2)}, model="before"), kserve_messages)
    grpc.decode_request(good, kserve_messages)
    for contents, reason in (
        (b"\x3a\x08" + bytes(8), "is 16 bytes, and has 8"),
        (b"\x3a\x10" + bytes(16) + b"\x3a\x10" + bytes(16), "2 raw contents for 1 inputs"),
    ):
        with pytest.raises(InvalidInput, match=reason):
            grpc.decode_request(good[:-18] + contents, kserve_messages)
    assert grpc.decode_request(good, kserve_messages).tensors["x"].tolist() == [0, 0]


def test_an_id_that_is_not_text_is_refused():
    good = grpc.encode_request(Request({"x": np.zeros(2)}, id="ab"), kserve_messages)
    with pytest.raises(InvalidInput, match="not UTF-8"):
        grpc.decode_request(good.replace(b"ab", b"\xff\xfe"), kserve_messages)
    with pytest.raises(InvalidInput, match="not UTF-8"):  # protobuf looks at each of several, too
        grpc.decode_request(b"\x1a\x01\xff" + good, kserve_messages)


@pytest.mark.parametrize(("datatype", "shape"), ALL)
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_rest_carries_every_datatype_there_and_back(binary, datatype, shape):
    tensors = {"x": tensor(datatype, shape), "y": np.arange(2)}
    parts, json_length = rest_v2.encode_request(Request(tensors, id="7"), binary=binary, binary_answer=binary)
    assert (json_length is not None) is binary
    request = rest_v2.decode_request(b"".join(parts), json_length)
    assert_same(request.tensors, tensors)
    spec = ModelSpec(outputs=(TensorSpec("x", datatype, shape, content_type="base64"),))
    parts, json_length = rest_v2.encode_answer(Answer(request.tensors, "m", "1", "7"), request, spec)
    answer = rest_v2.decode_answer(b"".join(parts), json_length)
    assert_same(answer.tensors, tensors)
    assert (answer.model, answer.version, answer.id) == ("m", "1", "7")


def test_a_binary_tensor_is_a_view_of_the_body_and_not_a_copy():
    parts, json_length = rest_v2.encode_request(Request({"x": np.arange(1000.0)}))
    body = b"".join(parts)
    found = rest_v2.decode_request(body, json_length).tensors["x"]
    address = found.__array_interface__["data"][0]
    start = np.frombuffer(body, np.uint8).__array_interface__["data"][0]
    assert start <= address < start + len(body)


def test_each_output_comes_back_in_the_form_that_was_asked_for_it():
    asked = {
        "inputs": [{"name": "x", "datatype": "INT8", "shape": [1], "data": [1]}],
        "parameters": {"binary_data_output": True, "temperature": 3},
        "outputs": [{"name": "a", "parameters": {"binary_data": False}}, {"name": "b"}],
    }
    request = rest_v2.decode_request(json.dumps(asked).encode())
    assert request.parameters == {"temperature": 3}
    parts, json_length = rest_v2.encode_answer(Answer({"a": np.array([1]), "b": np.array([2])}), request)
    outputs = {item["name"]: item for item in json.loads(b"".join(parts)[:json_length])["outputs"]}
    assert outputs["a"]["data"] == [1]
    assert outputs["b"]["parameters"] == {"binary_data_size": 8}


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]]], ids=["flat", "nested"])
def test_json_data_may_be_flat_or_nested(data):
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2], "data": data}]}
    assert_same(
        rest_v2.decode_request(json.dumps(body).encode()).tensors, {"x": np.array([[1, 2], [3, 4]], np.float32)}
    )


def v2(**changes):
    item = {"name": "x", "datatype": "INT8", "shape": [2], "data": [1, 2]} | changes
    return json.dumps({"inputs": [{key: value for key, value in item.items() if value is not ...}]}).encode()


BAD_JSON = {
    b"{": "malformed JSON",
    b"[]": "the request must be an object",
    b"{}": '"inputs" must be a list',
    b'{"inputs": [3]}': "must be an object",
    v2(name=...): "has no name",
    v2(shape=...): "input 'x' has no shape",
    v2(shape=[-1]): "whole numbers from 0 up",
    v2(shape=[2.0]): "whole numbers from 0 up",
    v2(shape=[1 << 62, 1 << 62]): "expected at most 1099511627776 elements",
    v2(shape=[1] * 40): "over 32 dimensions",
    v2(shape=[0, 2**39, 2**39]): "expected at most 1099511627776 elements",
    v2(shape=[[[1]], None]): "has shape [list, NoneType]",
    v2(shape=[3]): "which is 3 elements",
    v2(shape=[2, 1], data=[[1, 2]]): "data of shape [1, 2]",
    v2(datatype="FP31"): "'FP31': expected one of BOOL",
    v2(datatype=7): "has no datatype",
    v2(data=...): 'neither "data" nor',
    v2(data=[1, 300]): "input 'x'[1] is 300: expected -128 to 127 for INT8",
    v2(data=[1, 1.5]): "input 'x'[1] is 1.5: expected a whole number for INT8",
    v2(data=[1, None]): "input 'x'[1] is null: expected a number",
    v2(data=[1, True]): "input 'x'[1] is true: expected a number",
    v2(data=[1, "2"]): "input 'x'[1] is '2': expected a number",
    v2(shape=[2, 1], data=[[1], [2, 3]]): "input 'x'[1] is a list of 2: expected a list of 1",
    v2(data=[True, False]): "input 'x'[0] is true: expected a number",
    v2(datatype="BOOL"): "input 'x'[0] is 1: expected true or false",
    v2(datatype="FP16", data=[1, 70000]): "is 70000: expected a number in the range of FP16",
    v2(datatype="FP32", data=[1e39, 0]): "expected a number in the range of FP32",
    v2(datatype="UINT64", data=[-1, 2**64 - 1]): "expected 0 to 18446744073709551615",
    v2(datatype="INT64", data=[0, 2**63]): "expected -9223372036854775808 to",
    v2(datatype="BYTES", data=["a", 3]): "input 'x'[1] is 3: expected a string",
    v2(
        datatype="BYTES", data=["a", "%"], parameters={"content_type": "base64"}
    ): "input 'x'[0] is 'a': expected base64",
    v2(parameters={"binary_data_size": 2}): "both",
    v2(parameters=3): "must be an object",
    v2(parameters=[]): "must be an object",
    v2(datatype="INT64", data=[0, -(2**63) - 1]): "no point or exponent from 2**53 on",
    v2(datatype="INT64", data=[2**53 + 1, 1e16]): "input 'x'[1] is 1e+16: expected",
    v2(datatype="UINT64", data=[1, 2**64]): "no point or exponent from 2**53 on",
    v2(shape=[1], data=[["a" * 50]]): "data of shape [1, 1]",
    v2(shape=[200_001], data=[1] * 200_000 + ["a" * 5_000_000]): "input 'x'[200000] is 'aaaa",
    v2(shape=[1] * 32, data=json.loads("[" * 33 + "1" + "]" * 33)): "and data of shape [1, 1",
    v2(name="n" * 900, shape=[3]): f"input '{'n' * 40}...' has shape [3]",
    b'{"inputs": [], "parameters": []}': '"parameters" must be an object',
    b'{"inputs": [], "parameters": {"binary_data_output": "false"}}': "is 'false': expected true or false",
    b'{"inputs": [], "outputs": {}}': '"outputs" must be a list',
    b'{"inputs": [], "outputs": [{"name": "y", "parameters": []}]}': "the parameters of output 'y' must be an object",
    b'{"inputs": [], "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}': "is 1: expected true or false",
    b'{"inputs": [], "id": 7}': '"id" must be a string',
    b'{"inputs": [], "outputs": [{}]}': "has no name",
    b'{"inputs": [%s, %s]}' % ((b'{"name":"x","datatype":"INT8","shape":[0],"data":[]}',) * 2): "twice",
    b'{"inputs": [{"name":"x","datatype":"FP32","shape":[1],"data":[NaN]}]}': "malformed JSON",
    b'{"inputs": [{"name":"x","datatype":"FP32","shape":[1],"data":' + b"[" * 900 + b"1" + b"]" * 900 + b"}]}": "",
}


@pytest.mark.parametrize(("body", "reason"), BAD_JSON.items(), ids=range(len(BAD_JSON)))
def test_bad_v2_json_is_invalid_input_that_says_what_is_wrong(body, reason):
    with pytest.raises(InvalidInput) as found:
        rest_v2.decode_request(body)
    assert reason in str(found.value)


def of_data(datatype, data, shape):
    return rest_v2.decode_request(v2(datatype=datatype, data=data, shape=shape)).tensors["x"]


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("INT64", [2**53 + 1, 1.0]),
        ("INT64", [-(2**63), 2**63 - 1, -3.0]),
        ("UINT64", [2**64 - 1, 1.0]),
        ("UINT64", [2**63 + 1025, 1]),
        ("INT8", [1.0, -128]),
    ],
)
def test_whole_numbers_are_never_rounded_on_their_way(datatype, values):
    assert of_data(datatype, values, [len(values)]).tolist() == list(map(int, values))


def test_empty_lists_say_nothing_of_the_dimensions_within():
    assert of_data("INT8", [[], []], [2, 0, 3]).shape == (2, 0, 3)


@pytest.mark.parametrize("nothing", [{}, {"parameters": None}, {"outputs": None}])
def test_null_counts_as_an_unset_field(nothing):
    body = {"inputs": [{"name": "x", "datatype": "INT8", "shape": [1], "data": [1], "parameters": None}]}
    assert rest_v2.decode_request(json.dumps(body | nothing).encode()).tensors["x"].tolist() == [1]


def test_any_byte_of_a_raw_boolean_that_is_not_0_is_true():
    body, json_length = binary({"binary_data_size": 4}, bytes([0, 1, 2, 255]), "BOOL", [4])
    found = rest_v2.decode_request(body, json_length).tensors["x"]
    assert found.view(np.uint8).tolist() == [0, 1, 1, 1]


def test_a_request_may_have_so_many_tensors_and_no_more():
    item = {"datatype": "INT8", "shape": [1], "data": [1]}
    v2_body = json.dumps({"inputs": [item | {"name": str(n)} for n in range(3)]}).encode()
    outputs = json.dumps({"inputs": [], "outputs": [{"name": str(n)} for n in range(3)]}).encode()
    message = kserve_messages.ModelInferRequest()
    for n in range(3):
        message.inputs.add(name=str(n), datatype="INT8", shape=[0])
    for decode in (
        lambda most: rest_v2.decode_request(v2_body, max_tensors=most),
        lambda most: rest_v2.decode_request(outputs, max_tensors=most),
        lambda most: rest_v1.decode_request(rows({"a": 1, "b": 2, "c": 3}), max_tensors=most),
        lambda most: rest_v1.decode_request(b'{"inputs": {"a": [1], "b": [2], "c": [3]}}', max_tensors=most),
        lambda most: grpc.decode_request(message.SerializeToString(), kserve_messages, max_tensors=most),
    ):
        decode(3)
        with pytest.raises(InvalidInput, match=r"3 (in|out)puts: expected at most 2 \(KSERVEKIT_MAX_TENSORS\)"):
            decode(2)


def binary(parameters, tail, datatype="INT8", shape=(2,)):
    item = {"name": "x", "datatype": datatype, "shape": shape, "parameters": parameters}
    head = json.dumps({"inputs": [item]}).encode()
    return head + tail, len(head)


BAD_BINARY = [
    (*binary({"binary_data_size": 3}, b"ab"), "binary_data_size 3, and 2 bytes are left"),
    (*binary({"binary_data_size": -1}, b"ab"), "expected a number of bytes"),
    (*binary({"binary_data_size": True}, b"ab"), "expected a number of bytes"),
    (*binary({"binary_data_size": "2"}, b"ab"), "expected a number of bytes"),
    (*binary({"binary_data_size": 1}, b"a"), "which is 2 bytes, and has 1"),
    (*binary({"binary_data_size": 2}, b"abc"), "1 bytes of the body belong to no tensor"),
    (*binary({"binary_data_size": 3}, b"abc", "BYTES", [1]), "has 1 elements, each with 4 bytes"),
    (*binary({"binary_data_size": 5}, struct.pack("<I", 9) + b"a", "BYTES", [1]), "9 bytes long, and 1 are left"),
    (*binary({"binary_data_size": 4}, struct.pack("<I", 0), "BYTES", [2]), "2 elements, each with 4 bytes"),
    (*binary({"binary_data_size": 8}, bytes(8), "BYTES", [1]), "has 4 bytes after the 1 elements that its shape holds"),
    (*binary({"binary_data_size": 6}, bytes(6), "BYTES", [1]), "has 2 bytes after the 1 elements"),
    (*binary({"binary_data_size": 0}, b"", "BYTES", [1 << 39]), "549755813888 elements"),
    (b"{}", "3", "expected 0 to 2"),
    (b"{}", "-1", "expected 0 to 2"),
    (b"{}", "1e3", "expected 0 to 2"),
    (b"{}", "\u0663", "expected 0 to 2"),
]


@pytest.mark.parametrize(("body", "json_length", "reason"), BAD_BINARY, ids=range(len(BAD_BINARY)))
def test_a_bad_binary_body_is_invalid_input_that_says_what_is_wrong(body, json_length, reason):
    with pytest.raises(InvalidInput) as found:
        rest_v2.decode_request(body, json_length)
    assert reason in str(found.value)


def grpc_request(**changes):
    request = kserve_messages.ModelInferRequest(model_name="m")
    item = request.inputs.add(
        name=changes.get("name", "x"), datatype=changes.get("datatype", "INT8"), shape=changes.get("shape", [2])
    )
    for field, values in changes.get("contents", {}).items():
        getattr(item.contents, field).extend(values)
    request.raw_input_contents.extend(changes.get("raw", []))
    return request


BAD_GRPC = [
    (grpc_request(shape=[1] * 33, raw=[b"a"]), "over 32 dimensions"),
    (grpc_request(shape=[0, 2**39, 2**39], raw=[b""]), "expected at most 1099511627776 elements"),
    (grpc_request(raw=[b"ab", b"cd"]), "2 raw contents for 1 inputs"),
    (grpc_request(raw=[b"ab"], contents={"int_contents": [1, 2]}), "both raw and typed"),
    (grpc_request(raw=[b"abc"]), "which is 2 bytes, and has 3"),
    (grpc_request(contents={"int_contents": [1]}), "which is 2 elements, and 1 int_contents"),
    (grpc_request(contents={"int_contents": [1, 300]}), "outside -128 to 127"),
    (grpc_request(contents={"fp32_contents": [1, 2]}), "has fp32_contents: expected int_contents"),
    (grpc_request(datatype="FP16", contents={"fp32_contents": [1, 2]}), "raw contents only"),
    (grpc_request(datatype="X", raw=[b"ab"]), "'X': expected one of"),
    (grpc_request(shape=[-2], raw=[b"ab"]), "whole numbers from 0 up"),
    (grpc_request(name="", raw=[b"ab"]), "has no name"),
]


@pytest.mark.parametrize(("message", "reason"), BAD_GRPC, ids=range(len(BAD_GRPC)))
def test_a_bad_grpc_request_is_invalid_input_that_says_what_is_wrong(message, reason):
    with pytest.raises(InvalidInput) as found:
        grpc.decode_request(message.SerializeToString(), kserve_messages)
    assert reason in str(found.value)


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("UINT8", "uint_contents", [0, 255]),
        ("INT16", "int_contents", [-5, 5]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("INT64", "int64_contents", [-(2**63), 1]),
        ("FP32", "fp32_contents", [0.5, 1.5]),
        ("FP64", "fp64_contents", [0.1, 1e300]),
        ("BYTES", "bytes_contents", [b"\xff", b""]),
    ],
)
def test_typed_grpc_contents_are_read_as_their_datatype(datatype, field, values):
    message = grpc_request(datatype=datatype, contents={field: values})
    found = grpc.decode_request(message.SerializeToString(), kserve_messages).tensors["x"]
    assert found.dtype == DATATYPES[datatype]
    assert found.tolist() == values


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
@pytest.mark.parametrize("messages", [kserve_messages, triton_messages], ids=["kserve", "tritonclient"])
def test_a_parameter_that_grpc_cannot_carry_is_named(messages, number):
    with pytest.raises(InvalidInput, match=f"parameter 'top_k' is {number}"):
        grpc.encode_request(Request({}, parameters={"top_k": number}), messages)
    with pytest.raises(ModelError, match="parameter 'top_k'"):
        grpc.encode_answer(Answer({}, parameters={"top_k": number}), messages)


def test_grpc_parameters_are_read_up_to_a_number():
    message = kserve_messages.ModelInferRequest()
    output = message.outputs.add(name="y")
    for n in range(grpc.MOST_PARAMETERS + 1):
        output.parameters[str(n)].int64_param = n
    with pytest.raises(InvalidInput, match="257 parameters: expected at most 256"):
        grpc.decode_request(message.SerializeToString(), kserve_messages)


def rows(*instances, **more):
    return json.dumps({"instances": list(instances)} | more).encode()


ONE = ModelSpec((TensorSpec("x", "UINT8", (-1,)),))
PICTURE = ModelSpec((TensorSpec("image", "BYTES", (-1,), content_type="base64"),))


@pytest.mark.parametrize(
    ("body", "spec", "expected"),
    [
        (rows(1, 2), ModelSpec(), {"input-0": np.array([1, 2])}),
        (rows(2**63 + 1025, 1), ModelSpec(), {"input-0": np.array([2**63 + 1025, 1], np.uint64)}),
        (b'{"inputs": {"x": 1}}', ModelSpec((TensorSpec("x", "INT8", ()),)), {"x": np.array(1, np.int8)}),
        (rows([], []), ModelSpec(), {"input-0": np.zeros((2, 0))}),
        (rows(1, 2.5), ModelSpec(), {"input-0": np.array([1, 2.5])}),
        (rows(True, False), ModelSpec(), {"input-0": np.array([True, False])}),
        (rows("a", "b"), ModelSpec(), {"input-0": np.array([b"a", b"b"], object)}),
        (rows([[1], [2]], [[3], [4]]), ModelSpec(), {"input-0": np.array([[[1], [2]], [[3], [4]]])}),
        (rows(1, 2), ONE, {"x": np.array([1, 2], np.uint8)}),
        (rows({"b64": "/9g="}), ModelSpec(), {"input-0": np.array([b"\xff\xd8"], object)}),
        (rows({"b64": "/9g="}), PICTURE, {"image": np.array([b"\xff\xd8"], object)}),
        (rows("/9g="), PICTURE, {"image": np.array([b"\xff\xd8"], object)}),
        (rows({"image": {"b64": "/9g="}}), PICTURE, {"image": np.array([b"\xff\xd8"], object)}),
        (
            rows({"a": 1, "b": [1.5, 2]}, {"a": 2, "b": [3, 4]}),
            ModelSpec(),
            {"a": np.array([1, 2]), "b": np.array([[1.5, 2], [3, 4]])},
        ),
        (
            b'{"inputs": {"a": [1, 2], "b": ["x", "y"]}}',
            ModelSpec(),
            {"a": np.array([1, 2]), "b": np.array([b"x", b"y"], object)},
        ),
        (b'{"inputs": [1, 2]}', ONE, {"x": np.array([1, 2], np.uint8)}),
    ],
)
def test_v1_rows_become_named_arrays(body, spec, expected):
    assert_same(rest_v1.decode_request(body, spec).tensors, expected)


@pytest.mark.parametrize(
    ("body", "spec", "reason"),
    [
        (b"{}", ModelSpec(), 'either "instances" (rows) or "inputs"'),
        (rows(1, inputs=[]), ModelSpec(), "either"),
        (b'{"instances": 3}', ModelSpec(), "must be a list of rows"),
        (rows(), ModelSpec(), "has no rows"),
        (rows({}), ModelSpec(), "row 0 is an object without keys"),
        (rows({}, {"a": 1}), ModelSpec(), "row 0 is an object without keys"),
        (b'{"inputs": {}}', ModelSpec(), '"inputs" is an object: expected'),
        (b'{"inputs": []}', ModelSpec(), '"inputs" is a list of 0: expected'),
        (b'{"inputs": 1}', ModelSpec(), '"inputs" is 1: expected an object of columns'),
        (b'{"inputs": null}', ModelSpec(), '"inputs" is null: expected'),
        (b'{"inputs": {"a": 1}}', ModelSpec(), "input 'a' is 1: expected a list, one value a row"),
        (rows(json.loads("[" * 32 + "1" + "]" * 32)), ModelSpec(), "nested too deep: expected at most 32"),
        (rows(2**63, -1), ModelSpec(), "[0] is 9223372036854775808: expected whole numbers that all fit INT64"),
        (rows([1, 2], 3), ModelSpec(), "[1] is 3: expected a list of 2"),
        (rows(1, "a"), ModelSpec(), "[1] is 'a': expected a number"),
        (rows("a", 1), ModelSpec(), "[1] is 1: expected a string"),
        (rows(1, True), ModelSpec(), "[1] is true: expected a number"),
        (rows(1, None), ModelSpec(), "[1] is null"),
        (rows(None), ModelSpec(), "[0] is null"),
        (rows([1, 2], [3]), ModelSpec(), "[1] is a list of 1: expected a list of 2"),
        (rows([1, [2]], [3, 4]), ModelSpec(), "[0][1] is a list of 1: expected a number"),
        (rows({"a": 1}, {"b": 1}), ModelSpec(), "row 1 does not have the keys of row 0: look at 'a', 'b'"),
        (rows({"a": 1}, {"a": 1, "b": 2}), ModelSpec(), "row 1 does not have the keys of row 0: look at 'b'"),
        (rows({"a": 1}, 3), ModelSpec(), "row 1 is not an object"),
        (rows({"a": 1}, {"a": {"c": 1}}), ModelSpec(), "input 'a'[1] is an object"),
        (rows(1, 300), ONE, "input 'x'[1] is 300: expected 0 to 255 for UINT8"),
        (rows({"x": 3}, {"x": 300}), ONE, "input 'x'[1] is 300"),
        (
            rows({"b64": "no!"}),
            PICTURE,
            "input 'image'[0] is an object: expected a string, or {\"b64\": ...} with base64",
        ),
        (rows(1, parameters=3), ModelSpec(), '"parameters" must be an object'),
        (
            rows(3),
            ModelSpec((TensorSpec("a", "INT8", (-1,)), TensorSpec("b", "INT8", (-1,)))),
            "give each row as an object",
        ),
    ],
)
def test_bad_v1_rows_are_invalid_input_that_names_row_and_column(body, spec, reason):
    with pytest.raises(InvalidInput) as found:
        rest_v1.decode_request(body, spec)
    assert reason in str(found.value)


def test_v1_answers_bare_rows_for_one_output_and_objects_for_several():
    one = rest_v1.encode_answer(Answer({"y": np.array([[1, 2], [3, 4]], np.float32)}))
    assert json.loads(one) == {"predictions": [[1.0, 2.0], [3.0, 4.0]]}
    labels = np.array([b"cat", "Äther".encode()], object)
    several = rest_v1.encode_answer(Answer({"y": np.array([1, 2]), "label": labels}))
    assert json.loads(several) == {"predictions": [{"y": 1, "label": "cat"}, {"y": 2, "label": "Äther"}]}


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ({"a": np.zeros(2), "b": np.zeros(3)}, "share no first dimension: 'a' [2], 'b' [3]"),
        ({"a": np.float64(1)}, "share no first dimension"),
        ({"a": np.array([1, np.nan])}, "output 'a' holds NaN or Inf"),
        ({"a": np.array([np.inf], np.float16)}, "output 'a' holds NaN or Inf"),
        ({"a": np.array([np.inf], ml_dtypes.bfloat16)}, "output 'a' holds NaN or Inf"),
        ({"a": np.array([b"\xff"], object)}, "output 'a' holds bytes that are not UTF-8"),
        ({"a": np.array([1j])}, "complex128, which the protocol has no datatype for"),
    ],
)
def test_an_output_that_json_cannot_hold_is_a_model_error_that_names_it(outputs, reason):
    with pytest.raises(ModelError) as found:
        rest_v1.encode_answer(Answer({name: np.asarray(value) for name, value in outputs.items()}))
    assert reason in str(found.value)


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name not in ("BOOL", "BYTES")])
def test_a_v1_hop_keeps_the_values_of_every_number_datatype(datatype):
    sent = {"a": tensor(datatype, (3,)), "b": tensor(datatype, (3, 1))}
    spec = ModelSpec((TensorSpec("a", datatype, (-1,)), TensorSpec("b", datatype, (-1, 1))))
    assert_same(rest_v1.decode_request(rest_v1.encode_request(sent), spec).tensors, sent)


def test_text_crosses_a_v1_hop_as_bytes():
    sent = rest_v1.encode_request({"label": np.array([["cat"], ["Äther"]])})
    assert rest_v1.decode_request(sent).tensors["input-0"].tolist() == [[b"cat"], ["Äther".encode()]]
    with pytest.raises(ModelError, match=r"input 'label'\[0\] is of type float"):
        rest_v1.encode_request({"label": np.array([1.5], object)})


def test_bytes_cross_a_v1_hop_as_they_are():
    sent = {"image": np.array([b"\xff\xd8", b"text"], object)}
    assert_same(rest_v1.decode_request(rest_v1.encode_request(sent), PICTURE).tensors, sent)
    answer = rest_v1.decode_answer(b'{"predictions": [{"label": "cat", "score": 0.5}]}')
    assert_same(answer.tensors, {"label": np.array([b"cat"], object), "score": np.array([0.5])})
