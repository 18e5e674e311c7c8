"""Pictures to a classifier's tensor, and its scores to labels."""

from __future__ import annotations

import contextlib
import io
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from kservekit import config
from kservekit.config import ImageSettings
from kservekit.cpus import usable_cpus
from kservekit.errors import CannotStart, InvalidInput, ModelError, PayloadTooLarge, UnsupportedMedia
from kservekit.oip import Backend
from kservekit.serving import Tensors, TensorSpec, Transformer
from kservekit.serving.pool import handler_pool
from kservekit.telemetry.timing import stage


class Jpeg(JpegImageFile):
    """Pillow looks into EXIF for a resolution that nobody asks for here, and warns the log of all that is odd in it."""

    def getexif(self) -> Image.Exif:
        return Image.Exif()


FORMATS: dict[bytes, type[ImageFile]] = {b"\xff\xd8\xff": Jpeg, b"\x89PNG\r\n\x1a\n": PngImageFile}
"""How a file begins, and who reads it. Image.open would first hold it against Pillow's own limit on pixels, which is
one for the whole process."""

BASE64 = (b"/9j/", b"iVBOR")
"""How such files begin as base64."""

ORIENTATIONS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
"""EXIF 2.32, tag 0x0112: whether rows and columns change places, then whether rows, then columns, are reversed."""


