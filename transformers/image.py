"""Pictures to a classifier's tensor, and its scores to labels."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from kservekit import config
from kservekit.config import ImageSettings
from kservekit.errors import CannotStart, InvalidInput, ModelError, PayloadTooLarge, UnsupportedMedia
from kservekit.oip import Backend
from kservekit.serving import Tensors, TensorSpec, Transformer
from kservekit.telemetry.timing import stage

FORMATS = ("JPEG", "PNG")


class ImageTransformer(Transformer):
    """JPEG or PNG files in, the best classes out.

    Takes `image`: BYTES [n], one file an element. Sends the predictor one FP32 tensor of
    [n, 3, size, size] (or NHWC) under the name of its only input. Gives `scores` FP32 [n, top],
    `classes` INT64 [n, top] and, with a labels file, `labels` BYTES [n, top]. Settings: KSERVEKIT_IMAGE_*.

    A picture is turned upright (EXIF), made RGB (transparency is dropped), resized by its shorter side
    (bicubic), cropped at its centre and normalized to (x - mean) / std on 0 to 255.
    """

    inputs = (TensorSpec("image", "BYTES", (-1,), content_type="base64"),)

    def __init__(
        self, name: str = "model", *, settings: ImageSettings | None = None, backend: Backend | None = None
    ) -> None:
        super().__init__(name, backend=backend)
        self.settings = settings or config.read(ImageSettings)
        if self.settings.layout not in ("NCHW", "NHWC"):
            raise CannotStart(f"KSERVEKIT_IMAGE_LAYOUT is {self.settings.layout!r}: expected NCHW or NHWC")
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

    async def to_tensors(self, tensors: Tensors) -> Tensors:
        name = await self._predictor_input()
        return {name: await asyncio.to_thread(self._tensor, tensors["image"])}

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
            self._input_name = inputs[0].name if inputs else "image"  # v1 has no metadata, and needs no name
        return self._input_name

    def _tensor(self, files: np.ndarray) -> np.ndarray:
        pixels = self.pixels(files)
        with stage("normalize"):
            if self.settings.layout == "NHWC":
                nhwc: np.ndarray = np.multiply(pixels, self._scale, dtype=np.float32)
                nhwc -= self._shift
                return nhwc
            nchw = np.empty((len(pixels), 3, self.settings.size, self.settings.size), dtype=np.float32)
            np.multiply(pixels.transpose(0, 3, 1, 2), self._scale[:, None, None], out=nchw)
            nchw -= self._shift[:, None, None]
            return nchw

    def pixels(self, files: np.ndarray) -> np.ndarray:
        """UINT8 [n, size, size, 3] from n files; UnsupportedMedia, InvalidInput or PayloadTooLarge names the file."""
        if len(files) > self.settings.max_images:
            raise PayloadTooLarge(f"{len(files)} images: expected at most {self.settings.max_images} a request")
        if not len(files):
            raise InvalidInput("no image in input 'image'")
        result = np.empty((len(files), self.settings.size, self.settings.size, 3), dtype=np.uint8)
        for index, file in enumerate(files):
            result[index] = self._square(file, f"image {index}")
        return result

    def _square(self, file: bytes, label: str) -> np.ndarray:
        with stage("decode_image"):
            picture = self._decoded(file, label)
        with stage("resize"):
            # One step from the source: the centre that would be left after resizing and cropping.
            side = min(picture.size) * self.settings.size / self.settings.resize
            left, top = (picture.width - side) / 2, (picture.height - side) / 2
            square = (self.settings.size, self.settings.size)
            box = (left, top, left + side, top + side)
            return np.asarray(picture.resize(square, Image.Resampling.BICUBIC, box=box))

    def _decoded(self, file: bytes, label: str) -> Image.Image:
        try:
            picture = Image.open(io.BytesIO(file), formats=FORMATS)
        except Image.DecompressionBombError:
            raise PayloadTooLarge(f"{label} has too many pixels: expected at most {self.settings.max_pixels}") from None
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
            raise UnsupportedMedia(f"{label} is not a {' or '.join(FORMATS)} file ({len(file)} bytes)") from None
        width, height = picture.size
        if width * height > self.settings.max_pixels:
            raise PayloadTooLarge(
                f"{label} has {width} x {height} pixels: expected at most {self.settings.max_pixels} "
                "(KSERVEKIT_IMAGE_MAX_PIXELS)"
            )
        try:
            # A JPEG can be decoded at a half, a quarter or an eighth; twice the size that is needed loses nothing.
            picture.draft("RGB", (2 * self.settings.resize, 2 * self.settings.resize))
            picture.load()
            return _rgb(ImageOps.exif_transpose(picture))
        except (OSError, SyntaxError, ValueError) as error:
            raise InvalidInput(f"{label} is a damaged {picture.format} file: {error}") from None


def read_labels(path: str) -> np.ndarray:
    """A labels file as a BYTES array; CannotStart where it cannot be read."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CannotStart(f"KSERVEKIT_IMAGE_LABELS is {path!r}: {error}") from None
    return np.array([line.strip().encode() for line in lines], dtype=np.object_)


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip rather than scale
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture.convert("RGB")
