"""`kservekit repository build --normalize`: UINT8 travels, and the real Triton normalizes as NumPy does."""

import asyncio
import io

import numpy as np
import onnxruntime
import pytest
from calls import WIRES, ask, kservekit
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from onnx_files import write_onnx
from PIL import Image

from kservekit.codec.message import Request
from kservekit.config import ImageSettings
from kservekit.errors import CannotStart, InvalidInput, ModelError
from kservekit.local.server import LocalServer
from kservekit.oip import Backend
from kservekit.oip.grpc import GrpcBackend
from kservekit.oip.triton_messages import model_config
from kservekit.predictors.onnx_normalize import Normalization
from kservekit.predictors.repository_build import Build, build
from kservekit.predictors.repository_check import check
from kservekit.predictors.repository_ensemble import build_normalizing
from kservekit.tensors import TensorSpec
from kservekit.transformers.image import ImageTransformer

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def model(path, shape, datatype=TensorProto.FLOAT):
    """Gives the picture that it was given, and a score for each of 8 classes, by its channels."""
    channels = 1 if shape[1] in (1, 3) else 3
    weights = np.random.default_rng(1).normal(size=(shape[channels], 8)).astype(np.float32)
    if datatype == TensorProto.FLOAT16:
        weights = weights.astype(np.float16)
    nodes = [
        helper.make_node("Identity", ["image"], ["same"]),
        helper.make_node("ReduceMean", ["image"], ["means"], axes=[1, 2] if channels == 3 else [2, 3], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], ["scores"]),
    ]
    inputs, outputs = [("image", datatype, shape)], [("same", datatype, shape), ("scores", datatype, [shape[0], 8])]
    return write_onnx(path, nodes, inputs, outputs, [numpy_helper.from_array(weights, "weights")], opset=13)


MODELS = {
    "as-it-is": (["n", 3, 5, 4], TensorProto.FLOAT, None),
    "turned": (["n", 3, "h", "w"], TensorProto.FLOAT, "NHWC"),
    "turned-back": (["n", 5, 4, 3], TensorProto.FLOAT, "NCHW"),
    "half": (["n", "h", "w", 3], TensorProto.FLOAT16, None),
    "grey": ([2, 1, 5, 4], TensorProto.FLOAT, "NHWC"),
}
"""The model's shape, its datatype, and how the pixels lie."""

SIZES = {"h": 5, "w": 4}


def normalization(shape, layout):
    grey = 1 in shape[1:]
    return Normalization(MEAN[:1] if grey else MEAN, STD[:1] if grey else STD, layout)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return {name: model(folder / f"{name}.onnx", *given[:2]) for name, given in MODELS.items()}


def built(files, repository, target):
    """All of MODELS in one repository; by name, what was built."""
    return {
        name: build_normalizing(
            Build(files[name], name, target=target, sizes={size: at for size, at in SIZES.items() if size in shape}),
            normalization(shape, layout),
            repository,
        )
        for name, (shape, _, layout) in MODELS.items()
    }


def pixels_and_picture(name):
    """What is sent to a model of MODELS, and what NumPy makes of it for the model."""
    shape, datatype, layout = MODELS[name]
    channels = 1 if shape[1] in (1, 3) else 3
    count = shape[channels]
    of_model = "NCHW" if channels == 1 else "NHWC"
    rows = shape[0] if isinstance(shape[0], int) else 3
    nhwc = np.random.default_rng(2).integers(0, 256, (rows, 5, 4, count)).astype(np.uint8)
    nhwc[0, 0, 0], nhwc[0, 0, 1] = 0, 255
    picture = (nhwc.astype(np.float64) - MEAN[:count]) / STD[:count]
    turned = {"NHWC": (0, 1, 2, 3), "NCHW": (0, 3, 1, 2)}
    wanted = picture.transpose(turned[of_model]).astype(np.float16 if datatype == TensorProto.FLOAT16 else np.float32)
    return np.ascontiguousarray(nhwc.transpose(turned[layout or of_model])), wanted


@pytest.fixture(scope="module")
def served(local_triton, files, tmp_path_factory):
    repository = tmp_path_factory.mktemp("local") / "models"
    built(files, repository, "local")
    assert check(repository) == []
    return local_triton(repository)


