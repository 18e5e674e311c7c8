"""Settings from KSERVEKIT_* variables: one frozen dataclass a concern, the unit in each name.

A field `x` of a class with prefix `KSERVEKIT_Y_` is read from `KSERVEKIT_Y_X`. `check` reports every bad
variable at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from kservekit.errors import CannotStart


@dataclass(frozen=True)
class ServerSettings:
    prefix: ClassVar[str] = "KSERVEKIT_"

    host: str = "0.0.0.0"  # noqa: S104 - as KServe listens; a pod's network is its own
    """The address that REST and gRPC listen on; 127.0.0.1 on a machine that is not a pod."""
    max_body_bytes: int = 64 * 1024 * 1024
    """The largest body taken over REST; gRPC has KServe's --grpc_max_receive_message_length."""
    max_json_bytes: int = 8 * 1024 * 1024
    """The most of a body that may be JSON, and of a gRPC message what is not raw contents; also of the lengths,
    4 bytes each, of raw BYTES elements. While these are read the process does nothing else, and they take many times
    their size."""
    max_header_bytes: int = 65536
    """The largest head of a REST request, its line and its headers; the most metadata of a gRPC call, 32 bytes a field
    more, as HTTP/2 counts them."""
    max_tensors: int = 256
    """The most inputs of one request."""
    header_timeout_s: float = 10.0
    """How long a REST request's head may take to arrive, and a new gRPC connection may say nothing."""
    body_timeout_s: float = 30.0
    """How long its body, or a gRPC message, may take."""
    timeout_s: float = 60.0
    """How long a request may take where its caller does not say less."""
    lame_duck_ms: int = 5000
    """After SIGTERM: how long requests are still taken while readiness says no, so that the last ones can come that
    were on their way. Ctrl-C does not wait."""
    handler_queue: int = 256
    """How many requests may wait for a thread of --max_asyncio_workers."""
    max_concurrency: int = 0
    """The most requests at once; 0: no limit."""
    tenant_header: str = ""
    """The header that names a request's tenant; without one it is the principal."""
    tenant_max_concurrency: int = 0
    """The most requests at once of each tenant; 0: no limit."""
    repository_api: bool = False
    """Whether /v2/repository/models/{name}/load and unload are open."""
    server_timing: bool = False
    """Whether answers say where their time went (Server-Timing)."""
    revision: str = ""
    """The value of the answers' kservekit-revision header where Knative's K_REVISION is not set."""
    predictor_model: str = ""
    """The predictor's name for the model, where it is not the name that the transformer serves it by."""


@dataclass(frozen=True)
class BackendSettings:
    prefix: ClassVar[str] = "KSERVEKIT_BACKEND_"

    retries: int = 2
    """How often a call is tried again that found its backend unavailable; KServe's --predictor_request_retries
    goes before it."""
    retry_ratio: float = 0.2
    """Retries may be this share of all calls, so that a backend in trouble is not given more of it."""
    breaker_failures: int = 5
    """After so many unavailable answers in a row calls fail at once; 0: never."""
    breaker_cooldown_s: float = 1.0
    """How long they do, before one is let through to see."""
    shared_memory_bytes: int = 256 * 2**20
    """The most shared memory for tensors to a Triton in the same pod (localhost, gRPC), and what is taken of each GPU
    that some of them lie on; 0: none."""
    forward_headers: tuple[str, ...] = ()
    """Header names that travel on to the backend, besides W3C trace context, B3, x-request-id and authorization."""


@dataclass(frozen=True)
class IdentitySettings:
    prefix: ClassVar[str] = "KSERVEKIT_IDENTITY_"

    required: bool = False
    """Whether a request without a valid credential is refused."""
    trust_headers: bool = False
    """Whether headers say who asks. For a server that only a mesh or a proxy reaches, because anyone can send them."""
    principal_header: str = "x-forwarded-user"
    """The name of who asks, as the proxy sets it."""
    roles_header: str = "x-forwarded-groups"
    """Their roles, with commas between."""
    jwt_keys: str = ""
    """A file with the public keys that tokens (JWT) are verified with: a JWKS document, or PEM.

    Read again when it changes, as api_keys is; in Kubernetes that needs a mount without subPath.
    """
    jwt_issuer: str = ""
    """What a token's iss must be; empty: anything, if the key is right."""
    jwt_audience: str = ""
    """What a token's aud must have; must be set where jwt_keys is."""
    jwt_roles_claim: str = "roles"
    """The claim with the roles: a list, or a string with spaces between, as OAuth's scope is."""
    api_keys: str = ""
    """A file with a line for each API key: its SHA-256 in hex, a principal, and roles with commas between, if any.

    The keys must be long and random, such as `openssl rand -hex 32` makes them.
    """
    admin_role: str = "admin"
    """The role that a server's own endpoints ask for."""
    leeway_s: int = 10
    """How far the issuer's clock may be from this one."""


