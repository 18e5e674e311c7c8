"""One name for everything that an answer depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import orjson

from kservekit.codec.message import Request
from kservekit.codec.raw import raw_bytes
from kservekit.tensors import datatype_of


def digest(request: Request, *parts: str) -> bytes:
    """SHA-256 over `parts` and the request's parameters, requested outputs and inputs, each with its length.

    Cryptographic, because callers who do not trust each other share the cache: nobody can make a request that is
    answered with another's. The order of the inputs does not count.
    """
    head: list[object] = [parts, request.parameters, request.outputs]
    contents = []
    for name in sorted(request.tensors):
        array = request.tensors[name]
        raw = raw_bytes(array, f"input {name!r}")
        head.append((name, datatype_of(array, f"input {name!r}"), array.shape, len(raw)))
        contents.append(raw)
    return _sha256(orjson.dumps(head, option=orjson.OPT_SORT_KEYS), contents)


def _sha256(head: bytes, contents: Iterable[bytes | memoryview]) -> bytes:
    found = hashlib.sha256(len(head).to_bytes(8, "little"))
    found.update(head)
    for content in contents:
        found.update(content)
    return found.digest()
