"""OnnxPredictor on real ONNX files, served as a process."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from calls import WIRES, ask, http
from onnx import TensorProto, helper

from kservekit.config import OnnxSettings
from kservekit.errors import CannotStart, InvalidInput
from kservekit.local.server import LocalServer
from kservekit.predictors.onnx import OnnxPredictor

TARGET = "kservekit.predictors.onnx:OnnxPredictor"


def write_onnx(path, nodes, inputs, outputs):
    tensors = [[helper.make_tensor_value_info(*item) for item in items] for items in (inputs, outputs)]
    graph = helper.make_graph(nodes, "test", *tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Gives z = x + x and, untouched, the text that it is given."""
    path = tmp_path_factory.mktemp("onnx") / "two.onnx"
    nodes = [helper.make_node("Add", ["x", "x"], ["z"]), helper.make_node("Identity", ["text"], ["same"])]
    x, text = ("x", TensorProto.FLOAT, ["n", 2]), ("text", TensorProto.STRING, ["n"])
    write_onnx(path, nodes, [x, text], [("z", TensorProto.FLOAT, ["n", 2]), ("same", TensorProto.STRING, ["n"])])
    with LocalServer(TARGET, model_name="two", settings={"KSERVEKIT_ONNX_MODEL_PATH": str(path)}) as server:
        yield server


@pytest.mark.parametrize("wire", WIRES)
def test_an_onnx_file_answers_over_every_wire(two, wire):
    tensors = {"x": np.array([[1, 2.5]], np.float32), "text": np.array(["Zo\u00eb".encode()], object)}
    answer = ask(two, wire, tensors)
    assert answer.tensors["z"].tolist() == [[2, 5]]
    assert answer.tensors["same"].tolist() == ["Zo\u00eb".encode()]


def test_the_files_own_declaration_is_the_metadata_and_the_check(two):
    metadata = http(two.http_url, "/v2/models/two").json
    assert metadata["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "text", "datatype": "BYTES", "shape": [-1]},
    ]
    with pytest.raises(InvalidInput, match="missing input 'text'"):
        ask(two, "v2 gRPC", {"x": np.zeros((1, 2), np.float32)})


def test_text_that_is_not_utf8_is_the_callers_fault(two):
    tensors = {"x": np.zeros((1, 2), np.float32), "text": np.array([b"\xff"], object)}
    with pytest.raises(InvalidInput, match="'text'"):
        ask(two, "v2 binary", tensors)


def test_a_file_that_is_no_model_cannot_be_loaded(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(CannotStart, match=r"model\.onnx is not a model that ONNX Runtime takes"):
        OnnxPredictor(settings=OnnxSettings(str(tmp_path / "model.onnx"))).load()


def test_a_datatype_that_the_protocol_lacks_cannot_be_loaded(tmp_path):
    item = ("x", TensorProto.FLOAT8E4M3FN, [1])
    write_onnx(tmp_path / "m.onnx", [helper.make_node("Identity", ["x"], ["y"])], [item], [("y", *item[1:])])
    with pytest.raises(
        CannotStart, match=r"'x' of the model is tensor\(float8e4m3fn\), which the protocol has no datatype for"
    ):
        OnnxPredictor(settings=OnnxSettings(str(tmp_path / "m.onnx"))).load()


def test_bf16_cannot_be_loaded_and_the_way_out_is_said(tmp_path):
    item = ("x", TensorProto.BFLOAT16, [1])
    write_onnx(tmp_path / "m.onnx", [helper.make_node("Identity", ["x"], ["y"])], [item], [("y", *item[1:])])
    with pytest.raises(CannotStart, match=r"'x' of the model is BF16, .* with FP16 or FP32 inputs and outputs"):
        OnnxPredictor(settings=OnnxSettings(str(tmp_path / "m.onnx"))).load()


@pytest.fixture(scope="module")
def picky(tmp_path_factory):
    """sum = a + b for one N; and table[at], where a row may not be there."""
    path = tmp_path_factory.mktemp("onnx") / "picky.onnx"
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Gather", ["table", "at"], ["row"])]
    a, b = ("a", TensorProto.FLOAT, ["N"]), ("b", TensorProto.FLOAT, ["N"])
    table, at = ("table", TensorProto.FLOAT, [4]), ("at", TensorProto.INT64, ["M"])
    write_onnx(path, nodes, [a, b, table, at], [("sum", *a[1:]), ("row", TensorProto.FLOAT, ["M"])])
    with LocalServer(TARGET, model_name="picky", settings={"KSERVEKIT_ONNX_MODEL_PATH": str(path)}) as server:
        yield server


def taken(a=2, b=2, at=0):
    zeros = {"a": np.zeros(a, np.float32), "b": np.zeros(b, np.float32), "table": np.zeros(4, np.float32)}
    return zeros | {"at": np.array([at])}


@pytest.mark.parametrize(("a", "b"), [(2, 3), (1, 3), (0, 1)])
def test_sizes_of_one_name_must_be_one_size(picky, a, b):
    with pytest.raises(InvalidInput) as found:
        ask(picky, "v2 gRPC", taken(a, b))
    assert str(found.value) == (
        f"input 'b' has size {b} at dimension 0, and input 'a' {a} at dimension 0: "
        "this model takes one size for both, 'N'"
    )


@pytest.mark.parametrize("wire", WIRES[1:])
def test_a_value_that_the_model_does_not_take_is_the_callers_fault(picky, wire):
    assert ask(picky, wire, taken(at=3)).tensors["row"].tolist() == [0]
    with pytest.raises(InvalidInput) as found:
        ask(picky, wire, taken(at=9))
    assert str(found.value) == (
        "the model does not take these values: "
        "indices element out of data bounds, idx=9 must be within the inclusive range [-4,3]"
    )


def test_callers_who_share_a_run_get_their_own_rows(tmp_path):
    x = ("x", TensorProto.FLOAT, ["n", 2])
    write_onnx(
        tmp_path / "m.onnx", [helper.make_node("Add", ["x", "x"], ["z"])], [x], [("z", TensorProto.FLOAT, ["n", 2])]
    )
    settings = {"KSERVEKIT_ONNX_MODEL_PATH": str(tmp_path / "m.onnx"), "KSERVEKIT_ONNX_BATCH_ROWS": "4"}
    sent = [np.full((1 + at % 6, 2), at, np.float32) for at in range(24)]
    with LocalServer(TARGET, model_name="m", settings=settings) as server, ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda values: ask(server, "v2 gRPC", {"x": values}), sent))
    for values, answer in zip(sent, answers, strict=True):
        assert answer.tensors["z"].tolist() == (values * 2).tolist()


def test_a_model_whose_rows_are_fixed_cannot_be_put_into_batches(tmp_path):
    x, z, axes = (
        ("x", TensorProto.FLOAT, ["n", 2]),
        ("z", TensorProto.FLOAT, [1, 2]),
        ("axes", TensorProto.INT64, ["n"]),
    )
    write_onnx(tmp_path / "m.onnx", [helper.make_node("ReduceSum", ["x", "axes"], ["z"])], [x, axes], [z])
    model = OnnxPredictor(settings=OnnxSettings(model_path=str(tmp_path / "m.onnx"), batch_rows=4))
    with pytest.raises(CannotStart, match=r"BATCH_ROWS is set, and 'z' of the model has shape \[1, 2\]"):
        model.load()
