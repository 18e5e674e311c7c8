"""`kservekit repository build` and `kservekit repository check`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from kservekit.errors import CannotStart
from kservekit.predictors.onnx_normalize import Normalization
from kservekit.predictors.repository import datatype_name
from kservekit.predictors.repository_build import Build, Built, build
from kservekit.predictors.repository_check import check
from kservekit.predictors.repository_ensemble import build_normalizing
from kservekit.predictors.repository_limits import MOST_INT64, is_number
from kservekit.tensors import TensorSpec

EXAMPLES = """\
examples:
  kservekit repository build resnet.onnx --into models
  kservekit repository build resnet.onnx --into models --target local
  kservekit repository build resnet.onnx --into models --tensorrt fp16 --size height=224 --size width=224
  kservekit repository build resnet.onnx --into models --normalize 123.675,116.28,103.53 58.395,57.12,57.375
  kservekit repository build score.py --name score --into models --input x:FP32:-1,30 --output score:FP32:-1,1
  kservekit repository check models
"""

Put = Callable[[str], None]


def run(arguments: Sequence[str], put: Put) -> int:
    """The exit code: 1 where `check` finds what Triton would refuse."""
    options = _parser().parse_args(arguments)
    if options.verb == "check":
        return _check(options.repository, put)
    return _build(options, put)


def _build(options: argparse.Namespace, put: Put) -> int:
    wanted = Build(
        options.model,
        options.name or options.model.stem,
        target=options.target,
        version=options.version,
        max_batch=options.max_batch,
        batch_delay_us=options.batch_delay_us,
        instances=options.instances,
        keep=options.keep,
        warm_up=options.warm_up,
        sizes=dict(map(_size, options.size)),
        response_cache=options.response_cache,
        tensorrt=options.tensorrt,
        inputs=tuple(map(_tensor, options.input)),
        outputs=tuple(map(_tensor, options.output)),
    )
    try:
        built = _built(wanted, options)
    except OSError as error:
        raise CannotStart(f"the model cannot be built: {error}") from None
    config = built.config
    steps = " and ".join(repr(step.model_name) for step in config.ensemble_scheduling.step)
    what = f"an ensemble of {steps}" if steps else f"for the {config.backend} backend"
    put(f"{built.folder}: version {wanted.version} of {config.name!r}, {what}")
    for kind, items in (("input", config.input), ("output", config.output)):
        for item in items:
            sizes = (["batch"] if config.max_batch_size else []) + ["any" if size == -1 else size for size in item.dims]
            put(f"  {kind:6} {item.name} {datatype_name(item.data_type)} [{', '.join(map(str, sizes))}]")
    put(f"  batches of up to {config.max_batch_size}" if config.max_batch_size else "  no batches")
    if config.model_warmup:
        put(f"  warm-up: {', '.join(sample.name for sample in config.model_warmup)}")
    for note in built.notes:
        put(f"  {note}")
    return 0


def _built(wanted: Build, options: argparse.Namespace) -> Built:
    if options.normalize:
        mean, std = map(_numbers, options.normalize)
        return build_normalizing(wanted, Normalization(mean, std, options.pixels), options.into)
    if options.pixels:
        raise CannotStart("--pixels says how the pixels lie that --normalize takes: give that, too, or leave it out")
    return build(wanted, options.into)


def _check(repository: Path, put: Put) -> int:
    try:
        findings = check(repository)
    except OSError as error:
        raise CannotStart(f"{repository} cannot be read: {error}") from None
    for finding in findings:
        put(f"{'error' if finding.is_error else 'note '} {finding.where}: {finding.what}")
    errors = sum(finding.is_error for finding in findings)
    put(f"{repository}: {errors or 'no'} error{'s' if errors != 1 else ''}")
    return int(errors > 0)


def _size(text: str) -> tuple[str, int]:
    name, _, size = text.rpartition("=")
    if not name or not is_number(size, MOST_INT64):
        raise CannotStart(f"--size is {text!r}: expected a name and a number, such as height=224")
    return name, int(size)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise CannotStart(
            f"--normalize has {text!r}: expected the mean, then the deviation, each with commas between the channels, "
            "such as 123.675,116.28,103.53"
        ) from None


def _tensor(text: str) -> TensorSpec:
    name, datatype, sizes = text.rsplit(":", 2) if text.count(":") >= 2 else ("", "", "")
    with contextlib.suppress(ValueError):
        if name:
            return TensorSpec(name, datatype, tuple(map(int, sizes.split(","))))
    raise CannotStart(f"{text!r} is no tensor: expected name:datatype:sizes, such as x:FP32:-1,3 (-1: left open)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kservekit repository",
        description="Writes Triton model repositories, and says what is wrong with one.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="build|check")
    one = verbs.add_parser("build", help="a model's file to a model that Triton serves", epilog=EXAMPLES)
    one.formatter_class = argparse.RawDescriptionHelpFormatter
    one.add_argument("model", type=Path, help="model.onnx, model.plan, or a model.py of Triton's Python backend")
    one.add_argument("--into", type=Path, required=True, metavar="DIR", help="the repository; made where it is not")
    one.add_argument("--name", help="the model's (default: the file's)")
    one.add_argument(
        "--target",
        choices=("gpu", "local"),
        default="gpu",
        help="NVIDIA's container (default), or the local Triton, which runs ONNX files in its Python backend",
    )
    one.add_argument("--version", type=_positive, default=1, metavar="N")
    one.add_argument(
        "--max-batch",
        type=_count,
        metavar="ROWS",
        help="0: no batches (default: 8 where the first sizes are open and, of an ONNX file, their names say, or a few "
        "rows tried with ONNX Runtime show, that each row is answered by itself; what is given is taken as it is)",
    )
    one.add_argument("--batch-delay-us", type=_count, default=0, metavar="US", help="how long a batch waits for more")
    one.add_argument("--instances", type=_positive, default=1, metavar="N", help="copies that run at once")
    one.add_argument("--keep", default="latest:1", metavar="POLICY", help="latest:N (default 1), all, or 1,3")
    one.add_argument("--no-warm-up", dest="warm_up", action="store_false", help="ready at once, and slow at first")
    one.add_argument(
        "--size", action="append", default=[], metavar="NAME=N", help="an open size, for warm-up; or x[2]=N"
    )
    one.add_argument(
        "--normalize",
        nargs=2,
        metavar=("MEAN", "STD"),
        help="a picture's channels on 0 to 255: then callers send UINT8, a quarter of the bytes, and Triton normalizes",
    )
    one.add_argument(
        "--pixels", choices=("NCHW", "NHWC"), help="how those pixels lie (default: as the model's picture)"
    )
    one.add_argument("--response-cache", action="store_true", help="Triton's; it has to be started with --cache-config")
    one.add_argument("--tensorrt", choices=("fp32", "fp16"), default="", help="ONNX by TensorRT, in that precision")
    for kind in ("input", "output"):
        one.add_argument(f"--{kind}", action="append", default=[], metavar="NAME:DATATYPE:SIZES", help="of plan or .py")
    what = "what is wrong with a repository, without a Triton"
    two = verbs.add_parser(
        "check",
        help=what,
        description=f"Says {what}. An error is what Triton would refuse or answer wrongly, and makes the exit code 1; "
        "a note is worth a look.",
    )
    two.add_argument("repository", type=Path, help="the folder with a folder for each model")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number")
    return int(text)


def _positive(text: str) -> int:
    if not (value := _count(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number above 0")
    return value
