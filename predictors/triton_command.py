"""`kservekit triton`: what a running Triton has, and what an operator changes of it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from kservekit.errors import CannotStart
from kservekit.oip.triton_control import Setting, TritonControl

EXAMPLES = """\
examples:
  kservekit triton index
  kservekit triton load resnet --url triton.models:8001
  kservekit triton unload resnet                  waits for what is in flight
  kservekit triton statistics resnet --json
  kservekit triton trace resnet trace_rate=100 trace_count=50
  kservekit triton log log_verbose_level=1
"""

MOST_SECONDS = 86_400

PORT = 8001
"""Where Triton's gRPC listens if nobody says otherwise; 80, as a URL's would, nobody has Triton at."""

Put = Callable[[str], None]


def run(arguments: Sequence[str], put: Put) -> int:
    options = _parser().parse_args(arguments)
    put_found = _put_json if options.json else _put_table
    asyncio.run(_run(options, lambda found: put_found(found, put)))
    return 0


async def _run(options: argparse.Namespace, show: Callable[[Any], None]) -> None:
    scheme, _, host = options.url.rpartition("://")
    if scheme not in ("", "grpc", "grpcs"):
        raise CannotStart(f"--url is {options.url!r}: expected Triton's gRPC port, such as localhost:8001")
    control = TritonControl(_with_port(host), use_ssl=scheme == "grpcs", timeout_s=options.timeout)
    verbs: dict[str, Callable[[], Awaitable[Any]]] = {
        "index": lambda: control.index(ready=options.ready),
        "load": lambda: control.load(options.model, config_json=_config(options.config)),
        "unload": lambda: control.unload(options.model, with_dependents=options.with_dependents),
        "statistics": lambda: control.statistics(options.model),
        "trace": lambda: control.trace_settings(*_model_and(options.settings)),
        "log": lambda: control.log_settings({name: _typed(value) for name, value in _pairs(options.settings)}),
    }
    try:
        found = await verbs[options.verb]()
    finally:
        await control.close()
    if found is not None:
        show(found)


def _with_port(host: str) -> str:
    return host if re.search(r":[^\]]*$", host) else f"{host.removesuffix('/')}:{PORT}"


def _put_json(found: Any, put: Put) -> None:
    put(json.dumps(found if isinstance(found, dict) else [dataclasses.asdict(item) for item in found], indent=2))


def _put_table(found: Any, put: Put) -> None:
    rows: list[tuple[str, ...]]
    if isinstance(found, dict):
        rows = [(name, _shown(value)) for name, value in found.items()]
    else:
        names = tuple(field.name for field in dataclasses.fields(found[0])) if found else ("nothing",)
        rows = [names, *(tuple(_shown(value) for value in vars(item).values()) for item in found)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))] if rows else []
    for row in rows:
        put("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, dict):
        return " ".join(f"{key}:{count}" for key, count in sorted(value.items())) or "-"
    if isinstance(value, list):
        return ",".join(value)
    return _lower(value) or "-"


def _lower(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _config(path: Path | None) -> str:
    """The file's text, if it is JSON, which is what Triton takes here."""
    if path is None:
        return ""
    try:
        text = path.read_text()
        json.loads(text)
    except (OSError, ValueError) as error:
        raise CannotStart(f"--config {path} cannot be read as JSON: {error}") from None
    return text


def _model_and(words: list[str]) -> tuple[str, dict[str, Setting | None]]:
    """The model's name, if the first word is one, and what is to be changed. `name=` alone takes a setting back."""
    model = words[0] if words and "=" not in words[0] else ""
    return model, {name: _listed(value) for name, value in _pairs(words[1:] if model else words)}


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise CannotStart(f"{word!r} is no setting: expected name=value, such as log_verbose_level=1")
        found.append((name, value))
    return found


def _listed(value: str) -> Setting | None:
    return value.split(",") if "," in value else value or None


def _typed(value: str) -> str | int | bool:
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    return int(value) if value.isdecimal() and len(value) < 20 else value


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) <= MOST_SECONDS:
            return value
    raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, above 0 and up to {MOST_SECONDS}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kservekit triton",
        description="What a running Triton has, and what an operator changes of it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    everywhere = argparse.ArgumentParser(add_help=False)
    everywhere.add_argument(
        "--url", default=f"localhost:{PORT}", help=f"Triton's gRPC port (default: %(default)s; without a port: {PORT})"
    )
    everywhere.add_argument("--timeout", type=_seconds, default=60.0, metavar="S", help="of a call (default: 60)")
    everywhere.add_argument("--json", action="store_true", help="for a program")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=text, description=text, parents=[everywhere])

    verb("index", "the models of its repository").add_argument("--ready", action="store_true", help="ready ones alone")
    load = verb("load", "load a model, or load anew what changed on disk (--model-control-mode=explicit)")
    load.add_argument("model")
    load.add_argument("--config", type=Path, metavar="FILE", help="JSON in the place of its config.pbtxt")
    unload = verb("unload", "unload a model, and wait until what is in flight is answered")
    unload.add_argument("model")
    unload.add_argument("--with-dependents", action="store_true", help="an ensemble's models, too")
    statistics = verb("statistics", "requests, runs and mean times of a model, or of all")
    statistics.add_argument("model", nargs="?", default="")
    trace = verb("trace", "trace settings of a model or of the server, after the changes")
    trace.add_argument("settings", nargs="*", metavar="[MODEL] NAME=VALUE", help="`name=` takes the server's own back")
    log = verb("log", "log settings of the server, after the changes")
    log.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    return parser
