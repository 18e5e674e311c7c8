"""Keeps large fields out of protobuf's hands, which would copy each of them twice: cut out before, put in after.

The wire format is the one of protobuf.dev, "Encoding": fields in any order, each a tag (number and kind) and content.
"""

from __future__ import annotations

from collections.abc import Sequence

from kservekit.errors import InvalidInput

MOST_FIELDS = 10_000
"""Of a message; one that has more is made to keep us busy."""

_MALFORMED = "malformed protobuf message"


def cut_out(data: bytes, field: int) -> tuple[bytes, list[memoryview]]:
    """The message without its bytes field `field`, and that field's contents, which are views of `data`.

    Raises InvalidInput where the fields do not end with the data.
    """
    view, end = memoryview(data), len(data)
    wanted = field << 3 | 2
    kept: list[memoryview] = []
    parts: list[memoryview] = []
    at = run = 0
    for _ in range(MOST_FIELDS):
        if at == end:
            kept.append(view[run:end])
            return b"".join(kept) if parts else data, parts
        begin = at
        tag, at = _varint(data, at, end)
        kind = tag & 7
        size = 0
        if kind == 2:
            size, at = _varint(data, at, end)
        elif kind == 0:
            _, at = _varint(data, at, end)
        elif kind == 5:
            size = 4
        elif kind == 1:
            size = 8
        else:
            raise InvalidInput(_MALFORMED)
        at += size
        if at > end:
            raise InvalidInput(_MALFORMED)
        if tag == wanted:
            kept.append(view[run:begin])
            parts.append(view[at - size : at])
            run = at
    raise InvalidInput(f"a protobuf message with over {MOST_FIELDS} fields")


def put_in(message: bytes, field: int, parts: Sequence[bytes | memoryview]) -> bytes:
    """The message with `parts` as its repeated bytes field `field`: one copy of each, and no more."""
    if not parts:
        return message
    pieces: list[bytes | memoryview] = [message]
    for part in parts:
        pieces += (_encoded(field << 3 | 2) + _encoded(len(part)), part)
    return b"".join(pieces)


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise InvalidInput(_MALFORMED)


def _encoded(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