class ImageTransformer(Transformer):
    """JPEG or PNG files in, the best classes out.

    Takes `image`: BYTES [n], one file an element. Sends the predictor one FP32 tensor of
    [n, 3, size, size] (or NHWC) under the name of its only input. Gives `scores` FP32 [n, top],
    `classes` INT64 [n, top] and, with a labels file, `labels` BYTES [n, top]. Settings: KSERVEKIT_IMAGE_*.

    A picture is turned upright (EXIF), made RGB (transparency is dropped), resized by its shorter side
    (bicubic), cropped at its centre and normalized to (x - mean) / std on 0 to 255. The last is left to the
    predictor where KSERVEKIT_IMAGE_DATATYPE is UINT8.
    """

    inputs = (TensorSpec("image", "BYTES", (-1,), content_type="base64"),)

    def __init__(
        self, name: str = "model", *, settings: ImageSettings | None = None, backend: Backend | None = None
    ) -> None:
        super().__init__(name, backend=backend)
        self.settings = settings or config.read(ImageSettings)
        if self.settings.layout not in ("NCHW", "NHWC"):
            raise CannotStart(f"KSERVEKIT_IMAGE_LAYOUT is {self.settings.layout!r}: expected NCHW or NHWC")
        if self.settings.datatype not in ("FP32", "UINT8"):
            raise CannotStart(f"KSERVEKIT_IMAGE_DATATYPE is {self.settings.datatype!r}: expected FP32 or UINT8")
        if self.settings.resize < self.settings.size:
            raise CannotStart(
                f"KSERVEKIT_IMAGE_RESIZE is {self.settings.resize}: "
                f"expected at least KSERVEKIT_IMAGE_SIZE, {self.settings.size}"
            )
        for field in ("size", "top"):
            if getattr(self.settings, field) < 1:
                raise CannotStart(
                    f"KSERVEKIT_IMAGE_{field.upper()} is {getattr(self.settings, field)}: expected 1 or more"
                )
        for field in ("mean", "std"):
            values = getattr(self.settings, field)
            if len(values) != 3 or (field == "std" and 0 in values):
                raise CannotStart(f"KSERVEKIT_IMAGE_{field.upper()} is {values}: expected three numbers, one a channel")
        self.labels = read_labels(self.settings.labels) if self.settings.labels else None
        top = (-1, self.settings.top)
        self.outputs = [TensorSpec("scores", "FP32", top), TensorSpec("classes", "INT64", top)]
        if self.labels is not None:
            self.outputs.append(TensorSpec("labels", "BYTES", top))
        self._scale = np.float32(1) / np.array(self.settings.std, dtype=np.float32)
        self._shift = np.array(self.settings.mean, dtype=np.float32) * self._scale
        self._input_name = ""
        self._decoders = threading.BoundedSemaphore(self.settings.decoders or usable_cpus())

    async def to_tensors(self, tensors: Tensors) -> Tensors:
        name = await self._predictor_input()
        return {name: await handler_pool().run(self._tensor, tensors["image"])}

    def from_tensors(self, tensors: Tensors) -> Tensors:
        if len(tensors) != 1:
            raise ModelError(f"the predictor gave {', '.join(map(repr, tensors))}: expected one output, the scores")
        scores = next(iter(tensors.values()))
        if scores.ndim != 2 or scores.dtype.kind not in "fV":
            raise ModelError(
                f"the predictor gave {scores.dtype} of shape {list(scores.shape)}: expected scores [n, classes]"
            )
        scores = scores.astype(np.float32)
        if self.labels is not None and scores.shape[1] != len(self.labels):
            raise ModelError(
                f"the model has {scores.shape[1]} classes, and KSERVEKIT_IMAGE_LABELS {len(self.labels)} lines"
            )
        if self.settings.softmax:
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
        classes = np.argsort(-scores, axis=1, kind="stable")[:, : self.settings.top]
        answer: Tensors = {"scores": np.take_along_axis(scores, classes, axis=1), "classes": classes}
        if self.labels is not None:
            answer["labels"] = self.labels[classes]
        return answer

    async def _predictor_input(self) -> str:
        if not self._input_name:
            inputs = (await self.backend.spec(self.predictor_model)).inputs
            if len(inputs) > 1:
                raise ModelError(
                    f"the predictor takes {', '.join(repr(item.name) for item in inputs)}: expected one input"
                )
            if inputs and inputs[0].datatype != self.settings.datatype:
                raise ModelError(
                    f"the predictor takes {inputs[0].datatype}, and KSERVEKIT_IMAGE_DATATYPE is "
                    f"{self.settings.datatype}: expected a model that takes what is sent"
                )
            self._input_name = inputs[0].name if inputs else "image"  # v1 has no metadata, and needs no name
        return self._input_name

    def _tensor(self, files: np.ndarray) -> np.ndarray:
        pixels, scale, shift = self.pixels(files), self._scale, self._shift
        if self.settings.layout == "NCHW":
            pixels = pixels.transpose(0, 3, 1, 2)
            scale, shift = scale[:, None, None], shift[:, None, None]
        if self.settings.datatype == "UINT8":
            return np.ascontiguousarray(pixels)
        with stage("normalize"):
            tensor = self.backend.empty(pixels.shape, np.float32)
            np.multiply(pixels, scale, out=tensor)
            tensor -= shift
            return tensor

    def pixels(self, files: np.ndarray) -> np.ndarray:
        """UINT8 [n, size, size, 3] from n files; UnsupportedMedia, InvalidInput or PayloadTooLarge names the file."""
        if len(files) > self.settings.max_images:
            raise PayloadTooLarge(
                f"{len(files)} images: expected at most {self.settings.max_images} a request "
                "(KSERVEKIT_IMAGE_MAX_IMAGES)"
            )
        if not len(files):
            raise InvalidInput("no image in input 'image'")
        # All are looked at before the first is decoded: a request that is refused costs little.
        pictures = [self._opened(file, f"image {index}") for index, file in enumerate(files)]
        result = np.empty((len(files), self.settings.size, self.settings.size, 3), dtype=np.uint8)
        for index in range(len(files)):
            result[index] = self._square(pictures.pop(0), f"image {index}")
        return result

    def _opened(self, file: bytes, label: str) -> ImageFile:
        """A picture within the limits, of which only the head was read."""
        reader = next((reader for magic, reader in FORMATS.items() if file.startswith(magic)), None)
        if reader is None and file.startswith(BASE64):
            raise UnsupportedMedia(
                f"{label} is base64 text: give its tensor "
                '"parameters": {"content_type": "base64"}, or send the file itself as binary'
            )
        if reader is None:
            raise UnsupportedMedia(f"{label} is not a JPEG or PNG file ({len(file)} bytes)")
        with _read_by_pillow(label, reader.format):
            picture = reader(io.BytesIO(file))
        width, height = picture.size
        if width * height > self.settings.max_pixels:
            raise PayloadTooLarge(
                f"{label} has {width} x {height} pixels: expected at most {self.settings.max_pixels} "
                "(KSERVEKIT_IMAGE_MAX_PIXELS)"
            )
        return picture

    def _square(self, picture: ImageFile, label: str) -> np.ndarray:
        with self._decoders, _read_by_pillow(label, picture.format):
            with stage("decode_image"):
                # A JPEG can be decoded at a half, a quarter or an eighth; twice the size that is needed loses nothing.
                picture.draft("RGB", (2 * self.settings.resize, 2 * self.settings.resize))
                picture.load()
            with stage("resize"):
                # One step from the source: the centre that would be left after resizing and cropping.
                side = min(picture.size) * self.settings.size / self.settings.resize
                left, top = (picture.width - side) / 2, (picture.height - side) / 2
                square = _rgb(picture, self.settings.size, (left, top, left + side, top + side))
        # The centre stays the centre, so it is turned when it is small.
        swap, rows, columns = ORIENTATIONS.get(_orientation(picture.info.get("exif")), ORIENTATIONS[1])
        turned = square.transpose(1, 0, 2) if swap else square
        return turned[:: -1 if rows else 1, :: -1 if columns else 1]


