"""One name for everything that an answer depends on."""

from __future__ import annotations

from typing import Any

import orjson

from kservekit.codec.message import Request
from kservekit.codec.raw import raw_bytes
from kservekit.tensors import datatype_of

_hash: Any
try:
    from blake3 import blake3 as _hash
except ImportError:
    from hashlib import sha256 as _hash


def digest(request: Request, *parts: str) -> bytes:
    """32 bytes over `parts` and the request's parameters, requested outputs and inputs, each with its length.

    BLAKE3, or SHA-256 where that is not installed: cryptographic, because callers who do not trust each other share
    the cache, and nobody may make a request that is answered with another's. The order of the inputs does not count.
    """
    head: list[object] = [_hash.__name__, parts, request.parameters, request.outputs]
    contents = []
    for name in sorted(request.tensors):
        array = request.tensors[name]
        raw = raw_bytes(array, f"input {name!r}")
        head.append((name, datatype_of(array, f"input {name!r}"), array.shape, len(raw)))
        contents.append(raw)
    text = orjson.dumps(head, option=orjson.OPT_SORT_KEYS)
    found = _hash(len(text).to_bytes(8, "little") + text)
    for content in contents:
        found.update(content)
    return bytes(found.digest())
