"""Keeps large fields out of protobuf's hands, which would copy each of them twice: cut out before, put in after.

The wire format is the one of protobuf.dev, "Encoding": fields in any order, each a tag (number and kind) and content.
"""

from __future__ import annotations

from collections.abc import Sequence

from kservekit.errors import InvalidInput

MOST_FIELDS = 10_000
"""Of a message; one that has more is made to keep us busy."""

_MALFORMED = "malformed protobuf message"


def cut_out(data: bytes, field: int, single: int = 0) -> tuple[bytes, list[memoryview], str]:
    """The message without its bytes field `field`; that field's contents, which are views of `data`; and what its
    field `single` held, a string of which the last one counts, which is cut out too.

    Raises InvalidInput where the fields do not end with the data.
    """
    view, end = memoryview(data), len(data)
    wanted, apart = field << 3 | 2, single << 3 | 2 if single else 0
    kept: list[memoryview] = []
    parts: list[memoryview] = []
    found = ""
    at = run = 0
    try:
        for _ in range(MOST_FIELDS):
            if at >= end:
                break
            begin = at
            tag = data[at]
            at += 1
            if tag > 0x7F:
                tag, at = _varint(data, begin)
            kind = tag & 7
            if kind == 2:
                size = data[at]
                at += 1
                if size > 0x7F:
                    size, at = _varint(data, at - 1)
                at += size
            elif kind == 0:
                _, at = _varint(data, at)
            elif kind == 5:
                at += 4
            elif kind == 1:
                at += 8
            else:
                raise InvalidInput(_MALFORMED)
            if tag == wanted:
                kept.append(view[run:begin])
                parts.append(view[at - size : at])
                run = at
            elif tag == apart:
                kept.append(view[run:begin])
                found = data[at - size : at].decode()
                run = at
    except IndexError:
        raise InvalidInput(_MALFORMED) from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{_MALFORMED}: field {single} is not UTF-8") from None
    if at > end:
        raise InvalidInput(_MALFORMED)
    if at < end:
        raise InvalidInput(f"a protobuf message with over {MOST_FIELDS} fields")
    if not run:
        return data, parts, found
    kept.append(view[run:])
    return b"".join(kept), parts, found


def put_in(message: bytes, field: int, parts: Sequence[bytes | memoryview]) -> bytes:
    """The message with `parts` as its repeated bytes field `field`: one copy of each, and no more."""
    if not parts:
        return message
    tag = _encoded(field << 3 | 2)
    pieces: list[bytes | memoryview] = [message]
    for part in parts:
        pieces += (tag + _encoded(len(part)), part)
    return b"".join(pieces)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Raises IndexError where the data ends within it."""
    value = shift = 0
    while shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise InvalidInput(_MALFORMED)


def _encoded(value: int) -> bytes:
    if value < 0x80:
        return _ONE_BYTE[value]
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


_ONE_BYTE = [bytes((value,)) for value in range(0x80)]
