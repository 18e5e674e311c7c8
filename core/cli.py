"""The command `kservekit`: one function a verb; each imports what it needs."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence

from kservekit import __version__, config
from kservekit.errors import KServeKitError
from kservekit.local.screen import CannotWrite, flush, put
from kservekit.target import load_target

EXAMPLES = """\
examples:
  kservekit demo
  kservekit serve doubler.py:Doubler --model_name doubler
  kservekit repository build model.onnx --into models
  kservekit lint inferenceservice.yaml
  kservekit loadtest --url http://127.0.0.1:8080 --model doubler --rate 100 --duration 10
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
        "repository": (
            repository,
            "a model's file to a Triton model repository, and what is wrong with one",
        ),
        "triton": (triton, "a running Triton: its models, load and unload, statistics, trace and log settings"),
        "engine": (engine, "an ONNX file to a TensorRT engine, ahead of time"),
        "lint": (lint, "KServe files, anybody's: what a cluster would ignore, rewrite or refuse, and the way out"),
        "render": (render, "an overlay as plain YAML that KServe leaves as it is, for a version and a mode"),
        "loadtest": (
            loadtest,
            "a load on a model, open loop or closed, and whether it holds an SLO: the exit code says",
        ),
        "bench": (bench, "the side-by-side benchmarks against stock kserve.ModelServer and Triton, on this machine"),
    }
    listed = "\n".join(f"  {name:12}{text}" for name, (_, text) in verbs.items())
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
    # The first process of a container gets no signal without a handler, and there is none until the server is up.
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
    # kserve reads sys.argv when it is imported, so it is imported here, and its complaints are about the flags.
    sys.argv = ["kservekit serve", *arguments[1:]]
    if not arguments or {"-h", "--help"} & set(arguments):
        sys.argv = sys.argv[:1]
        from kservekit.serving import flags_parser

        parser = flags_parser()
        parser.prog = "kservekit serve TARGET"
        put(f"{parser.format_help()}\nTARGET is module:Class or path.py:Class.\n\n{SERVE_EXAMPLES}", sys.stdout)
        return 0 if arguments else 2
    from kservekit.serving import serve as run

    run(load_target(arguments[0]), argv=arguments[1:])
    return 0


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


def repository(arguments: list[str]) -> int:
    from kservekit.predictors.repository_command import run

    return run(arguments, lambda line: put(line, sys.stdout))


def triton(arguments: list[str]) -> int:
    from kservekit.predictors.triton_command import run

    return run(arguments, lambda line: put(line, sys.stdout))


def engine(arguments: list[str]) -> int:
    from kservekit.predictors.tensorrt_command import run

    return run(arguments, lambda line: put(line, sys.stdout))


def lint(arguments: list[str]) -> int:
    from kservekit.manifests.lint.command import run

    return run(arguments, lambda line: put(line, sys.stdout))


def render(arguments: list[str]) -> int:
    from kservekit.manifests.render_command import run

    return run(arguments, lambda line: put(line, sys.stdout), lambda line: put(line, sys.stderr))


def loadtest(arguments: list[str]) -> int:
    # locust patches the process for gevent, which has to come before most imports.
    from kservekit.loadtest.command import run

    return run(arguments, lambda line: put(line, sys.stdout), lambda line: put(line, sys.stderr))


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


if __name__ == "__main__":
    sys.exit(main())
