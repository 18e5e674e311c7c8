import asyncio
import base64
import io
import struct
import subprocess
import sys
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from kservekit.codec.message import Answer, Request
from kservekit.config import ImageSettings
from kservekit.errors import (
    CannotStart,
    InvalidInput,
    ModelError,
    PayloadTooLarge,
    TooManyRequests,
    UnsupportedMedia,
)
from kservekit.oip import Backend
from kservekit.serving import pool
from kservekit.tensors import ModelSpec, TensorSpec
from kservekit.transformers.image import ORIENTATIONS, ImageTransformer


class Echo(Backend):
    """A backend of a few lines: it keeps what it was sent and gives the scores that it was made with."""

    def __init__(self, scores=None, name="pixels"):
        self.scores = np.array([[0.0, 2.0, 1.0]], np.float32) if scores is None else scores
        self.inputs = (TensorSpec(name, "FP32", (-1, 3, -1, -1)),)

    async def infer(self, request):
        self.sent = request
        return Answer({"logits": self.scores})

    def empty(self, shape, dtype):
        self.made = super().empty(shape, dtype)
        return self.made

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


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_tensor_is_made_in_memory_that_the_predictor_reads(layout):
    backend = Echo()
    sent, _ = transformed(file(solid((10, 20, 30))), backend=backend, **PLAIN, layout=layout)
    assert sent["pixels"] is backend.made


def test_layout_nhwc_puts_channels_last():
    sent, _ = transformed(file(solid((10, 20, 30))), **PLAIN, layout="NHWC")
    assert np.allclose(sent["pixels"], np.broadcast_to([10, 20, 30], (1, 4, 4, 3)))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_pixels_are_sent_as_they_are_where_the_model_normalizes_itself(layout):
    backend = Echo()
    backend.inputs = (TensorSpec("pixels", "UINT8", (-1, -1, -1, -1)),)
    settings = {"size": 4, "resize": 4, "layout": layout, "datatype": "UINT8"}
    sent, _ = transformed(file(solid((10, 20, 30))), backend=backend, **settings)
    assert (sent["pixels"].dtype, sent["pixels"].shape) == (
        np.uint8,
        (1, 3, 4, 4) if layout == "NCHW" else (1, 4, 4, 3),
    )
    assert sent["pixels"].flags.c_contiguous
    assert np.moveaxis(sent["pixels"], layout.index("C"), -1)[0, 2, 1].tolist() == [10, 20, 30]


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


