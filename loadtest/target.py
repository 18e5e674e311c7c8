"""Where the load goes, and what goes with it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, quote, urlsplit

from kservekit.errors import CannotStart, KServeKitError
from kservekit.loadtest.shapes import meant

REVISION = "kservekit-revision"
"""The header, or gRPC's trailing metadata, in which an answer says its arm of a canary."""

ATTEMPTS = "x-envoy-attempt-count"
"""In which a proxy says how often it has asked before it had this answer; Envoy does where it is told to."""

PROBE_TIMEOUT_S = 10.0

WIRES = ("v1", "v2-json", "v2-binary", "v2-grpc")

_SCHEMES = {"http": (False, 80), "https": (True, 443), "grpc": (False, 80), "grpcs": (True, 443)}
_VISIBLE = re.compile(r"[\x20-\x7e]*")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class CannotTest(KServeKitError):
    """The target does not answer, or not as what it is said to be: nothing was measured."""


@dataclass(frozen=True)
class Target:
    url: str
    """`http://host:port`, or `https://`; for gRPC `grpc://` and `grpcs://` as well."""
    model: str
    wire: str
    version: str = ""
    host: str = ""
    """What the Host header (gRPC: :authority) says, where an ingress tells InferenceServices by it."""
    headers: dict[str, str] = field(default_factory=dict)
    ca_file: str = ""
    """The certificates to trust; the system's where empty."""
    insecure: bool = False
    """Whether certificates are not looked at."""
    timeout_s: float = 60.0
    """Of one request."""

    def __post_init__(self) -> None:
        if self.wire not in WIRES:
            raise CannotStart(f"--wire is {self.wire!r}: {meant(self.wire, list(WIRES))}")
        if not self.model:
            raise CannotStart("--model is missing: the name that the model is served by")
        parts = self._parts
        if parts.scheme not in _SCHEMES or not parts.hostname:
            raise CannotStart(f"--url is {self.url!r}: expected such as http://photo.default.example.com")
        if parts.scheme.startswith("grpc") and self.wire != "v2-grpc":
            raise CannotStart(f"--url is {self.url!r}, and --wire is {self.wire}: expected http:// or https://")
        if self.insecure and self.wire == "v2-grpc":
            raise CannotStart("--insecure: gRPC has no such thing; --ca-file names the certificates to trust")
        if parts.path.strip("/") and self.wire == "v2-grpc":
            raise CannotStart(f"--url is {self.url!r}: gRPC has no paths")
        if self.ca_file and not Path(self.ca_file).is_file():
            raise CannotStart(f"--ca-file is {self.ca_file!r}: no such file")
        for name, value in self.headers.items():
            if not _TOKEN.fullmatch(name) or not _VISIBLE.fullmatch(value):
                raise CannotStart(f"--header is {name!r}: expected NAME: VALUE in visible ASCII")
        if not 0 < self.timeout_s < 3600:
            raise CannotStart(f"--timeout is {self.timeout_s:g}: expected seconds, up to an hour")

    @property
    def _parts(self) -> SplitResult:
        try:
            parts = urlsplit(self.url)
            parts.port  # noqa: B018  raises for what is no port
        except ValueError as error:
            raise CannotStart(f"--url is {self.url!r}: {error}") from None
        return parts

    @property
    def tls(self) -> bool:
        return _SCHEMES[self._parts.scheme][0]

    @property
    def address(self) -> tuple[str, int]:
        return self._parts.hostname or "", self._parts.port or _SCHEMES[self._parts.scheme][1]

    @property
    def authority(self) -> str:
        return self.host or self._parts.netloc.rpartition("@")[2]

    @property
    def probe_timeout_s(self) -> float:
        """Of a question about the model, which a server answers at once."""
        return min(self.timeout_s, PROBE_TIMEOUT_S)

    @property
    def model_path(self) -> str:
        """Of the model's state: readiness and metadata."""
        name = quote(self.model, safe="")
        version = f"/versions/{quote(self.version, safe='')}" if self.version else ""
        return f"{self._parts.path.rstrip('/')}/v2/models/{name}{version}"

    @property
    def v1_path(self) -> str:
        return f"{self._parts.path.rstrip('/')}/v1/models/{quote(self.model, safe='')}"


def attempts(said: object) -> int:
    """0 where nobody says it."""
    text = str(said or "")
    return int(text) if text.isdecimal() else 0


def token_from(variable: str) -> dict[str, str]:
    """The header for a bearer token in an environment variable, where ps does not show it."""
    token = os.environ.get(variable, "").strip()
    if not token:
        raise CannotStart(f"--token-env is {variable}: that variable is not set, or empty")
    return {"authorization": f"Bearer {token}"}
