"""What a person at the terminal reads, and what becomes of it where nobody can."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TextIO

from kservekit.errors import KServeKitError


class CannotWrite(KServeKitError):
    """stdout or stderr takes no more: its disk is full, or its reader has gone."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"the output cannot be written: {error.strerror}")
        self.reader_has_gone = isinstance(error, BrokenPipeError)


def put(text: str, stream: TextIO | None) -> None:
    """A line, at once, with a `?` for each letter that the stream's encoding does not know; CannotWrite."""
    if stream is not None:  # a process may be started without
        known = text.encode(stream.encoding or "utf-8", "replace").decode(stream.encoding or "utf-8")
        with _failing_once(stream):
            print(known, file=stream, flush=True)


def flush(stream: TextIO | None) -> None:
    """CannotWrite, where the interpreter's own last flush could only complain."""
    if stream is not None:
        with _failing_once(stream):
            stream.flush()


def takes(text: str, stream: TextIO | None) -> bool:
    """Whether the stream's encoding knows all of it."""
    try:
        text.encode((stream and stream.encoding) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def _failing_once(stream: TextIO) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # What the stream still holds would fail once more.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise CannotWrite(error) from None
