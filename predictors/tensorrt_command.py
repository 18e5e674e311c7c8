"""`kservekit engine`: built ahead of time what TensorRTPredictor would build at its start."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from kservekit import config
from kservekit.errors import CannotStart
from kservekit.predictors import tensorrt_runtime
from kservekit.predictors.tensorrt_build import Options, build, options
from kservekit.predictors.tensorrt_cache import write

EXAMPLES = """\
examples:
  kservekit engine model.onnx
  KSERVEKIT_TENSORRT_MAX_BATCH=32 kservekit engine model.onnx --into models/model.plan
  KSERVEKIT_TENSORRT_SIZES=tokens=1:128:512 kservekit engine bert.onnx
"""


def run(arguments: Sequence[str], put: Callable[[str], None]) -> int:
    parser = argparse.ArgumentParser(
        prog="kservekit engine",
        description="A TensorRT engine from an ONNX file, built as KSERVEKIT_TENSORRT_* say. TensorRT builds for the\n"
        "GPU of this machine and needs it; TensorRT for RTX builds without one.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="model.onnx")
    parser.add_argument("--into", type=Path, metavar="FILE", help="the engine (default: model.engine beside the model)")
    found = parser.parse_args(arguments)
    wanted = options(config.read(config.TensorRTSettings))
    try:
        return _built(found.model, found.into or found.model.with_suffix(".engine"), wanted, put)
    except OSError as error:
        raise CannotStart(f"the engine cannot be built: {error}") from None


def _built(model: Path, into: Path, wanted: Options, put: Callable[[str], None]) -> int:
    if not model.is_file():
        raise CannotStart(f"{model}: no such file")
    if into.is_dir():
        raise CannotStart(f"--into is {str(into)!r}, which is a folder: expected a file, such as model.engine")
    if not into.parent.is_dir():
        raise CannotStart(f"--into is {str(into)!r}: there is no folder {str(into.parent)!r}")
    library = tensorrt_runtime.tensorrt()
    # What the library says of a failure comes as one sentence from build.
    logging.getLogger(tensorrt_runtime.__name__).setLevel(logging.CRITICAL)
    engine = build(library, model, wanted)
    write(into, engine)
    put(f"{into}: {len(engine)} bytes, by {library}")
    return 0