def gradients(width=90, height=60):
    """Different at every corner, and smooth enough to be compared after a resize."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.dstack([across, down, 255 - across / 2 - down / 2]).astype(np.uint8))


def pixels(content, **settings):
    transformer = ImageTransformer("m", settings=ImageSettings(**settings), backend=Echo())
    return transformer.pixels(np.array([content], dtype=np.object_))[0].astype(int)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", [0, *ORIENTATIONS, 9, 65535])
def test_each_orientation_is_turned_as_pillow_turns_it(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = file(gradients(), kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    sizes = {"size": 20, "resize": 30}
    assert abs(pixels(content, **sizes) - pixels(file(upright), **sizes)).max() <= 1


def directory(*entries, order="<", offset=8):
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", offset)
    return head + struct.pack(f"{order}H", len(entries)) + b"".join(entries)


def entry(tag, kind, count, value, order="<"):
    packed = struct.pack(f"{order}HHI", tag, kind, count)
    return packed + (struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value))


TURNED = entry(0x0112, 3, 1, 3)


@pytest.mark.parametrize(
    ("exif", "turned"),
    [
        (directory(entry(0x0112, 3, 1, 3, ">"), order=">"), True),
        (directory(entry(0x010F, 2, 4, 0x41414141), TURNED), True),
        (directory(entry(0x8769, 4, 1, 0xFFFFFFF0), TURNED), True),  # a directory that is not there
        (directory(entry(0x011A, 5, 1, 0xFFFFFFF0), TURNED), True),  # a resolution that is not there
        (directory(entry(0x011A, 3, 1, 7), entry(0x0131, 4, 1, 7), TURNED), True),  # datatypes that are not theirs
        (directory(entry(0x0112, 2, 1, 3)), False),
        (directory(TURNED, offset=0xFFFFFFFF), False),
        (directory(TURNED)[:12], False),
        (b"", False),
        (b"II", False),
        (b"no TIFF header at all", False),
    ],
    ids=range(11),
)
def test_odd_exif_turns_the_picture_where_its_orientation_can_be_read_and_never_fails(exif, turned):
    content = file(gradients(), "JPEG", exif=b"Exif\0\0" + exif)
    upright = pixels(file(gradients(), "JPEG"), size=20, resize=30)
    expected = upright[::-1, ::-1] if turned else upright
    assert abs(pixels(content, size=20, resize=30) - expected).max() <= 1


@pytest.mark.parametrize("name", ["RGB", "L", "RGBA", "LA", "P", "P with transparency", "1", "I;16", "CMYK"])
def test_what_is_resized_before_it_becomes_rgb_is_what_it_would_be_after(name):
    picture, kind, options = gradients(300, 200), "PNG", {}
    if name in ("RGBA", "LA"):
        picture = picture.convert(name)
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    elif name.startswith("P"):
        picture = picture.quantize(200)
        options = {"transparency": bytes(range(200))} if "transparency" in name else {}
    elif name == "I;16":
        grey = np.asarray(picture.convert("L"))
        content = file(Image.fromarray(grey.astype(np.uint16) << 8))
        after = Image.fromarray(grey).convert("RGB")
    else:
        picture = picture.convert(name)
        kind = "JPEG" if name == "CMYK" else "PNG"
    if name != "I;16":
        content = file(picture, kind, **options)
        source = Image.open(io.BytesIO(content))
        source.info.pop("transparency", None)
        after = source.convert("RGB")
    sizes = {"size": 20, "resize": 30}
    assert abs(pixels(content, **sizes) - pixels(file(after), **sizes)).max() <= 1


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
    with pytest.raises(PayloadTooLarge, match=r"image 0 has .* pixels") as found:
        transformed(content)
    assert f"image 0 has {width} x {height} pixels: expected at most 50000000 (KSERVEKIT_IMAGE_MAX_PIXELS)" == str(
        found.value
    )


def test_our_limit_on_pixels_is_the_only_one():
    """Pillow's is 89 million for a warning and twice that for an error, for the whole process."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        sent, _ = transformed(bomb(16_000, 12_000), **PLAIN, max_pixels=4_000_000_000)
    assert sent["pixels"].shape == (1, 3, 4, 4)
    assert not warned
    with pytest.raises(PayloadTooLarge, match="16000 x 12000 pixels: expected at most 191999999"):
        transformed(bomb(16_000, 12_000), max_pixels=191_999_999)


@pytest.mark.parametrize("last", [b"no picture", bomb(8_000, 8_000), b"\x89PNG\r\n\x1a\n"])
def test_every_file_is_looked_at_before_the_first_is_decoded(last, monkeypatch):
    monkeypatch.setattr(Image.Image, "resize", lambda *_, **__: pytest.fail("was decoded"))
    with pytest.raises((UnsupportedMedia, PayloadTooLarge, InvalidInput), match="image 2 "):
        transformed(file(solid("red")), file(solid("red"), "JPEG"), last)