def read_labels(path: str) -> np.ndarray:
    """A labels file as a BYTES array; CannotStart where it cannot be read."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CannotStart(f"KSERVEKIT_IMAGE_LABELS is {path!r}: {error}") from None
    return np.array([line.strip().encode() for line in lines], dtype=np.object_)


@contextlib.contextmanager
def _read_by_pillow(label: str, kind: str | None) -> Iterator[None]:
    """Whatever Pillow raises over a stranger's bytes is said of them; struct.error and TypeError are among it."""
    try:
        yield
    except MemoryError:
        raise PayloadTooLarge(f"{label} needs more memory than this server has") from None
    except Exception as error:
        raise InvalidInput(f"{label} is a damaged {kind} file: {str(error) or type(error).__name__}") from None


def _rgb(picture: Image.Image, size: int, box: tuple[float, float, float, float]) -> np.ndarray:
    """UINT8 [size, size, 3] of what the box holds. Of the picture's own size at most one channel is copied."""

    def resized(source: Image.Image) -> np.ndarray:
        return np.asarray(source.resize((size, size), Image.Resampling.BICUBIC, box=box))

    if picture.mode == "RGB":
        return resized(picture)
    if picture.mode == "RGBA":  # as a whole it would be weighted by its transparency
        return np.dstack([resized(picture.getchannel(channel)) for channel in "RGB"])
    if picture.mode == "P":
        palette = np.zeros((256, 3), dtype=np.uint8)
        found = np.array(picture.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
        palette[: len(found)] = found
        return np.dstack([resized(picture.point(channel.tolist(), "L")) for channel in palette.T])
    if picture.mode == "CMYK":  # not linear, so first made RGB; a JPEG, hence large only beyond its centre
        reach = 2 + 2 * max(1.0, (box[2] - box[0]) / size)  # of bicubic
        left, top = max(0, int(box[0] - reach)), max(0, int(box[1] - reach))
        right, bottom = min(picture.width, int(box[2] + reach)), min(picture.height, int(box[3] + reach))
        centre = picture.crop((left, top, right, bottom)).convert("RGB")
        return _rgb(centre, size, (box[0] - left, box[1] - top, box[2] - left, box[3] - top))
    if picture.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip rather than scale
        grey = (resized(picture) >> 8).astype(np.uint8)
    elif picture.mode == "LA":
        grey = resized(picture.getchannel("L"))
    else:
        grey = resized(picture if picture.mode == "L" else picture.convert("L"))
    return np.dstack([grey] * 3)


def _orientation(exif: bytes | None) -> int:
    """Tag 0x0112 in the first directory of what EXIF is, a TIFF header; 1, upright, where that cannot be read."""
    tiff = (exif or b"").removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2], "<")
    with contextlib.suppress(struct.error):
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for index in range(entries):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * index)
            if tag == 0x0112:
                return int(value) if kind == 3 else 1
    return 1
