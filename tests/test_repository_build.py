"""`kservekit repository build` and `check`: what they write the real Triton loads, and what they find it refuses."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from calls import kservekit
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from onnx_files import write_doubles, write_onnx

from kservekit.codec.message import Request
from kservekit.errors import CannotStart, InvalidInput
from kservekit.oip.grpc import GrpcBackend
from kservekit.oip.triton_messages import model_config
from kservekit.predictors import repository_command
from kservekit.predictors.onnx_file import read_onnx
from kservekit.predictors.repository_build import Build, build
from kservekit.predictors.repository_check import check
from kservekit.tensors import TensorSpec


@pytest.fixture
def rows(tmp_path):
    """y = x + w, whatever the rows."""
    w = numpy_helper.from_array(np.array([1, 2, 3], np.float32), "w")
    x, y = ("x", TensorProto.FLOAT, ["n", 3]), ("y", TensorProto.FLOAT, ["n", 3])
    return write_onnx(tmp_path / "rows.onnx", [helper.make_node("Add", ["x", "w"], ["y"])], [x], [y], [w])


@pytest.fixture
def picture(tmp_path):
    """The mean of a picture of any size, and the picture itself as another datatype."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=1),
        helper.make_node("Cast", ["x"], ["same"], to=TensorProto.FLOAT16),
    ]
    x = ("x", TensorProto.FLOAT, [3, "height", "width"])
    outputs = [("mean", TensorProto.FLOAT, [1, 1, 1]), ("same", TensorProto.FLOAT16, [3, "height", "width"])]
    return write_onnx(tmp_path / "picture.onnx", nodes, [x], outputs)


DOUBLES = """
import numpy as np
import triton_python_backend_utils as triton

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [-1]})
        config.add_output({"name": "y", "data_type": "TYPE_FP32", "dims": [-1]})
        config.set_max_batch_size(0)
        return config

    def execute(self, requests):
        inputs = [triton.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [triton.InferenceResponse([triton.Tensor("y", x * 2)]) for x in inputs]
"""


def answer(server, model, tensors, version=""):
    async def once():
        backend = GrpcBackend(server.grpc_url)
        try:
            return await backend.infer(Request(tensors, model=model, version=version))
        finally:
            await backend.close()

    return asyncio.run(once())


def test_what_is_built_for_the_local_triton_it_loads_and_answers(local_triton, tmp_path, rows, picture):
    (tmp_path / "doubles.py").write_text(DOUBLES)
    repository = tmp_path / "models"
    given = {"target": "local"}
    build(Build(rows, "rows", **given, batch_delay_us=500, instances=2, keep="1,2"), repository)
    build(Build(rows, "rows", **given, version=2, batch_delay_us=500, instances=2, keep="1,2"), repository)
    build(Build(picture, "picture", **given, sizes={"height": 4, "width": 5}), repository)
    build(Build(tmp_path / "doubles.py", "doubles", **given), repository)
    tensors = ([TensorSpec("x", "FP32", (-1, 2))], [TensorSpec("y", "FP32", (-1, 2))])
    declared = Build(tmp_path / "doubles.py", "declared", **given, max_batch=4, inputs=tensors[0], outputs=tensors[1])
    (tmp_path / "doubles.py").write_text(DOUBLES.replace("auto_complete_config", "not_used"))
    build(declared, repository)
    assert [finding for finding in check(repository) if finding.is_error] == []
    server = local_triton(repository)
    x = np.array([[1, 1, 1], [2, 2, 2]], np.float32)
    for version in ("1", "2"):
        found = answer(server, "rows", {"x": x}, version)
        assert (found.version, found.tensors["y"].tolist()) == (version, [[2, 3, 4], [3, 4, 5]])
    found = answer(server, "picture", {"x": np.ones((3, 2, 2), np.float32)}).tensors
    assert (found["mean"].ravel().tolist(), found["same"].dtype, found["same"].shape) == ([1], np.float16, (3, 2, 2))
    assert answer(server, "doubles", {"x": np.ones(3, np.float32)}).tensors["y"].tolist() == [2, 2, 2]
    assert answer(server, "declared", {"x": np.ones((3, 2), np.float32)}).tensors["y"].tolist() == [[2, 2]] * 3
    assert "failed to load" not in server.log.read_text()