@dataclass(frozen=True)
class TritonSettings:
    prefix: ClassVar[str] = "KSERVEKIT_TRITON_"

    url: str = "localhost:8001"
    """Where Triton listens: its gRPC port, or `http://name:8000`. `grpcs://` and `https://` for TLS."""
    model: str = ""
    """Triton's name for the model, where it is not the served one."""
    models: tuple[str, ...] = ()
    """Several of Triton's models, for `kservekit.predictors.triton:models`: each by its name, or as `served=name`."""
    version: str = ""
    """The version in Triton's repository; empty: Triton's version policy decides."""
    timeout_s: float = 60.0
    """Budget of one call; keep it below Knative's."""


@dataclass(frozen=True)
class ResponseCacheSettings:
    prefix: ClassVar[str] = "KSERVEKIT_RESPONSE_CACHE_"

    ttl_s: int = 0
    """How long an answer is given again to the same request; 0: never."""
    max_bytes: int = 256 * 2**20
    """Of answers kept in this process; those that were used last stay."""
    redis_url: str = ""
    """A Redis to keep them in instead, which all replicas share: redis://, rediss:// or unix://."""
    redis_timeout_ms: int = 100
    """How long Redis may take before a request goes on without it."""
    vary: tuple[str, ...] = ()
    """Headers that an answer depends on besides the request itself."""


@dataclass(frozen=True)
class OnnxSettings:
    prefix: ClassVar[str] = "KSERVEKIT_ONNX_"

    model_path: str = "/mnt/models/model.onnx"
    """The model's file; KServe's storage initializer puts models into /mnt/models."""
    threads: int = 0
    """Threads of one inference; 0: one for each CPU that the container may use."""
    providers: tuple[str, ...] = ("auto",)
    """ONNX Runtime's execution providers, the preferred one first, such as cuda,cpu; auto: TensorRT, CUDA and CPU, as
    far as they are installed and work."""
    batch_rows: int = 0
    """Callers who come at about the same time share a run of at most so many rows; 0: each has his own."""
    batch_delay_ms: int = 2
    """How long a batch that is not full waits for more callers while the engine is idle."""


@dataclass(frozen=True)
class TensorRTSettings:
    prefix: ClassVar[str] = "KSERVEKIT_TENSORRT_"

    model_path: str = "/mnt/models/model.plan"
    """A serialized engine (.plan, .engine), or an .onnx file that an engine is built from."""
    min_batch: int = 1
    """The fewest rows that an engine built from ONNX takes, where the file leaves its first size open."""
    opt_batch: int = 0
    """The rows that its kernels are chosen for; 0: as many as it takes."""
    max_batch: int = 8
    """The most rows that it takes; memory is set aside for so many."""
    sizes: str = ""
    """Other sizes that the file leaves open, by its own names or as input[axis]: height=224,tokens=1:128:512 (one
    size, or smallest, best and largest)."""
    precision: tuple[str, ...] = ()
    """What layers may compute in beside FP32: fp16, bf16, int8, fp8. For TensorRT 10; TensorRT 11 and TensorRT for RTX
    compute in the datatypes that the file has."""
    engine_cache: str = "auto"
    """The folder where engines that were built are kept; auto: `engines` in the cache folder; empty: none is."""
    contexts: int = 1
    """How many runs the GPU is given at once; each has buffers of its own."""
    cuda_graphs: bool = False
    """Whether a run is recorded once and played from then on: in TensorRT for an engine of fixed shapes."""
    batch_rows: int = 0
    """Callers who come at about the same time share a run of at most so many rows; 0: each has his own."""
    batch_delay_ms: int = 2
    """How long a batch that is not full waits for more callers while a context is idle."""


