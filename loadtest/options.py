"""What a load test can be told: by flags, the same for `kservekit loadtest` and for locust, or by a profile."""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kservekit.errors import CannotStart
from kservekit.loadtest import document, shapes, slo
from kservekit.loadtest.shapes import Load
from kservekit.loadtest.slo import Slo
from kservekit.loadtest.target import WIRES, Target, token_from

PROFILE_KEYS = (
    *("url", "model", "version", "wire", "host_header", "headers", "timeout_s"),
    *("rate", "shape", "seed", "users", "think_s", "duration_s", "max_in_flight", "trace_share", "triton"),
    *("metrics_port", "otlp"),
    *("payloads", "inputs", "slo"),
)


@dataclass(frozen=True)
class Options:
    target: Target
    rate: float | None
    """None: a closed loop."""
    shape: str
    seed: int | None
    users: int
    think_s: float
    duration_s: float
    max_in_flight: int
    slo: Slo
    triton: str = ""
    trace_share: float = 0.0
    metrics_port: int | None = None
    otlp: str = ""
    payloads: tuple[Path, ...] = ()
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def load(self, rate: float | None = None) -> Load:
        return shapes.load(self.shape, rate or self.rate, self.duration_s, seed=self.seed)

    @property
    def open_loop(self) -> bool:
        return self.rate is not None or self.shape.startswith("replay:")


def add_flags(parser: Any) -> None:
    """Those that locust has no flag of its own for."""
    target = parser.add_argument_group("target")
    target.add_argument("--model", metavar="NAME", help="the name that the model is served by")
    target.add_argument("--model-version", metavar="V", help="one version of it (default: the server's choice)")
    target.add_argument("--wire", choices=WIRES, help="protocol (default: v2-json)")
    target.add_argument("--host-header", metavar="HOST", help="what the Host header says, for an ingress")
    target.add_argument("--token-env", metavar="NAME", help="environment variable with a bearer token")
    target.add_argument("--header", action="append", metavar="'NAME: VALUE'", help="of each request; several times")
    target.add_argument("--ca-file", metavar="FILE", help="certificates to trust, PEM (default: the system's)")
    target.add_argument("--insecure", action="store_true", help="trust any certificate")
    target.add_argument("--timeout", type=float, metavar="S", help="of a request (default: 60)")
    load = parser.add_argument_group("load")
    load.add_argument("--rate", type=float, metavar="N", help="open loop: requests a second, whatever becomes of them")
    load.add_argument("--shape", metavar="SHAPE", help="how the rate runs (default: constant)")
    load.add_argument("--poisson", type=int, metavar="SEED", help="starts at random about the shape, from this seed")
    load.add_argument("--think", type=float, metavar="S", help="closed loop: pause after an answer (default: 0)")
    load.add_argument("--max-in-flight", type=int, metavar="N", help="requests at once, at most (default: 1000)")
    load.add_argument(
        "--payload", action="append", metavar="FILE", help=".json, .npz, .npy or the bytes; several times"
    )
    load.add_argument(
        "--input", action="append", metavar="NAME=1,3,224,224", help="shape of a generated input; several times"
    )
    load.add_argument(
        "--trace-share",
        type=float,
        metavar="SHARE",
        help="of the requests that ask for spans by traceparent (default: 0)",
    )
    load.add_argument("--triton", metavar="HOST:8001", help="gRPC port of a Triton whose statistics go into the report")
    load.add_argument("--metrics-port", type=int, metavar="PORT", help="the run's own figures, for Prometheus to ask")
    load.add_argument("--otlp", metavar="URL", help="the same by OTLP's gRPC, such as http://localhost:4317")
    load.add_argument("--slo", metavar="FILE", help="what the run is held to, TOML or YAML")


def from_locusts_page(given: argparse.Namespace) -> argparse.Namespace:
    """Its form sends what was left out as an empty text."""
    found = {key: None if value in ("", []) else value for key, value in vars(given).items()}
    for key in ("header", "payload", "input"):
        if isinstance(found.get(key), str):
            found[key] = [found[key]]
    return argparse.Namespace(**found)