def test_what_triton_cannot_run_is_one_callers_fault_and_the_next_is_served(local_triton, tmp_path):
    nodes = [helper.make_node("Gather", ["table", "at"], ["row"]), helper.make_node("Identity", ["text"], ["same"])]
    inputs = [("at", TensorProto.INT64, ["n", 1]), ("text", TensorProto.STRING, ["n", 1])]
    outputs = [("row", TensorProto.FLOAT, ["n", 1]), ("same", TensorProto.STRING, ["n", 1])]
    table = numpy_helper.from_array(np.arange(4, dtype=np.float32), "table")
    write_onnx(tmp_path / "picky.onnx", nodes, inputs, outputs, [table])
    build(Build(tmp_path / "picky.onnx", "picky", target="local", batch_delay_us=50_000), tmp_path / "models")
    nodes = [
        helper.make_node("NonZero", ["scores"], ["at"]),
        helper.make_node("Transpose", ["at"], ["boxes"], perm=[1, 0]),
    ]
    scores, boxes = ("scores", TensorProto.FLOAT, ["n", 3]), ("boxes", TensorProto.INT64, ["found", 2])
    detector = write_onnx(tmp_path / "detector.onnx", nodes, [scores], [boxes])
    told = Build(detector, "detector", target="local", batch_delay_us=60_000_000, max_batch=4, warm_up=False)
    build(told, tmp_path / "models")
    server = local_triton(tmp_path / "models")

    def given(at, text=b"Zo\xc3\xab"):
        return {"at": np.array([[at]]), "text": np.array([[text]], object)}

    def outcome(tensors):
        try:
            return answer(server, "picky", tensors).tensors["row"].tolist()
        except InvalidInput as error:
            return str(error)

    sent = [given(1), given(9), given(2), given(0, b"\xff"), given(3)]
    with ThreadPoolExecutor(len(sent)) as callers:  # in one batch, or in several
        found = list(callers.map(outcome, sent))
    assert [one for one in found if isinstance(one, list)] == [[[1]], [[2]], [[3]]]
    assert "idx=9 must be within the inclusive range [-4,3]" in found[1]
    assert "bytes that are not UTF-8" in found[3]
    with ThreadPoolExecutor(4) as callers:  # of a model that answers no rows, and was told to have batches
        scores = np.array([[1, 0, 1], [1, 1, 0], [0, 1, 1], [1, 1, 1]], np.float32)
        answers = list(
            callers.map(lambda row: answer(server, "detector", {"scores": row[None]}).tensors["boxes"], scores)
        )
    assert [boxes.tolist() for boxes in answers] == [[[0, box] for box in np.flatnonzero(row)] for row in scores]
    assert "detector: boxes [9, 2] for 4 rows: this model does not answer row by row" in server.log.read_text()
    with pytest.raises(InvalidInput, match="batch-size must be <= 8"):
        answer(server, "picky", {name: np.repeat(array, 9, axis=0) for name, array in given(1).items()})
    assert answer(server, "picky", given(1)).tensors["same"].tolist() == [[b"Zo\xc3\xab"]]


CONTRADICTIONS = {
    "other dims": ("dims: 3", "dims: 4"),
    "another datatype": ("TYPE_FP32", "TYPE_FP16"),
    "another input": ('"x"', '"z"'),
    "another output": ('"y"', '"z"'),
    "one dimension more": ("dims: 3", "dims: [1, 3]"),
}


