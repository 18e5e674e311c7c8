"""Server-sent events: several answers to one REST request, each a v2 JSON body (WHATWG HTML, "Server-sent events")."""

from __future__ import annotations

from typing import NamedTuple

CONTENT_TYPE = "text/event-stream"
ERROR = "error"
"""The event that an error is which comes after the first answer; its data is the body that it would be otherwise."""


class Event(NamedTuple):
    data: bytes
    kind: str = ""


def wanted(accept: str) -> bool:
    """Whether a caller's Accept header asks for events."""
    return CONTENT_TYPE in accept.lower()


def encode(event: Event) -> bytes:
    """JSON has no line ends, so its data is one line."""
    return (b"event: %s\n" % event.kind.encode() if event.kind else b"") + b"data: " + event.data + b"\n\n"


class Reader:
    """Events out of a body's pieces, however these are cut."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[Event]:
        *whole, self._rest = (self._rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        return [_event(text) for text in whole if text]


def _event(text: bytes) -> Event:
    data, kind = [], ""
    for line in text.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            kind = value.decode(errors="replace")
    return Event(b"\n".join(data), kind)
