import asyncio
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from kservekit.codec.message import Answer, Request
from kservekit.config import ImageSettings
from kservekit.errors import CannotStart, InvalidInput, ModelError, PayloadTooLarge, UnsupportedMedia
from kservekit.tensors import ModelSpec, TensorSpec
from kservekit.transformers.image import ImageTransformer


class Echo:
    """A backend of a few lines: it keeps what it was sent and gives the scores that it was made with."""

    def __init__(self, scores=None, name="pixels"):
        self.scores = np.array([[0.0, 2.0, 1.0]], np.float32) if scores is None else scores
        self.inputs = (TensorSpec(name, "FP32", (-1, 3, -1, -1)),)

    async def infer(self, request):
        self.sent = request
        return Answer({"logits": self.scores})

    async def spec(self, model, version=""):
        return ModelSpec(self.inputs)


def file(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def transformed(*files, backend=None, **settings):
    backend = backend or Echo()
    transformer = ImageTransformer("m", settings=ImageSettings(**settings), backend=backend)
    request = Request({"image": np.array(files, dtype=np.object_)}, model="m")
    answer = asyncio.run(transformer.answer(request))
    return backend.sent.tensors if hasattr(backend, "sent") else None, answer.tensors


def solid(colour, size=(300, 300), mode="RGB"):
    return Image.new(mode, size, colour)


PLAIN = {"size": 4, "resize": 4, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def test_a_picture_becomes_a_normalized_tensor_under_the_name_of_the_predictors_input():
    sent, _ = transformed(file(solid((10, 20, 30))), size=8, resize=8, mean=(10, 10, 10), std=(2, 5, 10))
    assert sent.keys() == {"pixels"}
    assert sent["pixels"].dtype == np.float32
    assert sent["pixels"].shape == (1, 3, 8, 8)
    assert np.allclose(sent["pixels"][0, :, 3, 3], [0, 2, 2])


def test_layout_nhwc_puts_channels_last():
    sent, _ = transformed(file(solid((10, 20, 30))), **PLAIN, layout="NHWC")
    assert np.allclose(sent["pixels"], np.broadcast_to([10, 20, 30], (1, 4, 4, 3)))


def test_the_centre_is_kept_and_the_sides_are_cropped():
    picture = Image.new("RGB", (300, 100), "red")
    picture.paste((0, 255, 0), (100, 0, 200, 100))
    sent, _ = transformed(file(picture), **PLAIN)
    assert sent["pixels"][0, 1].min() > 200  # bicubic looks a little beyond the edge


def test_resize_leaves_a_margin_around_the_crop():
    picture = Image.new("RGB", (80, 80), "red")
    picture.paste((0, 255, 0), (20, 20, 60, 60))
    sent, _ = transformed(file(picture), **(PLAIN | {"resize": 8}))
    assert sent["pixels"][0, 1].min() > 200  # bicubic looks a little beyond the edge
    sent, _ = transformed(file(picture), **PLAIN)
    assert sent["pixels"][0, 1, 0, 0] < 50


def test_a_camera_held_upright_is_turned_by_its_exif_orientation():
    picture = Image.new("RGB", (100, 100), "black")
    picture.paste((255, 255, 255), (0, 0, 100, 50))  # white above, as the sensor saw it
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise: white at the right
    sent, _ = transformed(file(picture, "JPEG", exif=exif, quality=95), **PLAIN)
    assert sent["pixels"][0, 0, 2, 3] > 200
    assert sent["pixels"][0, 0, 2, 0] < 50


@pytest.mark.parametrize(
    ("picture", "kind", "expected"),
    [
        (solid(100, mode="L"), "PNG", [100, 100, 100]),
        (solid((10, 20, 30, 0), mode="RGBA"), "PNG", [10, 20, 30]),
        (solid((100, 50), mode="LA"), "PNG", [100, 100, 100]),
        (solid((200, 100, 50)).quantize(4), "PNG", [200, 100, 50]),
        (Image.fromarray(np.full((50, 50), 100 * 256, np.uint16)), "PNG", [100, 100, 100]),
        (solid((0, 0, 0, 0), mode="CMYK"), "JPEG", [255, 255, 255]),
        (solid(1, mode="1"), "PNG", [255, 255, 255]),
    ],
    ids=["greyscale", "alpha", "greyscale alpha", "palette", "16 bit", "CMYK", "bilevel"],
)
def test_every_kind_of_pixel_becomes_rgb(picture, kind, expected):
    sent, _ = transformed(file(picture, kind), **PLAIN)
    assert np.allclose(sent["pixels"][0, :, 1, 1], expected, atol=2)


def test_pictures_of_different_sizes_share_a_batch():
    sent, _ = transformed(
        file(solid((9, 9, 9), (30, 50))),
        file(solid((7, 7, 7), (500, 20)), "JPEG"),
        backend=Echo(np.zeros((2, 3), np.float32)),
        **PLAIN,
    )
    assert sent["pixels"].shape == (2, 3, 4, 4)
    assert np.allclose(sent["pixels"][:, 0, 2, 2], [9, 7], atol=1)


def bomb(width, height):
    """A valid PNG of one colour: 60,000 x 60,000 pixels are some 100 kB here."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + width // 8)
    packed = b"".join(packer.compress(row * 1000) for _ in range(height // 1000)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (8_000, 8_000)])
def test_a_huge_picture_in_a_small_file_is_refused_before_it_is_decoded(width, height, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("was decoded"))
    content = bomb(width, height)
    assert len(content) < 500_000
    with pytest.raises(PayloadTooLarge, match=r"image 0 has .* pixels: expected at most 50000000"):
        transformed(content)


@pytest.mark.parametrize("content", [b"", b"no picture", b"GIF89a" + bytes(100), b"%PDF-1.4", b"\xff\xd8"])
def test_a_file_that_is_no_picture_is_unsupported_media_that_names_it(content):
    with pytest.raises(UnsupportedMedia, match="image 1 is not a JPEG or PNG file"):
        transformed(file(solid("red")), content)


NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (200, 200, 3), np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_picture_is_invalid_input_that_names_it(kind):
    whole = file(NOISE, kind)
    with pytest.raises(InvalidInput, match=f"image 0 is a damaged {kind} file"):
        transformed(whole[: len(whole) // 2])


def test_more_pictures_than_allowed_are_refused():
    with pytest.raises(PayloadTooLarge, match="3 images: expected at most 2"):
        transformed(*[b"x"] * 3, max_images=2)


def test_no_picture_at_all_is_refused():
    with pytest.raises(InvalidInput, match="no image"):
        transformed()


def test_logits_become_the_best_classes_with_their_probabilities(tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\nÄther\n", encoding="utf-8")
    _, answer = transformed(file(solid("red")), **PLAIN, top=2, labels=str(labels))
    assert answer["classes"].tolist() == [[1, 2]]
    assert answer["labels"].tolist() == [[b"dog", "Äther".encode()]]
    whole = np.exp([0.0, 2.0, 1.0]) / np.exp([0.0, 2.0, 1.0]).sum()
    assert np.allclose(answer["scores"], [whole[[1, 2]]])


def test_scores_that_are_probabilities_already_stay_as_they_are():
    scores = np.array([[0.1, 0.7, 0.2]], np.float32)
    _, answer = transformed(file(solid("red")), backend=Echo(scores), **PLAIN, top=9, softmax=False)
    assert np.allclose(answer["scores"], [[0.7, 0.2, 0.1]])
    assert "labels" not in answer


def test_logits_too_large_for_exp_give_probabilities_all_the_same():
    _, answer = transformed(file(solid("red")), backend=Echo(np.array([[1e4, 0, 0]], np.float32)), **PLAIN)
    assert answer["scores"][0, 0] == 1.0


def test_a_labels_file_of_another_model_is_a_model_error(tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\n")
    with pytest.raises(ModelError, match="3 classes, and KSERVEKIT_IMAGE_LABELS 2 lines"):
        transformed(file(solid("red")), **PLAIN, labels=str(labels))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"layout": "CHW"}, "KSERVEKIT_IMAGE_LAYOUT is 'CHW': expected NCHW or NHWC"),
        ({"resize": 100}, "KSERVEKIT_IMAGE_RESIZE is 100: expected at least"),
        ({"std": (1.0, 0.0, 1.0)}, "KSERVEKIT_IMAGE_STD"),
        ({"mean": (1.0,)}, "KSERVEKIT_IMAGE_MEAN"),
        ({"labels": "/no/such/file"}, "KSERVEKIT_IMAGE_LABELS is '/no/such/file'"),
        ({"size": 0}, "KSERVEKIT_IMAGE_SIZE is 0"),
        ({"top": 0}, "KSERVEKIT_IMAGE_TOP is 0"),
    ],
)
def test_bad_settings_are_said_before_anything_is_served(settings, reason):
    with pytest.raises(CannotStart) as found:
        ImageTransformer("m", settings=ImageSettings(**settings), backend=Echo())
    assert reason in str(found.value)


def test_a_plain_base64_string_is_taken_in_v1_because_the_input_is_declared_so():
    transformer = ImageTransformer("m", settings=ImageSettings(), backend=Echo())
    assert asyncio.run(transformer.spec()).input("image").content_type == "base64"
