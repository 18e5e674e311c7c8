"""A request's headers, or its gRPC metadata, as one dict with lower case names; and those that a model answers with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from kservekit.codec.message import TIMEOUT_HEADER
from kservekit.codec.rest_v2 import JSON_LENGTH_HEADER
from kservekit.errors import InvalidInput, ModelError

ONCE = frozenset(
    {
        "authorization",
        "x-api-key",
        "content-encoding",
        "x-request-id",
        TIMEOUT_HEADER,
        JSON_LENGTH_HEADER,
    }
)
"""Which of two would count is what an attacker would like to choose. Not content-type, which KServe's own client sends
twice with binary tensors, and which v2 has no use for."""


_THE_SERVERS = frozenset(
    {
        "connection",
        "content-length",
        "date",
        "keep-alive",
        "kservekit-revision",
        "server",
        "server-timing",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        JSON_LENGTH_HEADER,
    }
)
"""What the server says itself; a transformer of KServe's hands on all that its predictor said."""

_NAME, _VALUE = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+"), re.compile(r"[\t\x20-\x7e\x80-\xff]*")


def models_own(headers: Mapping[str, str], model: str) -> dict[str, str]:
    """The headers that a model's hooks set, in lower case; ModelError for one that HTTP has no form for."""
    found = {str(name).lower(): str(value) for name, value in headers.items()}
    for name, value in found.items():
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ModelError(f"model {model!r} set the header {name!r} to {value!r}, which HTTP has no form for")
    return {name: value for name, value in found.items() if name not in _THE_SERVERS}


def as_dict(pairs: Sequence[tuple[str, str]], once: frozenset[str] = ONCE) -> dict[str, str]:
    """Repeated headers joined with commas (RFC 9110, section 5.3); InvalidInput for one that may come only once."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    found = {}
    for name, value in pairs:
        if name not in found:
            found[name] = value
        elif name in once:
            raise InvalidInput(f"the header {name} is there more than once: expected it once")
        else:
            found[name] = f"{found[name]},{value}"
    return found


def seconds(headers: Mapping[str, str]) -> float | None:
    """How long the caller says that it waits, on any wire; None where it does not say."""
    asked = headers.get(TIMEOUT_HEADER)
    if asked is None:
        return None
    if not (asked.isascii() and asked.isdigit() and 0 < len(asked) < 10):
        raise InvalidInput(f"{TIMEOUT_HEADER} is {asked[:40]!r}: expected whole milliseconds, such as 500")
    return int(asked) / 1000
