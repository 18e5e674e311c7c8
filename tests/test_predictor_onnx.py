"""OnnxPredictor on real ONNX files, served as a process."""

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