@pytest.mark.parametrize(("old", "new"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_config_that_contradicts_the_model_is_found_and_refused_by_the_local_triton(
    local_triton, tmp_path, rows, old, new
):
    built = build(Build(rows, "m", target="local", warm_up=False), tmp_path / "models")
    text = (built.folder / "config.pbtxt").read_text()
    assert old in text
    (built.folder / "config.pbtxt").write_text(text.replace(old, new, 1))
    assert any(finding.is_error for finding in check(tmp_path / "models"))
    with pytest.raises(CannotStart, match=r"config\.pbtxt declares (in|out)put .*, and (in )?model\.onnx"):
        local_triton(tmp_path / "models")


def test_for_a_gpu_onnx_and_plans_have_backends_of_their_own(tmp_path, rows):
    built = build(Build(rows, "rows", tensorrt="fp16", response_cache=True, max_batch=32), tmp_path / "models")
    config = text_format.Parse((built.folder / "config.pbtxt").read_text(), model_config.ModelConfig())
    assert config == built.config
    assert (config.backend, config.max_batch_size, config.response_cache.enable) == ("onnxruntime", 32, True)
    assert [group.kind for group in config.instance_group] == [model_config.ModelInstanceGroup.KIND_GPU]
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, accelerator.parameters["precision_mode"]) == ("tensorrt", "FP16")
    assert config.dynamic_batching.default_queue_policy.allow_timeout_override
    assert [(one.batch_size, list(one.inputs["x"].dims)) for one in config.model_warmup] == [(1, [3]), (32, [3])]
    (tmp_path / "model.plan").write_bytes(b"an engine")
    built = build(Build(tmp_path / "model.plan", "engine"), tmp_path / "models")
    assert (built.config.backend, (built.folder / "1/model.plan").read_bytes()) == ("tensorrt", b"an engine")
    assert check(tmp_path / "models") == []


def test_weights_beside_the_file_come_along(tmp_path, rows):
    model = onnx.load(rows)
    onnx.save(model, tmp_path / "large.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert read_onnx(tmp_path / "large.onnx").weights == ("w.bin",)
    built = build(Build(tmp_path / "large.onnx", "large"), tmp_path / "models")
    assert (built.folder / "1/w.bin").read_bytes() == (tmp_path / "w.bin").read_bytes()


def constant(value):
    return helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(np.full(3, value, np.float32)))


def test_weights_that_nodes_and_their_graphs_hold_come_along(tmp_path):
    def branch(name, value):
        nodes = [constant(value), helper.make_node("Add", ["x", "w"], [name])]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3])])

    nodes = [
        helper.make_node("If", ["which"], ["added"], then_branch=branch("one", 1), else_branch=branch("two", 2)),
        constant(4),
        helper.make_node("Mul", ["added", "w"], ["y"]),
    ]
    inputs, outputs = [("x", TensorProto.FLOAT, ["n", 3])], [("y", TensorProto.FLOAT, ["n", 3])]
    which = numpy_helper.from_array(np.array(True), "which")
    model = onnx.load(write_onnx(tmp_path / "m.onnx", nodes, inputs, outputs, [which]))
    branches = [attribute.g.node[0].attribute[0].t for attribute in model.graph.node[0].attribute]
    for number, tensor in enumerate([*branches, model.graph.node[1].attribute[0].t]):
        onnx.external_data_helper.set_external_data(tensor, f"{number}.bin")
        (tmp_path / f"{number}.bin").write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    built = build(Build(tmp_path / "m.onnx", "m", target="local"), tmp_path / "models")
    assert [(built.folder / f"1/{number}.bin").stat().st_size for number in range(3)] == [12] * 3
    assert check(tmp_path / "models") == []
    (built.folder / "1/1.bin").unlink()
    assert "has weights in '1.bin', which is not there" in check(tmp_path / "models")[0].what