@dataclass(frozen=True)
class ImageSettings:
    prefix: ClassVar[str] = "KSERVEKIT_IMAGE_"

    size: int = 224
    """The square that the model takes, in pixels a side."""
    resize: int = 256
    """The shorter side before the centre is cropped, in pixels."""
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    """Subtracted from each channel's 0 to 255 (default: ImageNet's statistics)."""
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    """Divides each channel afterwards."""
    layout: str = "NCHW"
    """NCHW or NHWC."""
    datatype: str = "FP32"
    """FP32; or UINT8, the pixels as they are and a quarter of the bytes, for a model that has a mean and a deviation of
    its own, such as `kservekit repository build --normalize` makes."""
    labels: str = ""
    """A text file with one label a line, in the model's class order."""
    top: int = 5
    """How many classes are answered."""
    softmax: bool = True
    """Whether the model answers logits, to be turned into probabilities."""
    max_pixels: int = 50_000_000
    """The largest picture decoded, in pixels; a small file can hold a huge one."""
    max_images: int = 64
    """The most pictures in one request."""
    decoders: int = 0
    """How many pictures are decoded at once, and so in memory at their full size; 0: as many as the container may use
    CPUs."""


ALL = (
    ServerSettings,
    BackendSettings,
    IdentitySettings,
    ResponseCacheSettings,
    TritonSettings,
    OnnxSettings,
    TensorRTSettings,
    ImageSettings,
)

NOT_IN_A_CLASS = ("KSERVEKIT_CACHE_DIR", "KSERVEKIT_TRITONSERVER", "KSERVEKIT_REQUIRE_SERVERS")
"""The first is read here, the others by kservekit.local."""

Settings = TypeVar("Settings")


def read(settings: type[Settings], environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings as the environment has them; CannotStart names every variable that is wrong."""
    values, wrong = _parse(settings, environ)
    if wrong:
        raise CannotStart("\n".join(wrong))
    return settings(**values)


def check(environ: Mapping[str, str] = os.environ) -> list[str]:
    """CannotStart for all bad variables together; returns a warning for each KSERVEKIT_* that nothing reads.

    Only a warning, because Kubernetes puts such variables into a pod itself for a Service called kservekit-x.
    """
    wrong = [line for settings in ALL for line in _parse(settings, environ)[1]]
    if wrong:
        raise CannotStart("\n".join(wrong))
    known = {variable(settings, field.name) for settings in ALL for field in dataclasses.fields(settings)}
    known.update(NOT_IN_A_CLASS)
    warnings = []
    for name in sorted(environ):
        if name.startswith("KSERVEKIT_") and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            warnings.append(f"{name} is set and nothing reads it" + (f"; did you mean {close[0]}?" if close else ""))
    return warnings


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where what can be made again is kept: KSERVEKIT_CACHE_DIR, else XDG_CACHE_HOME/kservekit, else
    ~/.cache/kservekit. CannotStart for a user without a home folder."""
    try:
        if own := environ.get("KSERVEKIT_CACHE_DIR"):
            return Path(own).expanduser().absolute()
        shared = environ.get("XDG_CACHE_HOME", "")
        # The XDG specification wants a relative path here to be ignored.
        return (Path(shared) if Path(shared).is_absolute() else Path.home() / ".cache") / "kservekit"
    except RuntimeError:
        raise CannotStart(
            "this user has no home folder to keep a cache in; set KSERVEKIT_CACHE_DIR to a folder that can be written"
        ) from None


def variable(settings: type[Any], field: str) -> str:
    return f"{settings.prefix}{field.upper()}"


def _parse(settings: type[Any], environ: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    values, wrong = {}, []
    types = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        name = variable(settings, field.name)
        if name not in environ:
            continue
        parse, expected = _PARSERS[types[field.name]]
        try:
            values[field.name] = parse(environ[name].strip())
        except ValueError:
            wrong.append(f"{name} is {environ[name]!r}: expected {expected}, such as {_example(field.default)}")
    return values, wrong


def _boolean(text: str) -> bool:
    found = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    try:
        return found[text.lower()]
    except KeyError:
        raise ValueError from None


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


_PARSERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    str: (str, "text"),
    int: (_count, "a whole number"),
    float: (_positive, "a number above 0"),
    bool: (_boolean, "true or false"),
    tuple[float, ...]: (_numbers, "numbers with commas between"),
    tuple[str, ...]: (_names, "names with commas between"),
}


def _example(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{item:g}" for item in value) or "x-tenant,x-user"
    return str(value).lower() if isinstance(value, bool) else f"{value}"
