"""Engines built by the real TensorRT for RTX, which needs no GPU for it, and kept on disk."""

import dataclasses
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from calls import kservekit
from onnx import TensorProto, helper, numpy_helper
from onnx_files import write_doubles, write_onnx

from kservekit import cuda
from kservekit.errors import CannotStart
from kservekit.predictors import tensorrt_cache, tensorrt_runtime
from kservekit.predictors.tensorrt_build import Options, build
from kservekit.predictors.tensorrt_profiles import sizes
from kservekit.predictors.tensorrt_runtime import Gpu, Library

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is for Linux on x86_64")

OPTIONS = Options(sizes("", (1, 4, 8)))
HERE = Gpu("Here", "8.9")


@pytest.fixture(scope="module")
def library():
    return tensorrt_runtime.tensorrt()


def is_whole(library, engine):
    """The runtime gets as far as to miss the driver; it refuses what is no engine, or a part of one, before that."""
    notes = tensorrt_runtime.recorder(library.api)
    notes.errors.clear()
    library.api.Runtime(notes).deserialize_cuda_engine(engine)
    return "Cuda Runtime" in notes.reason()


@pytest.mark.parametrize("datatype", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize("shape", [("n", 2), (3, 2)])
def test_an_engine_is_built_from_an_onnx_file(library, tmp_path, datatype, shape):
    path = write_doubles(tmp_path / "m.onnx", datatype, shape)
    engine = build(library, path, OPTIONS)
    assert is_whole(library, engine)
    assert not is_whole(library, engine[:-1])


def test_other_open_sizes_are_those_that_were_set(library, tmp_path):
    path = write_doubles(tmp_path / "m.onnx", shape=("n", "tokens"))
    assert build(library, path, Options(sizes("tokens=1:16:32", (1, 4, 8))))
    with pytest.raises(CannotStart, match=r"'x' .* dimension 1 open: set .* such as tokens=1:128:512"):
        build(library, path, OPTIONS)


@pytest.mark.parametrize(
    ("content", "reason"), [(b"not a model", "Failed to parse the ONNX model"), (b"", "it has no outputs")]
)
def test_a_file_that_is_no_model_is_refused_with_the_parsers_reason(library, tmp_path, content, reason):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(CannotStart, match=rf"m\.onnx is not a model that TensorRT for RTX [\d.]+ takes: .*{reason}"):
        build(library, tmp_path / "m.onnx", OPTIONS)


def test_an_operator_that_there_is_not_is_named(library, tmp_path):
    node = helper.make_node("Nonsense", ["x"], ["y"], name="odd")
    path = write_onnx(tmp_path / "m.onnx", [node], [("x", TensorProto.FLOAT, [1])], [("y", TensorProto.FLOAT, [1])])
    with pytest.raises(CannotStart, match="takes: Nonsense 'odd': "):
        build(library, path, OPTIONS)


def test_an_input_whose_values_are_sizes_is_refused(library, tmp_path):
    inputs = [("x", TensorProto.FLOAT, ["n", 4]), ("shape", TensorProto.INT64, [2])]
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    path = write_onnx(tmp_path / "m.onnx", nodes, inputs, [("y", TensorProto.FLOAT, ["a", "b"])])
    with pytest.raises(CannotStart, match="the values of input 'shape' are the sizes of another tensor"):
        build(library, path, OPTIONS)


def test_an_input_without_a_shape_is_refused_and_a_scalar_is_not(library, tmp_path):
    path = write_doubles(tmp_path / "m.onnx", shape=())
    assert build(library, path, OPTIONS)
    with pytest.raises(CannotStart, match=r"m\.onnx: 'x' has no shape; export the model with the shapes of its inputs"):
        build(library, write_doubles(path, shape=None), OPTIONS)


def test_a_model_that_the_builder_refuses_is_refused_with_its_reason(library, tmp_path):
    weights = numpy_helper.from_array(np.zeros((3, 5), np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    inputs, outputs = [("x", TensorProto.FLOAT, ["n", "k"])], [("y", TensorProto.FLOAT, ["n", 5])]
    path = write_onnx(tmp_path / "m.onnx", nodes, inputs, outputs, [weights])
    with pytest.raises(CannotStart, match=r"TensorRT for RTX [\d.]+ builds no engine from .*m\.onnx: \S+"):
        build(library, path, Options(sizes("k=7", (1, 4, 8))))


def test_a_precision_that_the_library_has_no_flag_for_is_refused(library, tmp_path):
    path = write_doubles(tmp_path / "m.onnx")
    with pytest.raises(CannotStart, match=r"PRECISION has 'fp16': .* takes a model's own datatypes alone"):
        build(library, path, dataclasses.replace(OPTIONS, precision=("fp16",)))


class WithFlags:
    """TensorRT 10 has flags that later ones do not; the rest of it builds as this one does."""

    def __init__(self, api):
        self.api = api
        self.BuilderFlag = SimpleNamespace(__members__={"FP16": api.BuilderFlag.TF32, "INT8": api.BuilderFlag.DEBUG})
        self.networks = []

    def Builder(self, notes):
        networks = self.networks

        class Noted(self.api.Builder):
            def create_network(self, flags=0):
                networks.append(flags)
                return super().create_network(flags)

        return Noted(notes)

    def __getattr__(self, name):
        return getattr(self.api, name)


def test_the_files_own_datatypes_hold_where_no_precision_is_asked_for(library, tmp_path):
    ten, path = Library(WithFlags(library.api), "TensorRT"), write_doubles(tmp_path / "m.onnx")
    build(ten, path, OPTIONS)
    build(ten, path, dataclasses.replace(OPTIONS, precision=("fp16",)))
    assert ten.api.networks == [1 << int(library.api.NetworkDefinitionCreationFlag.STRONGLY_TYPED), 0]


def test_int8_asks_for_a_model_that_is_quantized(library, tmp_path):
    ten = Library(WithFlags(library.api), "TensorRT")
    path, options = write_doubles(tmp_path / "m.onnx"), dataclasses.replace(OPTIONS, precision=("fp16", "int8"))
    with pytest.raises(CannotStart, match="'int8', and the model is not quantized"):
        build(ten, path, options)
    with pytest.raises(CannotStart, match=r"PRECISION has 'fp8': TensorRT [\d.]+ takes fp16, int8"):
        build(ten, path, dataclasses.replace(OPTIONS, precision=("fp8",)))
    assert build(ten, write_quantized(tmp_path / "q.onnx", TensorProto.INT8), options)


@pytest.mark.parametrize("datatype", [TensorProto.INT8, TensorProto.FLOAT8E4M3FN])
def test_a_quantized_model_is_built_as_it_is(library, tmp_path, datatype):
    assert is_whole(library, build(library, write_quantized(tmp_path / "q.onnx", datatype), OPTIONS))


def write_quantized(path, datatype):
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1])
    zero = helper.make_tensor("zero", datatype, [], [0])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    inputs, outputs = [("x", TensorProto.FLOAT, ["n", 2])], [("y", TensorProto.FLOAT, ["n", 2])]
    return write_onnx(path, nodes, inputs, outputs, [scale, zero])


def test_an_engines_name_differs_where_anything_does_that_it_depends_on(library, tmp_path):
    path = write_doubles(tmp_path / "m.onnx")

    def name(library=library, gpu=HERE, path=path, options=OPTIONS):
        return tensorrt_cache.engine_name(library, gpu, path, options)

    other = Library(SimpleNamespace(__version__="11.4.0.106"), library.name)
    names = [
        name(),
        name(library=other),
        name(library=dataclasses.replace(library, name="TensorRT")),
        name(gpu=dataclasses.replace(HERE, compute_capability="9.0")),
        name(gpu=dataclasses.replace(HERE, name="There")),
        name(options=Options(sizes("", (1, 4, 16)))),
        name(options=dataclasses.replace(OPTIONS, precision=("fp16",))),
        name(path=write_doubles(tmp_path / "n.onnx", shape=("n", 3))),
    ]
    assert len(set(names)) == len(names)
    (tmp_path / "elsewhere").mkdir()
    assert name(path=path.rename(tmp_path / "elsewhere" / "m.onnx")) == names[0]


@pytest.mark.parametrize("name", ["w", "weights/" + "long" * 40])
def test_weights_in_a_file_beside_the_model_are_part_of_it(library, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    nodes, one = [helper.make_node("Mul", ["x", "w"], ["y"])], [("x", TensorProto.FLOAT, ["n", 2])]
    weights = numpy_helper.from_array(np.array([1, 2], np.float32), "w")
    outputs = [("y", TensorProto.FLOAT, ["n", 2])]
    stored = {"save_as_external_data": True, "location": name, "size_threshold": 0}
    path = write_onnx(tmp_path / "m.onnx", nodes, one, outputs, [weights], **stored)
    before = tensorrt_cache.engine_name(library, HERE, path, OPTIONS)
    assert is_whole(library, build(library, path, OPTIONS))
    (tmp_path / name).write_bytes(np.array([1, 3], np.float32).tobytes())
    assert tensorrt_cache.engine_name(library, HERE, path, OPTIONS) != before


def test_an_engine_is_kept_whole_or_not_at_all(tmp_path, monkeypatch, caplog):
    folder = tmp_path / "new" / "engines"
    tensorrt_cache.keep(folder, "a.engine", b"first")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    tensorrt_cache.keep(folder, "a.engine", b"second")
    assert "No space left on device; set KSERVEKIT_TENSORRT_ENGINE_CACHE" in caplog.text
    assert tensorrt_cache.read(folder, "a.engine") == b"first"
    assert [file.name for file in folder.iterdir()] == ["a.engine"]


def test_a_folder_that_cannot_be_made_costs_a_warning_and_no_more(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    tensorrt_cache.keep(tmp_path / "file" / "engines", "a.engine", b"engine")
    assert "built again at the next start" in caplog.text
    assert tensorrt_cache.read(tmp_path / "file" / "engines", "a.engine") is None


def test_engines_are_in_the_cache_folder_unless_it_is_said_where(monkeypatch, tmp_path):
    monkeypatch.setenv("KSERVEKIT_CACHE_DIR", str(tmp_path))
    assert tensorrt_cache.folder("auto") == tmp_path / "engines"
    assert tensorrt_cache.folder("/here") == Path("/here")
    assert tensorrt_cache.folder("") is None


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch, caplog):
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert tensorrt_cache.folder("~/.cache/kservekit/engines") is None
    assert "no home folder, so no engine is kept; set KSERVEKIT_TENSORRT_ENGINE_CACHE" in caplog.text


def test_an_engine_can_be_built_ahead_of_time(library, tmp_path):
    path = write_doubles(tmp_path / "m.onnx", shape=("n", "tokens"))
    refused = kservekit("engine", str(path))
    assert refused.returncode == 1
    assert "kservekit engine: 'x' of the model leaves its size at dimension 1 open" in refused.stderr
    environment = {**os.environ, "KSERVEKIT_TENSORRT_SIZES": "tokens=1:16:32"}
    built = kservekit("engine", str(path), env=environment, umask=0o022)
    assert built.returncode == 0, built.stderr
    engine = (tmp_path / "m.engine").read_bytes()
    assert built.stdout == f"{tmp_path / 'm.engine'}: {len(engine)} bytes, by {library}\n"
    assert (tmp_path / "m.engine").stat().st_mode & 0o777 == 0o644  # the server is another user
    assert is_whole(library, engine)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["gone.onnx"], "gone.onnx: no such file"),
        (["m.onnx", "--into", "no/m.plan"], "there is no folder 'no'"),
        (["m.onnx", "--into", "."], "--into is '.', which is a folder: expected a file, such as model.engine"),
        (
            ["m.onnx", "--into", "/proc/m.engine"],
            "the engine cannot be built: [Errno 2] No such file or directory: '/proc",
        ),
        (["junk.onnx"], "Failed to parse the ONNX model"),
    ],
)
def test_what_cannot_be_built_ahead_of_time_is_one_sentence(tmp_path, arguments, complaint):
    write_doubles(tmp_path / "m.onnx")
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    refused = kservekit("engine", *arguments, cwd=tmp_path)
    assert refused.returncode == 1
    assert complaint in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_without_tensorrt_the_way_out_is_said(monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(CannotStart, match=r"pip install 'kservekit\[tensorrt\]'"):
        tensorrt_runtime.tensorrt()
    with pytest.raises(CannotStart, match=r"pip install 'kservekit\[tensorrt\]'"):
        cuda.load("tensorrt")