def test_weights_elsewhere_are_not_fetched(tmp_path, rows):
    model = onnx.load(rows)
    onnx.save(model, tmp_path / "large.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    text = (tmp_path / "large.onnx").read_bytes().replace(b"w.bin", b"../ab")
    (tmp_path / "large.onnx").write_bytes(text)
    with pytest.raises(CannotStart, match=r"weights in '\.\./ab': expected a file beside it"):
        read_onnx(tmp_path / "large.onnx")


def test_an_open_size_that_nobody_names_leaves_the_warm_up_out_and_says_so(tmp_path, picture):
    built = build(Build(picture, "picture", sizes={"height": 4}), tmp_path / "models")
    assert not built.config.model_warmup
    assert built.notes == ("no warm-up: size 'width' of input 'x' is open; give --size width=224, say",)


def test_the_advice_for_a_size_without_a_name_can_be_followed(tmp_path):
    x, y = ("x", TensorProto.FLOAT, [None, None]), ("y", TensorProto.FLOAT, [None, None])
    file = write_onnx(tmp_path / "m.onnx", [helper.make_node("Neg", ["x"], ["y"])], [x], [y])
    (note,) = build(Build(file, "m"), tmp_path / "models").notes
    assert note == "no warm-up: size 'x[1]' of input 'x' is open; give --size x[1]=224, say"
    done = kservekit("repository", "build", str(file), "--into", str(tmp_path / "models"), "--size", "x[1]=224")
    assert "warm-up: rows-1, rows-8\n" in done.stdout


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"max_batch": 4}, r"--max-batch is 4, and 'x' has shape \[3, -1, -1\]"),
        ({"batch_delay_us": 5}, "this model has no batches"),
        ({"keep": "newest"}, "--keep is 'newest': expected latest:2, all"),
        ({"tensorrt": "fp16", "target": "local"}, "--tensorrt is for ONNX files on a GPU"),
        ({"inputs": [TensorSpec("x", "FP32", (1,))]}, "an ONNX file says itself"),
    ],
)
def test_what_contradicts_itself_is_refused_before_anything_is_written(tmp_path, picture, given, sentence):
    with pytest.raises(CannotStart, match=sentence):
        build(Build(picture, "picture", **given), tmp_path / "models")
    assert not (tmp_path / "models").exists()


X = TensorSpec("x", "FP32", (-1, 2))

REFUSED = {
    "a name that leads out": ({"name": "../up"}, "--name is '../up': expected a folder's name"),
    "a name that leads below": ({"name": "a/b"}, "--name is 'a/b'"),
    "the repository's own name": ({"name": "."}, "--name is '.'"),
    "a name that a shell takes apart": ({"name": "a b"}, "--name is 'a b', and .* through a shell unquoted"),
    "a version that ends Triton": (
        {"version": 2**63},
        f"--version is {2**63}: expected a number from 1 to {2**63 - 1}",
    ),
    "more rows than the field holds": ({"max_batch": 2**31}, f"--max-batch is {2**31}"),
    "more instances than the field holds": ({"instances": 2**31}, f"--instances is {2**31}"),
    "a longer wait than the field holds": ({"batch_delay_us": 2**64}, f"--batch-delay-us is {2**64}"),
    "more versions than the field holds": ({"keep": f"latest:{2**32}"}, f"--keep is 'latest:{2**32}'"),
    "a version to keep that cannot be": ({"keep": f"1,{2**63}"}, f"--keep is '1,{2**63}'"),
    "a digit that is no number": ({"keep": "latest:²"}, "--keep is 'latest:²'"),
    "a version that is not kept": ({"keep": "5"}, "--keep is '5', and does not serve version 1: add it, or say all"),
    "an input twice": ({"inputs": [X, X]}, "input 'x' is there twice"),
    "an output twice": ({"outputs": [X, X]}, "output 'x' is there twice"),
    "a size below -1": ({"inputs": [TensorSpec("x", "FP32", (-5, 3))]}, r"input 'x' has shape \[-5, 3\]: Triton takes"),
    "no size": ({"outputs": [TensorSpec("y", "FP32", (0, 3))]}, r"output 'y' has shape \[0, 3\]"),
    "a size too large": ({"inputs": [TensorSpec("x", "FP32", (-1, 2**63))]}, r"input 'x' has shape \[-1, 9223372036"),
    "a size of no name": ({"inputs": [X], "sizes": {"n": 4}}, "--size has 'n', .* none is open, so leave it out"),
    "another size": (
        {"inputs": [TensorSpec("x", "FP32", (-1, -1))], "sizes": {"x[0]": 4}},
        r"--size has 'x\[0\]', and no input leaves a size of that name open beside the batch: open are 'x\[1\]'",
    ),
}


