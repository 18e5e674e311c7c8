"""The command `kservekit`: one function a verb; each imports what it needs."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import inspect
import logging
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from kservekit import __version__, config
from kservekit.errors import CannotStart, KServeKitError
from kservekit.local.screen import CannotWrite, flush, put

EXAMPLES = """\
examples:
  kservekit demo
  kservekit serve doubler.py:Doubler --model_name doubler
  kservekit bench --list
"""

SERVE_EXAMPLES = """\
examples:
  kservekit serve doubler.py:Doubler --model_name doubler
  kservekit serve kservekit.predictors.triton:TritonPredictor --model_name photo --http_port 8080
  kservekit serve kservekit.transformers.image:ImageTransformer --model_name photo \\
      --predictor_host photo-predictor --predictor_protocol grpc-v2
"""

DEMO_EXAMPLES = """\
examples:
  kservekit demo            classify four photographs over every wire, then stop
  kservekit demo --keep     leave it running, with a curl line to try by hand; Ctrl-C stops it
"""


BENCH_EXAMPLES = """\
examples:
  kservekit bench                                     every row: some 20 minutes
  kservekit bench --list                              the rows' names
  kservekit bench --rows noop-rest-json start         two of them
  kservekit bench --rows hop-rest-tensor --repeats 5 --seconds 10 > table.md
"""

LOG_FORMAT = "%(asctime)s.%(msecs)03d %(process)s %(name)s %(levelname)s %(message)s"
"""KServe's own, without the place in the source."""
LOG_TIME = "%Y-%m-%d %H:%M:%S"


def main(argv: Sequence[str] | None = None) -> int:
    try:
        try:
            return _verb(argv)
        finally:
            flush(sys.stdout)
            flush(sys.stderr)
    except CannotWrite as error:
        if not error.reader_has_gone:  # it has seen what it wanted
            with contextlib.suppress(CannotWrite):
                put(f"kservekit: {error}", sys.stderr)
        return 1


def _verb(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbs: dict[str, tuple[Callable[[list[str]], int], str]] = {
        "demo": (demo, "a real model on the real Triton, behind a transformer and a predictor, on this machine"),
        "serve": (serve, "serve a predictor or a transformer: module:Class or path.py:Class, and KServe's flags"),
        "bench": (bench, "the side-by-side benchmarks against stock kserve.ModelServer and Triton, on this machine"),
    }
    listed = "\n".join(f"  {name:8}{text}" for name, (_, text) in verbs.items())
    parser = argparse.ArgumentParser(
        prog="kservekit",
        usage="kservekit VERB ...",
        epilog=f"verbs:\n{listed}\n\nkservekit VERB --help says more\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="A KServe extension toolkit.",
    )
    parser.add_argument("--version", action="version", version=f"kservekit {__version__}")
    parser.add_argument("verb", choices=verbs, metavar="VERB", help=" or ".join(verbs))
    # The rest belongs to the verb, which knows flags that this parser does not.
    chosen = parser.parse_args(arguments[:1])
    run, _ = verbs[chosen.verb]
    try:
        return run(arguments[1:])
    except CannotWrite:
        raise
    except KServeKitError as error:
        put(f"kservekit {chosen.verb}: {error}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def serve(arguments: list[str]) -> int:
    # kserve reads sys.argv when it is imported, so it is imported here, and its complaints are about the flags.
    sys.argv = ["kservekit serve", *arguments[1:]]
    if not arguments or {"-h", "--help"} & set(arguments):
        sys.argv = sys.argv[:1]
        from kservekit.serving import flags_parser

        parser = flags_parser()
        parser.prog = "kservekit serve TARGET"
        put(f"{parser.format_help()}\nTARGET is module:Class or path.py:Class.\n\n{SERVE_EXAMPLES}", sys.stdout)
        return 0 if arguments else 2
    from kservekit.serving import flags_parser
    from kservekit.serving import serve as run

    flags, _ = flags_parser().parse_known_args(arguments[1:])
    check_flags(flags)
    target = load_target(arguments[0])
    log_to_stderr(flags)  # after the target was imported: it may have set up logging itself
    run(target, argv=arguments[1:])
    return 0


def check_flags(flags: argparse.Namespace) -> None:
    """CannotStart for a value that KServe's parser takes and no server can be started with."""
    if not flags.model_name.strip():
        raise CannotStart(f"--model_name is {flags.model_name!r}: expected a name, such as doubler")
    for name in ("http_port", "grpc_port"):
        if not 0 <= getattr(flags, name) <= 65535:
            raise CannotStart(f"--{name} is {getattr(flags, name)}: expected 0 to 65535")
    if flags.log_config_file and not Path(flags.log_config_file).is_file():
        raise CannotStart(f"--log_config_file is {flags.log_config_file!r}: no such file")


def log_to_stderr(flags: argparse.Namespace) -> None:
    """What kservekit logs, with time and level; unless the flags or the target's own module set up logging."""
    log = logging.getLogger("kservekit")
    if flags.log_config_file or not flags.configure_logging or log.hasHandlers():
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(LOG_FORMAT, LOG_TIME))
    log.addHandler(handler)
    log.propagate = False
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)