def answer(server, name, tensors):
    async def once():
        backend = GrpcBackend(server.grpc_url)
        try:
            return (await backend.infer(Request(tensors, model=name))).tensors
        finally:
            await backend.close()

    return asyncio.run(once())


@pytest.mark.parametrize("name", MODELS)
def test_the_real_triton_gives_the_model_what_numpy_would(served, name):
    pixels, picture = pixels_and_picture(name)
    found = answer(served, name, {"image": pixels})
    assert found["same"].dtype == picture.dtype
    assert np.allclose(found["same"], picture, rtol=1e-3 if picture.dtype == np.float16 else 1e-6, atol=1e-6)
    direct = answer(served, f"{name}-model", {"image": picture})
    assert np.allclose(found["scores"], direct["scores"], rtol=1e-2 if picture.dtype == np.float16 else 1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_for_a_gpu_the_same_values_come_from_onnx_runtime_by_itself(files, tmp_path, name):
    built(files, tmp_path, "gpu")
    assert check(tmp_path) == []
    pixels, picture = pixels_and_picture(name)
    path = tmp_path / f"{name}-normalize/1/model.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(["picture"], {"pixels": pixels})
    assert found.dtype == picture.dtype
    assert np.allclose(found, picture, rtol=1e-3 if picture.dtype == np.float16 else 1e-6, atol=1e-6)


def test_for_a_gpu_each_of_the_three_is_what_tritons_own_protobuf_reads(files, tmp_path):
    made = built(files, tmp_path, "gpu")["turned"]
    config, normalize, last = (
        text_format.Parse((tmp_path / name / "config.pbtxt").read_text(), model_config.ModelConfig())
        for name in ("turned", "turned-normalize", "turned-model")
    )
    assert (config, made.folder) == (made.config, tmp_path / "turned")
    assert (config.platform, normalize.backend, last.backend) == ("ensemble", "onnxruntime", "onnxruntime")
    assert [(item.data_type, list(item.dims)) for item in config.input] == [(model_config.TYPE_UINT8, [-1, -1, 3])]
    assert [(item.name, list(item.dims)) for item in config.output] == [("same", [3, -1, -1]), ("scores", [8])]
    assert {part.max_batch_size for part in (config, normalize, last)} == {8}
    assert [group.kind for group in normalize.instance_group] == [model_config.ModelInstanceGroup.KIND_GPU]
    assert [list(sample.inputs["pixels"].dims) for sample in normalize.model_warmup] == [[5, 4, 3]] * 2
    assert list((tmp_path / "turned/1").iterdir())  # an object store would lose an empty folder


def picture_file(seed, size=(30, 20)):
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_an_image_transformer_that_sends_uint8_gets_the_scores_of_the_one_that_normalizes(
    local_triton, tmp_path, layout
):
    file = model(tmp_path / "m.onnx", ["n", 3, 16, 16])
    build_normalizing(
        Build(file, "m", target="local", warm_up=False), Normalization(MEAN, STD, layout), tmp_path / "models"
    )
    triton = local_triton(tmp_path / "models")
    request = Request({"image": np.array([picture_file(1), picture_file(2)], object)}, model="m")

    async def scores(predictor_model, **given):
        settings = ImageSettings(size=16, resize=18, top=8, softmax=False, **given)
        backend = Only("scores", GrpcBackend(triton.grpc_url))
        transformer = ImageTransformer("m", settings=settings, backend=backend)
        transformer.predictor_model = predictor_model
        try:
            return (await transformer.answer(request)).tensors, backend.sent
        finally:
            await transformer.close()

    uint8, small = asyncio.run(scores("m", datatype="UINT8", layout=layout))
    fp32, large = asyncio.run(scores("m-model", layout="NCHW"))
    assert large.nbytes == 4 * small.nbytes
    assert (small.dtype, large.dtype) == (np.uint8, np.float32)
    assert np.array_equal(uint8["classes"], fp32["classes"])
    assert np.allclose(uint8["scores"], fp32["scores"], rtol=1e-4, atol=1e-5)


def test_it_is_served_to_callers_with_pictures_through_a_predictor_and_a_transformer(local_triton, tmp_path):
    nodes = [helper.make_node("GlobalAveragePool", ["image"], ["means"]), helper.make_node("Flatten", ["means"], ["y"])]
    image, y = ("image", TensorProto.FLOAT, ["n", 3, 16, 16]), ("y", TensorProto.FLOAT, ["n", 3])
    write_onnx(tmp_path / "m.onnx", nodes, [image], [y])
    build_normalizing(Build(tmp_path / "m.onnx", "m", target="local"), Normalization(MEAN, STD), tmp_path / "models")
    triton = local_triton(tmp_path / "models")
    target = "kservekit.predictors.triton:TritonPredictor"
    settings = {"DATATYPE": "UINT8", "SIZE": "16", "RESIZE": "16", "TOP": "3", "SOFTMAX": "false", "MAX_IMAGES": "9"}
    with (
        LocalServer(target, model_name="m", settings={"KSERVEKIT_TRITON_URL": triton.grpc_url}) as predictor,
        LocalServer(
            "kservekit.transformers.image:ImageTransformer",
            f"--predictor_host={predictor.grpc_url}",
            "--predictor_protocol=grpc-v2",
            model_name="m",
            settings={f"KSERVEKIT_IMAGE_{key}": value for key, value in settings.items()},
        ) as transformer,
    ):
        pictures = np.array([picture_file(1, (16, 16))] * 9, object)
        answer = ask(transformer, "v2 binary", {"image": pictures[:2]}).tensors
        pixels = np.asarray(Image.open(io.BytesIO(pictures[0])))
        wanted = (pixels.reshape(-1, 3).mean(axis=0) - MEAN) / STD
        assert answer["classes"].tolist() == [np.argsort(-wanted).tolist()] * 2
        assert np.allclose(answer["scores"], np.sort(wanted)[::-1], rtol=1e-4, atol=1e-5)
        for wire in WIRES:
            with pytest.raises(InvalidInput, match="a batch of 9 rows: model 'm' takes at most 8"):
                ask(transformer, wire, {"image": pictures})
        assert ask(transformer, "v2 gRPC", {"image": pictures[:8]}).tensors["scores"].shape == (8, 3)


class Only(Backend):
    """A backend that asks for one output, as a transformer for pictures wants it, and keeps what was sent."""

    def __init__(self, output, backend):
        self.output, self.backend, self.close, self.spec = output, backend, backend.close, backend.spec

    async def infer(self, request):
        (self.sent,) = request.tensors.values()
        request.outputs = {self.output: {}}
        return await self.backend.infer(request)


def test_a_transformer_whose_datatype_is_not_the_predictors_says_so(served):
    async def once(**given):
        transformer = ImageTransformer("m", settings=ImageSettings(**given), backend=GrpcBackend(served.grpc_url))
        transformer.predictor_model = "as-it-is"
        try:
            await transformer.answer(Request({"image": np.array([picture_file(1)], object)}, model="m"))
        finally:
            await transformer.close()

    with pytest.raises(ModelError, match="the predictor takes UINT8, and KSERVEKIT_IMAGE_DATATYPE is FP32"):
        asyncio.run(once())
    with pytest.raises(CannotStart, match="KSERVEKIT_IMAGE_DATATYPE is 'INT8': expected FP32 or UINT8"):
        asyncio.run(once(datatype="INT8"))


def test_what_the_ensemble_does_not_take_is_the_callers_fault_and_the_next_is_served(served):
    pixels, picture = pixels_and_picture("as-it-is")
    with pytest.raises(InvalidInput, match="FP32"):
        answer(served, "as-it-is", {"image": picture})
    with pytest.raises(InvalidInput, match="batch-size must be <= 8"):
        answer(served, "as-it-is", {"image": np.repeat(pixels, 3, axis=0)})
    with pytest.raises(InvalidInput, match="shape"):
        answer(served, "as-it-is", {"image": pixels[:, :, :4]})
    assert answer(served, "as-it-is", {"image": pixels})["scores"].shape == (3, 8)


@pytest.mark.parametrize(
    ("shape", "datatype", "how", "given", "sentence"),
    [
        (["n", 5], TensorProto.FLOAT, {}, {}, r"takes 'image' FP32 \[-1, 5\]: expected one input, FP32 or FP16, of 4"),
        (["n", 3, 4, 4], TensorProto.DOUBLE, {}, {}, r"takes 'image' FP64 \[-1, 3, 4, 4\]: expected"),
        (["n", 4, 5, 5], TensorProto.FLOAT, {}, {}, "3 or 1 channels"),
        (["n", 3, 5, 3], TensorProto.FLOAT, {}, {}, "3 or 1 channels"),
        (["n", "c", "h", "w"], TensorProto.FLOAT, {}, {}, "3 or 1 channels"),
        (
            ["n", 1, 4, 4],
            TensorProto.FLOAT,
            {},
            {},
            r"has mean 123\.675,116\.28,103\.53: expected 1 number, for the one",
        ),
        (
            ["n", 3, 4, 4],
            TensorProto.FLOAT,
            {"std": (1, 0, 1)},
            {},
            "has std 1,0,1: expected 3 numbers.*none of them 0",
        ),
        (["n", 3, 4, 4], TensorProto.FLOAT, {"mean": (1, float("nan"), 1)}, {}, "has mean 1,nan,1: expected 3 numbers"),
        (
            ["n", 3, 4, 4],
            TensorProto.FLOAT,
            {},
            {"keep": "all"},
            "--keep is 'all', and a model with --normalize has one",
        ),
        (["n", 3, 4, 4], TensorProto.FLOAT, {}, {"name": ".."}, r"--name is '\.\.': expected a folder's name"),
    ],
)
def test_what_cannot_be_normalized_is_refused_before_anything_is_written(
    tmp_path, shape, datatype, how, given, sentence
):
    node = helper.make_node("Identity", ["image"], ["same"])
    write_onnx(tmp_path / "m.onnx", [node], [("image", datatype, shape)], [("same", datatype, shape)])
    with pytest.raises(CannotStart, match=sentence):
        build_normalizing(
            Build(tmp_path / "m.onnx", **{"name": "m"} | given),
            Normalization(**{"mean": MEAN, "std": STD} | how),
            tmp_path / "models",
        )
    assert not (tmp_path / "models").exists()


def test_a_plan_is_normalized_by_what_is_said_of_it(tmp_path):
    (tmp_path / "m.plan").write_bytes(b"an engine")
    said = {"inputs": [TensorSpec("x", "FP16", (-1, 3, 8, 8))], "outputs": [TensorSpec("y", "FP32", (-1, 2))]}
    build_normalizing(Build(tmp_path / "m.plan", "m", **said), Normalization(MEAN, STD, "NHWC"), tmp_path / "models")
    assert check(tmp_path / "models") == []
    with pytest.raises(CannotStart, match="takes what is not declared"):
        build_normalizing(Build(tmp_path / "m.plan", "n"), Normalization(MEAN, STD), tmp_path / "models")


def test_the_command_says_which_models_it_made(files, tmp_path):
    given = ("repository", "build", str(files["turned"]), "--into", str(tmp_path / "models"))
    numbers = [",".join(map(str, values)) for values in (MEAN, STD)]
    done = kservekit(*given, "--normalize", *numbers, "--pixels", "NHWC")
    assert (done.returncode, done.stderr) == (0, "")
    assert "version 1 of 'turned', an ensemble of 'turned-normalize' and 'turned-model'" in done.stdout
    assert "input  image UINT8 [batch, any, any, 3]" in done.stdout
    assert "no warm-up: size 'h' of input 'image' is open" in done.stdout
    assert kservekit("repository", "check", str(tmp_path / "models")).returncode == 0
    for wrong, sentence in (
        (("--pixels", "NHWC"), "--pixels says how the pixels lie that --normalize takes"),
        (("--normalize", "1,x,2", "1,1,1"), "--normalize has '1,x,2': expected the mean, then the deviation"),
    ):
        done = kservekit(*given, *wrong)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert sentence in done.stderr


def test_a_model_may_become_one_that_normalizes_and_back(files, tmp_path):
    build(Build(files["as-it-is"], "m", warm_up=False), tmp_path)
    build_normalizing(Build(files["as-it-is"], "m", warm_up=False), Normalization(MEAN, STD), tmp_path)
    assert check(tmp_path) == []
    build(Build(files["as-it-is"], "m", warm_up=False), tmp_path)
    assert check(tmp_path) == []