def resolve(
    given: argparse.Namespace,
    *,
    url: str | None,
    users: int | None,
    duration_s: float | None,
    profile: Path | None = None,
) -> Options:
    """Flags before the profile, and the profile before defaults. CannotStart for whatever cannot be."""
    said = _profile(profile) if profile else {}

    def chosen(flag: Any, key: str, default: Any = None) -> Any:
        return flag if flag is not None else said.get(key, default)

    where = f"{profile}: " if profile else ""
    found_url = chosen(url, "url")
    if not found_url:
        raise CannotStart("no --url, and no url in a profile: expected such as http://127.0.0.1:8080")
    headers = {**_text_map(said.get("headers", {}), f"{where}headers"), **_headers(given.header or [])}
    if given.token_env:
        headers |= token_from(given.token_env)
    target = Target(
        str(found_url),
        str(chosen(given.model, "model", "")),
        str(chosen(given.wire, "wire", "v2-json")),
        version=str(chosen(given.model_version, "version", "")),
        host=str(chosen(given.host_header, "host_header", "")),
        headers=headers,
        ca_file=given.ca_file or "",
        insecure=given.insecure,
        timeout_s=_positive(chosen(given.timeout, "timeout_s", 60.0), "s", f"{where}timeout_s"),
    )
    rate = chosen(given.rate, "rate")
    seed = chosen(given.poisson, "seed")
    port = chosen(given.metrics_port, "metrics_port")
    duration = chosen(duration_s, "duration_s", math.inf)
    options = Options(
        target,
        rate=None if rate is None else _positive(rate, "per second", f"{where}rate"),
        shape=str(chosen(given.shape, "shape", "constant")),
        seed=None if seed is None else _whole(seed, f"{where}seed", least=0),
        users=_whole(chosen(users, "users", 1), f"{where}users"),
        think_s=document.number(chosen(given.think, "think_s", 0.0), "s", f"{where}think_s"),
        duration_s=duration if duration == math.inf else _positive(duration, "s", f"{where}duration_s"),
        max_in_flight=_whole(chosen(given.max_in_flight, "max_in_flight", 1000), f"{where}max_in_flight"),
        slo=_slo(given.slo, said, where),
        trace_share=document.number(chosen(given.trace_share, "trace_share", 0.0), "share", f"{where}trace_share"),
        triton=str(chosen(given.triton, "triton", "")),
        metrics_port=None if port is None else _whole(port, f"{where}metrics_port", least=0),
        otlp=_receiver(str(chosen(given.otlp, "otlp", "")), f"{where}otlp"),
        payloads=tuple(map(Path, given.payload)) if given.payload else _files(said, profile),
        inputs={**_shapes(said.get("inputs", {}), where), **dict(map(_input, given.input or []))},
    )
    if options.open_loop:
        options.load()  # says what is wrong with it
    return options


def _profile(file: Path) -> dict[str, Any]:
    found = document.read(file)
    document.check_keys(found, PROFILE_KEYS, str(file))
    if "payloads" not in found and "inputs" not in found:
        raise CannotStart(
            f"{file} has no payloads: expected files under `payloads`, or shapes under `inputs`, which may be empty"
        )
    return found


def _files(said: Mapping[str, Any], profile: Path | None) -> tuple[Path, ...]:
    """Beside the profile, where their paths are not absolute."""
    if profile is None or "payloads" not in said:
        return ()
    files = said["payloads"]
    if not isinstance(files, list) or not files or not all(isinstance(file, str) for file in files):
        raise CannotStart(f"{profile}: payloads is {files!r}: expected at least one file")
    return tuple(profile.parent / file for file in files)


def _slo(flag: str | None, said: Mapping[str, Any], where: str) -> Slo:
    if flag is not None:
        return slo.read(Path(flag))
    found = said.get("slo", {})
    if not isinstance(found, dict):
        raise CannotStart(f"{where}slo is {found!r}: expected keys and values")
    return slo.parse(found, f"{where}slo")


def _receiver(url: str, where: str) -> str:
    if url and not url.startswith(("http://", "https://")):
        raise CannotStart(f"{where} is {url!r}: expected such as http://localhost:4317, of a receiver by gRPC")
    try:
        installed = not url or importlib.util.find_spec("opentelemetry.exporter.otlp.proto.grpc")
    except ModuleNotFoundError:
        installed = None
    if not installed:
        raise CannotStart(f"{where} is {url!r}, and its exporter is not installed: pip install 'kservekit[otlp]'")
    return url


def _headers(lines: Sequence[str]) -> dict[str, str]:
    found = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise CannotStart(f"--header is {line!r}: expected 'NAME: VALUE'")
        found[name.strip().lower()] = value.strip()
    return found


def _text_map(found: Any, where: str) -> dict[str, str]:
    if not isinstance(found, dict):
        raise CannotStart(f"{where} is {found!r}: expected names and values")
    return {str(name).lower(): str(value) for name, value in found.items()}


def _input(text: str) -> tuple[str, tuple[int, ...]]:
    name, equals, shape = text.partition("=")
    try:
        if not equals or not name:
            raise ValueError
        return name, tuple(_whole(int(size), f"--input {name}", least=0) for size in filter(None, shape.split(",")))
    except ValueError:
        raise CannotStart(f"--input is {text!r}: expected NAME=SHAPE, such as image=1,3,224,224") from None


def _shapes(found: Any, where: str) -> dict[str, tuple[int, ...]]:
    if not isinstance(found, dict) or not all(isinstance(shape, list) for shape in found.values()):
        raise CannotStart(f"{where}inputs is {found!r}: expected shapes by name, such as image = [1, 3, 224, 224]")
    return {
        str(name): tuple(_whole(size, f"{where}inputs.{name}", least=0) for size in shape)
        for name, shape in found.items()
    }


def _whole(value: Any, where: str, *, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise CannotStart(f"{where} is {value!r}: expected a whole number, {least} or more")
    return value


def _positive(value: Any, unit: str, where: str) -> float:
    found = document.number(value, unit, where)
    if not found:
        raise CannotStart(f"{where} is {value!r}: expected more than 0")
    return found