def demo(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="kservekit demo",
        description=demo_text(),
        epilog=DEMO_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C")
    parser.add_argument(
        "--engine",
        choices=("auto", "triton", "onnx"),
        default="auto",
        help="auto: Triton, or ONNX Runtime in process where Triton cannot run (default); or one of the two for sure",
    )
    options = parser.parse_args(arguments)
    for warning in config.check():
        put(f"kservekit demo: {warning}", sys.stderr)
    from kservekit.local.demo import run
    from kservekit.local.loopback import without_proxy

    os.environ.update(without_proxy(os.environ))
    return run(keep=options.keep, engine=options.engine)


def demo_text() -> str:
    return (
        "Starts Triton, a predictor and a transformer as three processes on loopback, sends photographs over v1 REST,\n"
        "v2 REST JSON, v2 REST binary and v2 gRPC, and shows the answers and where the time went.\n"
        "The exit code is 0 only if every wire answered, and all agreed."
    )


def bench(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="kservekit bench",
        description=bench_text(),
        epilog=BENCH_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="only these rows (default: all)")
    parser.add_argument("--repeats", type=_whole, default=3, metavar="N", help="measurements of each (default: 3)")
    parser.add_argument("--seconds", type=_whole, default=3, metavar="S", help="length of each (default: 3)")
    parser.add_argument("--list", action="store_true", help="name the rows, and do nothing")
    options = parser.parse_args(arguments)
    from kservekit.benchmarks import rows, run, table

    if options.list:
        print(table.listing(rows.ROWS))  # noqa: T201
        return 0
    return run.run(options.rows, repeats=options.repeats, seconds=options.seconds)


def bench_text() -> str:
    return (
        "Measures our server as it is shipped beside stock kserve.ModelServer, Triton itself and a bare ASGI hop, in\n"
        "turn and on loopback, and prints one table: throughput or time, its spread, p50 and p99, ratios, targets.\n"
        "Needs wrk and h2load. It judges nothing: the exit code is 0 unless a contender does not serve correctly."
    )


def _whole(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number above 0")
    return int(text)


def load_target(target: str) -> Any:
    """What `module:Name` or `path.py:Name` names: a model, or something that makes one, and checks it, when it is
    called with the model's name. CannotStart where there is none."""
    where, colon, name = target.rpartition(":")
    if not colon or not where or not name:
        raise CannotStart(f"{target!r} is not a target: expected module:Class or path.py:Class")
    module = _module_from(Path(where)) if where.endswith(".py") else _module_named(where, name)
    try:
        found = getattr(module, name)
    except AttributeError:
        classes = ", ".join(key for key, value in vars(module).items() if _is_class_of(module.__name__, value))
        raise CannotStart(f"{where} has no {name!r}; its classes: {classes or 'none'}") from None
    if not callable(found):
        raise CannotStart(f"{target} is {type(found).__name__}: expected a class, a factory or a model")
    return _checked(found, target, module.__name__)


def _module_named(where: str, name: str) -> Any:
    sys.path.insert(0, "")  # as `python -m` does, so that a module beside us is found
    with _its_authors_errors(where, where):
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            if error.name is not None and (where == error.name or where.startswith(f"{error.name}.")):
                raise CannotStart(f"no module {where!r} here or installed; for a file write path.py:{name}") from None
            raise


def _module_from(path: Path) -> Any:
    if not path.is_file():
        raise CannotStart(f"{str(path)!r}: no such file")
    sys.path.insert(0, str(path.resolve().parent))  # as `python path.py` does
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise CannotStart(f"{str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    with _its_authors_errors(str(path), path.stem):
        spec.loader.exec_module(module)
    return module


def _is_class_of(module: str, value: object) -> bool:
    return isinstance(value, type) and f"{value.__module__}.".startswith(f"{module}.")


@contextlib.contextmanager
def _its_authors_errors(where: str, module: str) -> Iterator[None]:
    """Whatever the target's module raises when it is imported becomes one sentence."""
    try:
        yield
    except KServeKitError:
        raise
    except ModuleNotFoundError as error:
        if error.name is None:
            raise CannotStart(f"{where} cannot be imported: {_said(error)}{_place(error, module)}") from error
        missing = f"{where} needs the module {error.name!r}, which is not installed"
        raise CannotStart(f"{missing}{_place(error, module)}") from error
    except SystemExit as error:
        raise CannotStart(
            f"{where} ends the program when it is imported (exit code {error.code}){_place(error, module)}; "
            'put what is not for import under `if __name__ == "__main__":`'
        ) from error
    except Exception as error:
        raise CannotStart(f"{where} cannot be imported: {_said(error)}{_place(error, module)}") from error


def _checked(found: Any, target: str, module: str) -> Any:
    """The model itself, or what makes it: with CannotStart for all that comes of it and is no model."""
    model_class = sys.modules["kserve"].Model  # `serve` has it imported
    if isinstance(found, model_class):
        return _initialized(found, target)
    if isinstance(found, type) and not issubclass(found, model_class):
        raise CannotStart(
            f"{target} is a class that is no model: expected a subclass of kservekit.serving.Predictor or "
            "Transformer, or of kserve.Model"
        )

    def make(name: str) -> Any:
        try:
            inspect.signature(found).bind(name)
        except TypeError as error:
            raise CannotStart(
                f"{target} cannot be called with the model's name alone: {error}; expected one argument, the name, "
                "and defaults for all others"
            ) from None
        except ValueError:
            pass  # it has no signature to look at
        try:
            model = found(name)
        except KServeKitError:
            raise
        except Exception as error:
            raise CannotStart(f"{target} raised {_said(error)}{_place(error, module)}") from error
        if inspect.iscoroutine(model):
            model.close()
            raise CannotStart(f"{target} is an async def: expected a plain def; a model's load() may be async")
        if not isinstance(model, model_class):
            kind = "None" if model is None else f"a {type(model).__name__}"
            raise CannotStart(f"{target} returned {kind}: expected a kserve.Model")
        return _initialized(model, target)

    return make


def _initialized(model: Any, target: str) -> Any:
    if not hasattr(model, "required_response_headers"):  # an attribute that only kserve.Model.__init__ sets
        raise CannotStart(
            f"{target} is not initialized: its class {type(model).__name__} has an __init__ without "
            "super().__init__(name); expected that as its first line"
        )
    return model


def _said(error: BaseException) -> str:
    """`KeyError: 'x'` in one line."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    if isinstance(error, ImportError):
        text = re.sub(r" \((/.*|unknown location)\)$", "", text)  # where the other module lies
    return ": ".join(filter(None, (type(error).__name__, " ".join(text.split()))))


def _place(error: BaseException, module: str) -> str:
    """` (file:line)`, the last in the author's own code; empty where the error never came by there."""
    places = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if _is_authors(frame, module)
    ]
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        places.append((error.filename, error.lineno))
    if not places:
        return ""
    file, line = places[-1]
    with contextlib.suppress(ValueError):
        file = str(Path(file).relative_to(Path.cwd()))
    return f" ({file}:{line})"


def _is_authors(frame: FrameType, module: str) -> bool:
    """Whether it is of the target's own package, or of what lies beside it: not ours, and no library's."""
    package = str(frame.f_globals.get("__name__")).partition(".")[0]
    file = Path(frame.f_code.co_filename)
    if package == "kservekit" or file == Path(__file__) or not file.is_absolute():
        return False
    if package == module.partition(".")[0]:
        return True
    library = {"site-packages", "dist-packages"} & set(file.parts)
    return not library and not file.is_relative_to(sysconfig.get_path("stdlib"))


if __name__ == "__main__":
    sys.exit(main())