@pytest.mark.parametrize(("given", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_triton_does_not_take_is_refused_before_anything_is_written(tmp_path, given, sentence):
    (tmp_path / "m.py").write_text(DOUBLES)
    tensors = {"inputs": [X], "outputs": [TensorSpec("y", "FP32", (-1, 2))]}
    with pytest.raises(CannotStart, match=sentence):
        build(Build(tmp_path / "m.py", **{"name": "m", **tensors, **given}), tmp_path / "models")
    assert [path.name for path in tmp_path.iterdir()] == ["m.py"]


@pytest.mark.parametrize(
    ("datatype", "shape", "sentence"),
    [
        (TensorProto.FLOAT, ("n", 0), r"input 'x' has shape \[-1, 0\]: Triton takes sizes from 1"),
        (TensorProto.FLOAT, (0, 3), r"input 'x' has shape \[0, 3\]"),
        (TensorProto.BFLOAT16, ("n", 3), "input 'x' is BF16, which ONNX Runtime does not give as an array: export the"),
    ],
)
def test_an_onnx_file_that_the_local_triton_cannot_serve_is_refused(tmp_path, datatype, shape, sentence):
    write_doubles(tmp_path / "m.onnx", datatype, shape)
    with pytest.raises(CannotStart, match=sentence):
        build(Build(tmp_path / "m.onnx", "m", target="local"), tmp_path / "models")


@pytest.mark.parametrize(
    ("given", "notes"),
    [
        ({}, ("no warm-up: no inputs are declared", "no inputs or outputs are declared: model.py must have auto_")),
        ({"outputs": [X]}, ("no warm-up: no inputs are declared", "no inputs are declared: model.py must have auto_")),
        ({"inputs": [X]}, ("no outputs are declared: model.py must have auto_complete_config",)),
    ],
)
def test_what_is_not_declared_is_said_and_gets_no_warm_up(tmp_path, given, notes):
    (tmp_path / "m.py").write_text(DOUBLES)
    built = build(Build(tmp_path / "m.py", "m", max_batch=4, **given), tmp_path / "models")
    assert len(built.notes) == len(notes)
    assert all(said.startswith(note) for said, note in zip(built.notes, notes, strict=True))
    assert [list(sample.inputs) for sample in built.config.model_warmup] == [["x"]] * 2 * ("inputs" in given)


def test_a_size_without_a_name_is_called_by_its_place(tmp_path):
    (tmp_path / "m.plan").write_bytes(b"an engine")
    tensors = {"inputs": [TensorSpec("x", "FP32", (-1, 3, -1))], "outputs": [X]}
    built = build(Build(tmp_path / "m.plan", "m", **tensors), tmp_path / "models")
    assert built.notes == ("no warm-up: size 'x[2]' of input 'x' is open; give --size x[2]=224, say",)
    built = build(Build(tmp_path / "m.plan", "m", **tensors, sizes={"x[2]": 4}), tmp_path / "models")
    assert [list(sample.inputs["x"].dims) for sample in built.config.model_warmup] == [[3, 4]] * 2


def test_a_scalar_is_refused_as_triton_would(tmp_path):
    x, y = ("x", TensorProto.FLOAT, ["n", 3]), ("y", TensorProto.FLOAT, [])
    write_onnx(tmp_path / "m.onnx", [helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)], [x], [y])
    with pytest.raises(CannotStart, match="'y' is a scalar"):
        build(Build(tmp_path / "m.onnx", "m"), tmp_path / "models")


def test_rows_without_more_are_served_with_a_size_of_one(local_triton, tmp_path):
    x, y = ("x", TensorProto.FLOAT, ["n"]), ("y", TensorProto.FLOAT, ["n"])
    write_onnx(tmp_path / "m.onnx", [helper.make_node("Neg", ["x"], ["y"])], [x], [y])
    build(Build(tmp_path / "m.onnx", "m", target="local"), tmp_path / "models")
    assert [finding for finding in check(tmp_path / "models") if finding.is_error] == []
    server = local_triton(tmp_path / "models")
    assert answer(server, "m", {"x": np.ones((2, 1), np.float32)}).tensors["y"].ravel().tolist() == [-1, -1]


def test_the_command_says_what_it_made_and_what_is_wrong(tmp_path, rows):
    done = kservekit("repository", "build", str(rows), "--into", str(tmp_path / "models"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "x FP32 [batch, 3]" in done.stdout
    done = kservekit("repository", "check", str(tmp_path / "models"))
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'models'}: no errors\n")
    (tmp_path / "models/rows/1/model.onnx").unlink()
    done = kservekit("repository", "check", str(tmp_path / "models"))
    assert done.returncode == 1
    assert "error rows/1: no model.onnx, which the onnxruntime backend looks for" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("build", "nix.onnx", "--into", "m"), "nix.onnx: no such file"),
        (("build", "setup.cfg", "--into", "m"), "expected .onnx, .plan or .py"),
        (("build", "x.onnx", "--into", "m", "--size", "height"), "--size is 'height': expected a name and a number"),
        (("build", "x.py", "--into", "m", "--input", "x:FP99:1"), "'x:FP99:1' is no tensor"),
        (("check", "nix"), "nix: no such folder"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_1(tmp_path, arguments, sentence):
    done = kservekit("repository", *arguments, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert sentence in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "build rows.onnx --into rows.onnx",
            r"the model cannot be built: \[Errno 20\] Not a directory: 'rows.onnx/rows/1'",
        ),
        ("build rows.onnx --into /proc/models", r"the model cannot be built: \[Errno 2\] .*'/proc/models'"),
        ("build rows.onnx --into m --size n=²", "--size is 'n=²': expected a name and a number"),
        (f"build rows.onnx --into m --size n={10**20}", "--size is 'n=1000"),
        (f"build rows.onnx --into m --max-batch {10**20}", "--max-batch is 1000"),
    ],
)
def test_what_the_command_cannot_do_is_one_sentence(tmp_path, rows, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CannotStart, match=sentence):
        repository_command.run(words.split(), print)


