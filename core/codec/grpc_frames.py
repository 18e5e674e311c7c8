"""What gRPC puts around its messages on HTTP/2, as its PROTOCOL-HTTP2.md says: frames, the time-out, a status' text."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from urllib.parse import quote_from_bytes, unquote

from kservekit.errors import InvalidInput, PayloadTooLarge

CONTENT_TYPE = "application/grpc"

STATUS, MESSAGE, TIMEOUT, ENCODING, ACCEPTED = (
    "grpc-status",
    "grpc-message",
    "grpc-timeout",
    "grpc-encoding",
    "grpc-accept-encoding",
)
"""The names of gRPC's own headers."""

CODES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)
"""The status codes' names, in the order of their numbers."""

_PREFIX = struct.Struct(">BI")
"""Before each message: whether it is packed, and its length."""

_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


COPIED_BYTES = 65_536
"""A larger message is not copied to stand behind its prefix, but sent in two pieces."""


def framed(message: bytes) -> bytes | tuple[bytes, bytes]:
    """The message as it travels, not packed; a large one as two pieces."""
    prefix = _PREFIX.pack(0, len(message))
    return prefix + message if len(message) <= COPIED_BYTES else (prefix, message)


class Reader:
    """Cuts what comes in, piece by piece, into messages; PayloadTooLarge at the first bytes of one over `limit`."""

    __slots__ = ("_left", "_packed", "_parts", "_prefix", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._prefix = b""
        self._packed = 0
        self._left = 0
        self._parts: list[memoryview] = []

    def feed(self, data: bytes) -> Iterable[tuple[bytes, bool]]:
        """The messages that are whole now, each with whether it is packed."""
        found: list[tuple[bytes, bool]] = []
        rest = memoryview(data)
        while True:
            if len(self._prefix) < _PREFIX.size:
                missing = _PREFIX.size - len(self._prefix)
                self._prefix += rest[:missing]
                rest = rest[missing:]
                if len(self._prefix) < _PREFIX.size:
                    return found
                self._packed, self._left = _PREFIX.unpack(self._prefix)
                if self._packed > 1:
                    raise InvalidInput(
                        f"a gRPC message begins with {self._packed}: expected 0, or 1 where it is packed"
                    )
                if self._left > self.limit:
                    raise PayloadTooLarge(
                        f"the message is {self._left} bytes: over {self.limit}, the limit of this server "
                        "(--grpc_max_receive_message_length)"
                    )
            part = rest[: self._left]
            self._parts.append(part)
            self._left -= len(part)
            if self._left:
                return found
            rest = rest[len(part) :]
            found.append((b"".join(self._parts), self._packed == 1))
            self._prefix = b""
            self._parts.clear()
            if not rest:
                return found

    @property
    def between(self) -> bool:
        """Whether no message has begun and not ended."""
        return not self._prefix


def seconds(timeout: str) -> float:
    """A grpc-timeout, such as 500m, in seconds; InvalidInput for what is none."""
    match = _TIMEOUT.fullmatch(timeout)
    if match is None:
        raise InvalidInput(f"{TIMEOUT} is {timeout[:40]!r}: expected up to 8 digits and a unit, such as 500m")
    return int(match[1]) * _UNITS[match[2]]


def timeout(seconds_left: float) -> str:
    """The grpc-timeout that says so, rounded up: in microseconds as far as 8 digits reach, else in a larger unit."""
    for unit in "umSMH":
        count = -int(-seconds_left // _UNITS[unit])
        if count < 100_000_000:
            return f"{max(count, 0)}{unit}"
    return "99999999H"


def percent_encoded(text: str) -> str:
    """A status' text as a header can carry it: what is not printable ASCII as %XX of its UTF-8."""
    if text.isascii() and text.isprintable() and "%" not in text:
        return text
    return quote_from_bytes(text.encode("utf-8", "replace"), safe=_PLAIN)


def percent_decoded(text: str) -> str:
    """The reverse; what is no right escape stays as it is."""
    return unquote(text) if "%" in text else text
