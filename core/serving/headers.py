"""A request's headers, or its gRPC metadata, as one dict with lower case names."""

from __future__ import annotations

from collections.abc import Sequence

from kservekit.codec.message import TIMEOUT_HEADER
from kservekit.codec.rest_v2 import JSON_LENGTH_HEADER
from kservekit.errors import InvalidInput

ONCE = frozenset(
    {
        "authorization",
        "x-api-key",
        "content-encoding",
        "content-type",
        "x-request-id",
        TIMEOUT_HEADER,
        JSON_LENGTH_HEADER,
    }
)
"""Which of two would count is what an attacker would like to choose."""


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