@pytest.mark.parametrize(("number", "expected"), [("0", "a whole number above 0"), ("-1", "a whole number")])
def test_a_number_that_cannot_be_is_refused_with_what_is_expected(number, expected):
    done = kservekit("repository", "build", "m.onnx", "--into", "m", f"--instances={number}")
    assert done.returncode == 2
    assert done.stderr.endswith(f"argument --instances: '{number}': expected {expected}\n")


def test_a_file_that_is_no_model_is_said_to_be_none(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"\x08\xff not a model")
    with pytest.raises(CannotStart, match=r"bad\.onnx is no ONNX file"):
        read_onnx(tmp_path / "bad.onnx")


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


CORRUPT = {
    "half of a file": lambda folder: half(folder / "model.onnx"),
    "nothing in it": lambda folder: (folder / "model.onnx").write_bytes(b""),
    "no weights": lambda folder: (folder / "w.bin").unlink(),
    "half of its weights": lambda folder: half(folder / "w.bin"),
}


@pytest.mark.parametrize("corrupt", CORRUPT.values(), ids=CORRUPT)
def test_a_corrupt_file_is_not_built_and_found_and_refused_by_triton(local_triton, tmp_path, rows, corrupt):
    source = tmp_path / "model.onnx"
    onnx.save(onnx.load(rows), source, save_as_external_data=True, location="w.bin", size_threshold=0)
    built = build(Build(source, "m", target="local", warm_up=False), tmp_path / "models")
    corrupt(tmp_path)
    with pytest.raises(CannotStart, match=r"model\.onnx (is no ONNX file|has weights in 'w\.bin')") as refused:
        build(Build(source, "n"), tmp_path / "models")
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "models/n").exists()
    corrupt(built.folder / "1")
    (found,) = [finding for finding in check(tmp_path / "models") if finding.is_error]
    assert found.what.startswith("model.onnx ")
    with pytest.raises(CannotStart, match=r"the model m .*failed to load: "):
        local_triton(tmp_path / "models")


