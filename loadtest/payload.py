"""What is sent: arrays that fit a model's own metadata, or files; encoded once for a wire, and not for each request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kservekit.codec import grpc as grpc_codec
from kservekit.codec import rest_v1, rest_v2
from kservekit.codec.json_values import loads
from kservekit.codec.message import Request
from kservekit.errors import CannotStart, KServeKitError
from kservekit.loadtest.shapes import meant
from kservekit.loadtest.target import Target
from kservekit.tensors import DATATYPES, ModelSpec, Tensors, TensorSpec, object_array

DISTINCT = 8
"""Generated payloads, so that a cache of answers does not answer for the model."""
UNKNOWN = 16
"""Elements where a model takes any number; of the first dimension, one."""

JSON = rest_v2.headers(None)


@dataclass(frozen=True)
class Payload:
    """One request's body as it goes over the wire; by gRPC a whole message."""

    name: str
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Message:
    """A request as a wire sends it, but for its own id: `head` comes before that, `body` after it."""

    head: bytes
    body: bytes


def generated(spec: ModelSpec, target: Target, *, shapes: Mapping[str, Sequence[int]]) -> list[Payload]:
    """CannotStart where the model declares no inputs, or `shapes` has one that it does not take."""
    if not spec.inputs:
        raise CannotStart(f"model {target.model!r} does not say what it takes: give payloads as files (--payload FILE)")
    names = [one.name for one in spec.inputs]
    for name in shapes:
        if name not in names:
            raise CannotStart(f"--input {name!r} is none of the model's; {meant(name, names)}")
    draw = np.random.default_rng(0)
    found = []
    for _ in range(DISTINCT):
        tensors = {}
        for one in spec.inputs:
            if not one.optional or one.name in shapes:
                tensors[one.name] = _drawn(one, _shape(one, shapes.get(one.name)), draw)
        found.append(_encoded("generated", tensors, target))
    return found


def from_files(files: Iterable[Path], spec: ModelSpec, target: Target) -> list[Payload]:
    """JSON: a v1 or v2 body. .npz: arrays by the inputs' names. .npy: the only input. Any other: its bytes are it."""
    found = []
    for file in files:
        try:
            found.append(_from_file(file, spec, target))
        except OSError as error:
            raise CannotStart(f"the payload {file} cannot be read: {error.strerror}") from None
        except (KServeKitError, ValueError) as error:
            raise CannotStart(f"the payload {file} is of no use: {error}") from None
    if not found:
        raise CannotStart("there are no payloads: expected at least one file")
    return found


def _from_file(file: Path, spec: ModelSpec, target: Target) -> Payload:
    kind = file.suffix.lower()
    if kind == ".json":
        body = file.read_bytes()
        message = loads(body)
        is_v1 = isinstance(message, dict) and "instances" in message
        if is_v1 == (target.wire == "v1") and target.wire in ("v1", "v2-json"):
            return Payload(file.name, body, JSON)  # as it is, down to its spaces
        request = rest_v1.decode_request(body, spec) if is_v1 else rest_v2.decode_request(body)
        return _encoded(file.name, request.tensors, target)
    if kind == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            return _encoded(file.name, dict(arrays), target)
    only = _only(spec, file)
    if kind == ".npy":
        return _encoded(file.name, {only.name: np.load(file, allow_pickle=False)}, target)
    if only.datatype != "BYTES":
        raise CannotStart(f"its bytes are no {only.datatype}: expected .json, .npz or .npy")
    content = object_array([file.read_bytes()]).reshape((1,) * max(1, len(only.shape)))
    return _encoded(file.name, {only.name: content}, target)


def _only(spec: ModelSpec, file: Path) -> TensorSpec:
    if len(spec.inputs) != 1:
        names = ", ".join(repr(one.name) for one in spec.inputs) or "none that it declares"
        raise CannotStart(f"it is one input and the model has {names}: expected .json or .npz ({file.suffix})")
    return spec.inputs[0]


def _encoded(name: str, tensors: Tensors, target: Target) -> Payload:
    request = Request(tensors, model=target.model, version=target.version)
    if target.wire == "v2-grpc":
        from kservekit.oip.triton_messages import messages

        return Payload(name, grpc_codec.encode_request(request, messages), {})
    if target.wire == "v1":
        return Payload(name, rest_v1.encode_request(tensors), JSON)
    binary = target.wire == "v2-binary"
    parts, json_length = rest_v2.encode_request(request, binary=binary, binary_answer=binary)
    return Payload(name, b"".join(parts), rest_v2.headers(json_length))


def _shape(one: TensorSpec, asked: Sequence[int] | None) -> tuple[int, ...]:
    if asked is not None:
        if not one.fits(asked):
            raise CannotStart(f"--input {one.name!r} has shape {list(asked)}: the model takes {list(one.shape)}")
        return tuple(asked)
    return tuple(size if size >= 0 else UNKNOWN if at else 1 for at, size in enumerate(one.shape))


def _drawn(one: TensorSpec, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    """What could be a prepared picture or a row of features."""
    dtype = DATATYPES[one.datatype]
    if one.datatype == "BYTES":
        count = int(np.prod(shape))
        return object_array([b"kservekit %08x" % number for number in draw.integers(2**32, size=count)]).reshape(shape)
    if dtype.kind in "iub":
        return draw.integers(2 if dtype.kind == "b" else 10, size=shape).astype(dtype)
    return draw.standard_normal(shape, dtype=np.float32).astype(dtype)