def test_no_more_pictures_are_decoded_at_once_than_the_setting_says(monkeypatch):
    inside, most, lock = 0, 0, threading.Lock()
    load = Image.Image.load

    def counted(self):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        threading.Event().wait(0.02)
        with lock:
            inside -= 1
        return load(self)

    monkeypatch.setattr(Image.Image, "load", counted)
    transformer = ImageTransformer("m", settings=ImageSettings(decoders=2), backend=Echo())
    files = np.array([file(solid("red"))], dtype=np.object_)
    threads = [threading.Thread(target=transformer.pixels, args=(files,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2


def test_pictures_wait_in_the_handlers_line_and_beyond_it_callers_are_refused(monkeypatch):
    monkeypatch.setattr(pool, "_pool", pool.HandlerPool(threads=1, waiting=0))
    transformer = ImageTransformer("m", settings=ImageSettings(**PLAIN), backend=Echo())

    async def two():
        tensors = {"image": np.array([file(solid("red"))], dtype=np.object_)}
        return await asyncio.gather(*(transformer.to_tensors(tensors) for _ in range(2)), return_exceptions=True)

    first, second = asyncio.run(two())
    assert first["pixels"].shape == (1, 3, 4, 4)
    assert isinstance(second, TooManyRequests)


PEAK = """
import re, sys
from pathlib import Path
import numpy as np
from kservekit.config import ImageSettings
from kservekit.transformers.image import ImageTransformer
peak = lambda: int(re.search("VmHWM:[^0-9]*([0-9]+) kB", Path("/proc/self/status").read_text())[1])
transformer = ImageTransformer("m", settings=ImageSettings())
before = peak()
transformer.pixels(np.array([sys.stdin.buffer.read()], dtype=object))
print((peak() - before) * 1024)
"""


@pytest.mark.parametrize(("mode", "bytes_a_pixel"), [("RGB", 4), ("RGBA", 5), ("P", 2)])
def test_a_decoded_picture_is_in_memory_once_and_one_of_its_channels_twice(mode, bytes_a_pixel):
    content = file(Image.new(mode, (5000, 4000)), compress_level=1)
    peak = subprocess.run([sys.executable, "-c", PEAK], input=content, capture_output=True, check=True).stdout
    assert int(peak) < 5000 * 4000 * bytes_a_pixel + 20_000_000


@pytest.mark.parametrize("content", [b"", b"no picture", b"GIF89a" + bytes(100), b"%PDF-1.4", b"\xff\xd8"])
def test_a_file_that_is_no_picture_is_unsupported_media_that_names_it(content):
    with pytest.raises(UnsupportedMedia, match="image 1 is not a JPEG or PNG file"):
        transformed(file(solid("red")), content)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_base64_that_came_as_text_is_told_how_to_be_sent(kind):
    with pytest.raises(UnsupportedMedia, match="image 0 is base64 text") as found:
        transformed(base64.b64encode(file(NOISE, kind)))
    assert '"parameters": {"content_type": "base64"}' in str(found.value)


NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (200, 200, 3), np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_picture_is_invalid_input_that_names_it(kind):
    whole = file(NOISE, kind)
    with pytest.raises(InvalidInput, match=f"image 0 is a damaged {kind} file"):
        transformed(whole[: len(whole) // 2])


def originals():
    """One of every kind of file that the two formats have."""
    picture = gradients(40, 30)
    exif = Image.Exif()
    exif.update({0x010F: "maker", 0x0112: 6, 0x011A: 72.5, 0x8298: "someone"})
    exif.get_ifd(0x8769)[0x9286] = b"a comment"
    for kind in ("JPEG", "PNG"):
        yield file(picture, kind, exif=exif, dpi=(72, 72), icc_profile=bytes(500))
    yield file(picture, "JPEG", progressive=True, comment=b"text", subsampling=0)
    yield file(picture.convert("CMYK"), "JPEG")
    yield file(picture.convert("L"), "JPEG", restart_marker_rows=1)
    yield file(picture, "MPO", save_all=True, append_images=[picture])
    for mode in ("RGBA", "LA", "P", "1"):
        yield file(picture.convert(mode))
    yield file(Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) << 8))
    yield file(picture.quantize(9), transparency=bytes(9), bits=4)
    yield file(picture, save_all=True, append_images=[picture.rotate(9)], disposal=1, blend=1)


def mutated(content, others, random):
    """The file with bytes changed, with its end or a piece cut off, or with a piece of another put in."""
    content = bytearray(content)
    for _ in range(random.integers(1, 4)):
        where = int(random.integers(0, len(content) + 1) * random.choice([1, 0.2]))  # the head has more to break
        length = int(random.integers(1, 40))
        match random.integers(0, 5):
            case 0:
                content[where : where + length] = random.bytes(min(length, len(content) - where))
            case 1:
                content[where : where + 1] = random.choice([b"\x00", b"\xff", b"\x01", b"\x7f"])
            case 2:
                del content[where:]
            case 3:
                del content[where : where + length]
            case _:
                other = others[random.integers(0, len(others))]
                start = int(random.integers(0, len(other)))
                content[where : where + length] = other[start : start + 2 * length]
    return bytes(content)


@pytest.mark.filterwarnings("ignore:Invalid APNG:UserWarning")
def test_a_file_with_anything_broken_in_it_is_a_picture_or_the_callers_fault():
    """20,000 of these were run once; a few are run each time."""
    random = np.random.default_rng(7)
    files = list(originals())
    transformer = ImageTransformer("m", settings=ImageSettings(**PLAIN, max_pixels=1_000_000), backend=Echo())
    outcomes = set()
    for content in files:
        assert transformer.pixels(np.array([content], dtype=np.object_)).any()
    for content in files * 60:
        broken = mutated(content, files, random)
        try:
            assert transformer.pixels(np.array([broken], dtype=np.object_)).shape == (1, 4, 4, 3)
            outcomes.add("picture")
        except (InvalidInput, UnsupportedMedia, PayloadTooLarge) as error:
            outcomes.add(type(error).__name__)
            if not str(error).startswith("image 0 "):
                pytest.fail(f"{error} does not name the file")
    assert outcomes >= {"picture", "InvalidInput", "UnsupportedMedia"}


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