GOOD = """
backend: "onnxruntime"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 3 }
output { name: "y" data_type: TYPE_FP32 dims: 3 }
dynamic_batching { default_queue_policy { allow_timeout_override: true } }
"""

FAULTS = {
    "the batch in the dims": ("dims: 3 }\noutput", "dims: [-1, 3] }\noutput", "the batch is left out of them: [3]"),
    "other dims": ("dims: 3 }\noutput", "dims: 4 }\noutput", "input 'x' has dims [4], and in the file [3]"),
    "another datatype": ("TYPE_FP32 dims: 3 }\noutput", "TYPE_INT8 dims: 3 }\noutput", "is INT8, and in the file FP32"),
    "another name": ('"y"', '"z"', "output 'z' is not the file's: it has 'y'"),
    "a batch that is preferred and too large": (
        "dynamic_batching {",
        "dynamic_batching { preferred_batch_size: 16",
        "preferred_batch_size 16 is over max_batch_size 8",
    ),
    "text that is none": ("max_batch_size: 8", "max_batch_size = 8", "line 3:16"),
    "a field that there is not": ("max_batch_size", "maximum_batch_size", 'has no field named "maximum_batch_size"'),
    "another model's name": ("backend", 'name: "other" backend', "the name is 'other', and the folder's 'm'"),
    "no size": ("dims: 3 }\noutput", "dims: 0 }\noutput", "expected -1, or 1 and more"),
    "versions that there are not": (
        "max_batch_size",
        "version_policy { specific { versions: 7 } } max_batch_size",
        "version_policy asks for 7: there is 1",
    ),
    "no versions at all": (
        "max_batch_size",
        "version_policy { latest { } } max_batch_size",
        "version_policy has latest without num_versions, and serves nothing",
    ),
    "rows below zero": ("max_batch_size: 8", "max_batch_size: -1", "max_batch_size is -1: expected 0, or the rows"),
    "a platform of another backend": (
        "backend:",
        'platform: "tensorrt_plan" backend:',
        "platform is 'tensorrt_plan', and backend 'onnxruntime': leave platform out",
    ),
    "a platform that there is not": (
        'backend: "onnxruntime"',
        'platform: "nosuch"',
        "platform 'nosuch' is none of Triton's",
    ),
    "a reshape to more": (
        "dims: 3 }\noutput",
        "dims: 4 reshape { shape: 3 } }\noutput",
        "input 'x' has dims [4], and a reshape to [3]: not the same elements",
    ),
    "a tensor twice": (
        "dynamic_batching",
        'input { name: "x" data_type: TYPE_FP32 dims: 3 } dynamic_batching',
        "input 'x' is there twice",
    ),
    "a warm-up of another input": (
        "dynamic_batching",
        'model_warmup { name: "a" batch_size: 1 inputs { key: "z" value { } } } dynamic_batching',
        "model_warmup 'a' has no input 'x': it has 'z'",
    ),
    "a warm-up of too many rows": (
        "dynamic_batching",
        'model_warmup { name: "a" batch_size: 9 inputs { key: "x" value { } } } dynamic_batching',
        "model_warmup 'a' has batch_size 9, and max_batch_size is 8",
    ),
}


@pytest.fixture
def repository(tmp_path, rows):
    (tmp_path / "models/m/1").mkdir(parents=True)
    (tmp_path / "models/m/1/model.onnx").write_bytes(rows.read_bytes())
    (tmp_path / "models/m/config.pbtxt").write_text(GOOD)
    return tmp_path / "models"


