"""OnnxPredictor on real ONNX files, served as a process."""

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from calls import WIRES, ask, http
from onnx import TensorProto, helper, numpy_helper
from onnx_files import write_onnx

from kservekit.codec.message import Request
from kservekit.config import OnnxSettings
from kservekit.errors import CannotStart, InvalidInput
from kservekit.local.cache import cache_folder
from kservekit.local.server import LocalServer
from kservekit.oip.grpc import GrpcBackend
from kservekit.predictors import onnx as predictor_module
from kservekit.predictors.onnx import OnnxPredictor
from kservekit.predictors.onnx_providers import check_in_use, chosen
from kservekit.predictors.repository_build import Build, build

TARGET = "kservekit.predictors.onnx:OnnxPredictor"


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


def test_an_input_without_a_shape_is_refused_and_a_scalar_taken(tmp_path):
    node = [helper.make_node("Identity", ["x"], ["y"])]
    for shape in ((), None):
        write_onnx(
            tmp_path / f"{shape}.onnx", node, [("x", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, None)]
        )
    scalar = OnnxPredictor(settings=OnnxSettings(str(tmp_path / "().onnx")))
    scalar.load()
    assert asyncio.run(scalar.answer(Request({"x": np.array(3, np.float32)}))).tensors["y"].tolist() == 3
    with pytest.raises(CannotStart, match=r"None\.onnx: 'x' has no shape; export the model with the shapes"):
        OnnxPredictor(settings=OnnxSettings(str(tmp_path / "None.onnx"))).load()


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


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Scores and the best class of a picture, by a convolution with weights of its own; and the text it was given."""
    path, random = tmp_path_factory.mktemp("onnx") / "classifier.onnx", np.random.default_rng(4)
    weights = [numpy_helper.from_array(random.normal(size=(8, 3, 3, 3)).astype(np.float32), "w")]
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["class"], axis=1, keepdims=0),
        helper.make_node("Cast", ["scores"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Identity", ["name"], ["same"]),
    ]
    inputs = [("image", TensorProto.FLOAT, ["n", 3, "h", "w"]), ("name", TensorProto.STRING, ["n", 1])]
    outputs = [
        ("scores", TensorProto.FLOAT, ["n", 8]),
        ("class", TensorProto.INT64, ["n"]),
        ("half", TensorProto.FLOAT16, ["n", 8]),
        ("same", TensorProto.STRING, ["n", 1]),
    ]
    write_onnx(path, nodes, inputs, outputs, weights)
    return path


def test_in_process_and_through_triton_a_model_gives_the_same_answers(local_triton, tmp_path, classifier):
    build(Build(classifier, "classifier", target="local", warm_up=False), tmp_path / "models")
    triton = local_triton(tmp_path / "models")
    image = np.random.default_rng(5).normal(size=(5, 3, 9, 7)).astype(np.float32)
    names = np.array([[f"Zo\u00eb {at}".encode()] for at in range(5)], object)
    request = Request({"image": image, "name": names}, model="classifier")

    async def both():
        model, backend = OnnxPredictor(settings=OnnxSettings(str(classifier))), GrpcBackend(triton.grpc_url)
        model.load()
        try:
            return (await model.answer(request)).tensors, (await backend.infer(request)).tensors
        finally:
            await backend.close()

    ours, theirs = asyncio.run(both())
    assert ours.keys() == theirs.keys() == {"scores", "class", "half", "same"}
    assert ours["same"].tolist() == theirs["same"].tolist() == names.tolist()
    for name in ("scores", "class", "half"):
        assert ours[name].dtype == theirs[name].dtype
        assert np.allclose(ours[name], theirs[name].reshape(ours[name].shape), rtol=1e-5)


GPU = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
CPU = ["AzureExecutionProvider", "CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("wanted", "installed", "given"),
    [
        (("auto",), GPU, GPU),
        (("auto",), CPU, ["CPUExecutionProvider"]),
        (("auto",), ["OpenVINOExecutionProvider", *CPU], ["CPUExecutionProvider"]),
        (("cuda", "cpu"), GPU, GPU[1:]),
        (("cudaexecutionprovider",), GPU, GPU[1:2]),
        (("openvino", "cpu"), ["OpenVINOExecutionProvider", *CPU], ["OpenVINOExecutionProvider", CPU[1]]),
    ],
)
def test_auto_is_the_fastest_that_there_is_and_names_are_taken_as_they_are(wanted, installed, given):
    assert chosen(wanted, installed) == given


@pytest.mark.parametrize("wanted", [("cuda", "cpu"), ("cupid",), ("auto", "cpu"), ()])
def test_a_provider_that_is_not_installed_keeps_the_predictor_from_starting(classifier, wanted):
    model = OnnxPredictor(settings=OnnxSettings(str(classifier), providers=wanted))
    with pytest.raises(CannotStart, match=f"KSERVEKIT_ONNX_PROVIDERS is '{','.join(wanted)}': expected auto, or .*cpu"):
        model.load()
    assert not model.ready


def test_one_for_a_gpu_that_is_not_installed_comes_with_the_way_to_have_it():
    with pytest.raises(CannotStart, match="pip install onnxruntime-gpu"):
        chosen(("cuda",), CPU)


def test_a_named_provider_that_does_not_start_is_an_error_and_one_that_auto_found_a_warning(caplog):
    with pytest.raises(CannotStart, match="'cuda,cpu', and cuda is installed, and does not start: its driver"):
        check_in_use(("cuda", "cpu"), GPU[1:], GPU[2:])
    with caplog.at_level(logging.INFO):
        check_in_use(("auto",), GPU, GPU[2:])
    assert [(record.levelname, record.getMessage().split(":")[0]) for record in caplog.records][-1] == (
        "WARNING",
        "tensorrt, cuda is installed, and does not start",
    )


def test_the_log_says_what_runs_the_model(classifier, caplog):
    with caplog.at_level(logging.INFO):
        OnnxPredictor(settings=OnnxSettings(str(classifier))).load()
    assert "ONNX Runtime runs the model with cpu" in caplog.messages


@pytest.mark.parametrize(("threads", "expected"), [(0, 5), (2, 2)])
def test_it_starts_as_many_threads_as_the_container_may_use_or_as_it_is_told(
    classifier, monkeypatch, threads, expected
):
    monkeypatch.setattr(predictor_module, "usable_cpus", lambda: 5)
    model = OnnxPredictor(settings=OnnxSettings(str(classifier), threads=threads))
    before = set(os.listdir("/proc/self/task"))
    model.load()
    assert len(set(os.listdir("/proc/self/task")) - before) == expected - 1  # the caller's thread is one of them


def test_bound_to_a_device_it_gives_the_same_and_tells_a_callers_value_from_a_fault(tmp_path):
    """The device is the CPU here, for want of another."""
    nodes = [helper.make_node("Gather", ["table", "at"], ["row"])]
    table, at = ("table", TensorProto.FLOAT, ["N"]), ("at", TensorProto.INT64, ["M"])
    write_onnx(tmp_path / "m.onnx", nodes, [table, at], [("row", TensorProto.FLOAT, ["M"])])
    model = OnnxPredictor(settings=OnnxSettings(str(tmp_path / "m.onnx")))
    model.load()
    model._bound_to = "cpu"
    values = np.arange(8, dtype=np.float32)[::2]
    assert asyncio.run(model.infer({"table": values, "at": np.array([3, 0])}))["row"].tolist() == [6, 0]
    with pytest.raises(InvalidInput, match="idx=9 must be within the inclusive range"):
        asyncio.run(model.infer({"table": values, "at": np.array([9])}))
    assert asyncio.run(model.infer({"table": values, "at": np.array([1])}))["row"].tolist() == [2]


def half_of_a_file(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_its_weights(path):
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (path.parent / "w.bin").unlink()


def with_half_of_its_weights(path):
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    half_of_a_file(path.parent / "w.bin")


def with_an_operator_that_there_is_not(path):
    model = onnx.load(path)
    model.graph.node[0].op_type = "Convolute"
    path.write_bytes(model.SerializeToString())


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "broken",
    [half_of_a_file, without_its_weights, with_half_of_its_weights, with_an_operator_that_there_is_not, empty],
    ids=lambda broken: broken.__name__,
)
def test_a_corrupt_model_cannot_be_loaded(tmp_path, classifier, broken):
    path = tmp_path / "model.onnx"
    path.write_bytes(classifier.read_bytes())
    broken(path)
    model = OnnxPredictor(settings=OnnxSettings(str(path)))
    with pytest.raises(CannotStart, match=r"model\.onnx is not a model that ONNX Runtime takes: "):
        model.load()
    assert not model.ready


def test_a_model_whose_file_vanishes_goes_on_answering_and_is_not_loaded_again_without_it(tmp_path, classifier):
    path = tmp_path / "model.onnx"
    onnx.save(onnx.load(classifier), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    kept = {file: file.read_bytes() for file in (path, tmp_path / "w.bin")}
    settings = {"KSERVEKIT_ONNX_MODEL_PATH": str(path), "KSERVEKIT_REPOSITORY_API": "true"}
    tensors = {"image": np.ones((1, 3, 4, 4), np.float32), "name": np.array([[b"one"]], object)}
    with LocalServer(TARGET, model_name="m", settings=settings) as server:
        first = ask(server, "v2 gRPC", tensors).tensors["scores"]
        for file in kept:
            file.unlink()
        assert np.array_equal(ask(server, "v2 gRPC", tensors).tensors["scores"], first)
        assert http(server.http_url, "/v2/repository/models/m/unload", {}).status == 200
        refused = http(server.http_url, "/v2/repository/models/m/load", {})
        assert (refused.status, refused.json["error"]) == (
            500,
            "model 'm' does not load; the server's log has the reason",
        )
        assert http(server.http_url, "/v2/models/m/infer", {"inputs": []}).status == 503
        for file, content in kept.items():
            file.write_bytes(content)
        assert http(server.http_url, "/v2/repository/models/m/load", {}).status == 200
        assert np.array_equal(ask(server, "v2 gRPC", tensors).tensors["scores"], first)


def test_more_rows_than_the_model_has_are_the_callers_fault(tmp_path):
    x = ("x", TensorProto.FLOAT, [4, 2])
    write_onnx(tmp_path / "m.onnx", [helper.make_node("Neg", ["x"], ["z"])], [x], [("z", *x[1:])])
    settings = {"KSERVEKIT_ONNX_MODEL_PATH": str(tmp_path / "m.onnx")}
    with LocalServer(TARGET, model_name="m", settings=settings) as server:
        for wire in WIRES[1:]:
            with pytest.raises(InvalidInput, match=r"\[5, 2\]: this model takes \[4, 2\]"):
                ask(server, wire, {"x": np.zeros((5, 2), np.float32)})
            assert ask(server, wire, {"x": np.ones((4, 2), np.float32)}).tensors["z"].tolist() == [[-1, -1]] * 4


def test_onnx_runtime_keeps_no_id_of_the_machine_and_sends_nothing(tmp_path, monkeypatch, local_triton):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    monkeypatch.setenv("KSERVEKIT_CACHE_DIR", str(cache_folder()))
    monkeypatch.setenv("HOME", str(tmp_path))
    path, x, y = tmp_path / "m.onnx", ("x", TensorProto.FLOAT, ["n"]), ("y", TensorProto.FLOAT, ["n"])
    write_onnx(path, [helper.make_node("Identity", ["x"], ["y"])], [x], [y])
    settings = {"KSERVEKIT_ONNX_MODEL_PATH": str(path)}
    with LocalServer(TARGET, settings=settings) as server:
        assert ask(server, "v2 gRPC", {"x": np.ones(1, np.float32)}).tensors["y"].tolist() == [1]
    build(Build(path, "m", target="local"), tmp_path / "repository")
    local_triton(tmp_path / "repository")
    assert not (tmp_path / ".cache").exists()