def test_a_repository_without_faults_has_no_findings(repository):
    assert check(repository) == []


@pytest.mark.parametrize(("old", "new", "sentence"), FAULTS.values(), ids=FAULTS)
def test_a_fault_in_a_config_is_found(repository, old, new, sentence):
    assert old in GOOD
    (repository / "m/config.pbtxt").write_text(GOOD.replace(old, new, 1))
    found = [finding.what for finding in check(repository) if finding.is_error]
    assert len(found) == 1
    assert sentence in found[0]


def test_faults_of_the_folders_are_found(repository):
    assert "this is a model's own folder" in check(repository / "m")[0].what
    (repository / "m/1").rename(repository / "m/one")
    assert check(repository)[0].what.startswith("no version")
    (repository / "m/one").rename(repository / "m/01")
    assert any("versions begin with 1 to 9" in finding.what for finding in check(repository))


def errors(repository):
    return [(finding.where, finding.what) for finding in check(repository) if finding.is_error]


def test_a_version_that_no_number_holds_is_found_and_a_folder_that_is_none_is_left_out(repository):
    (repository / "m/²").mkdir()
    assert errors(repository) == []
    (repository / f"m/{2**63}").mkdir()
    assert errors(repository) == [("m", f"Triton ends over the folder '{2**63}': versions go up to {2**63 - 1}")]


def test_a_config_that_is_no_text_is_said_to_be_none(repository):
    (repository / "m/config.pbtxt").write_bytes(b"\xff\xfe")
    ((where, what),) = errors(repository)
    assert (where, what.startswith("this is no text: 'utf-8' codec can't decode")) == ("m/config.pbtxt", True)


def test_a_version_that_is_not_served_may_lack_its_file(repository):
    (repository / "m/1").rename(repository / "m/2")
    (repository / "m/1").mkdir()
    assert errors(repository) == []
    (repository / "m/config.pbtxt").write_text(GOOD + "version_policy { specific { versions: [2, 3] } }")
    (found,) = check(repository)
    assert (found.what, found.is_error) == ("version_policy asks for 3: there is 1, 2", False)
    (repository / "m/config.pbtxt").write_text(GOOD + "version_policy { all { } }")
    assert errors(repository) == [("m/1", "no model.onnx, which the onnxruntime backend looks for")]


def test_a_backend_that_is_not_tritons_own_is_worth_a_look(repository):
    (repository / "m/config.pbtxt").write_text(GOOD.replace("onnxruntime", "onnxrutnime"))
    notes = [finding.what for finding in check(repository) if not finding.is_error]
    assert len(notes) == 1
    assert notes[0].startswith("backend 'onnxrutnime' is none of Triton's own: it has 'dali'")


def test_a_model_py_of_ones_own_may_take_something_else_than_the_onnx_file_beside_it(repository):
    (repository / "m/1/model.py").write_text(DOUBLES)
    other = GOOD.replace("onnxruntime", "python").replace('"x"', '"image"').replace("FP32", "STRING")
    (repository / "m/config.pbtxt").write_text(other)
    assert check(repository) == []
    (repository / "m/1/model.py").write_text("def broken(:")
    assert errors(repository) == [("m/1", "model.py is no Python: invalid syntax (model.py, line 1)")]


def test_our_own_model_py_needs_the_onnx_file_that_it_runs(tmp_path, rows):
    built = build(Build(rows, "m", target="local"), tmp_path / "models")
    assert check(tmp_path / "models") == []
    write_doubles(built.folder / "1/model.onnx", TensorProto.BFLOAT16, ("n", 3))
    assert ("m/config.pbtxt", "input 'x' is BF16, which ONNX Runtime does not give as an array") in errors(
        tmp_path / "models"
    )
    (built.folder / "1/model.onnx").unlink()
    (built.folder / "1/model.onnx").symlink_to("nowhere")
    assert errors(tmp_path / "models") == [("m/1", "no model.onnx, which model.py looks for")]
