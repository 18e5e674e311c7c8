"""A file that changes under a running server, as Kubernetes swaps the files of a mounted Secret."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Generic, TypeAlias, TypeVar

from kservekit.errors import CannotStart

log = logging.getLogger(__name__)

Content = TypeVar("Content")
Stamp: TypeAlias = tuple[int, ...] | None


class WatchedFile(Generic[Content]):
    """`content` is what `parse(text, where)` makes of the file; CannotStart where there is nothing to begin with.

    A new file that is bad is logged once, and the content stays what it was.
    """

    def __init__(self, setting: str, path: str, parse: Callable[[str, str], Content]) -> None:
        self._where = f"{setting}: {path}"
        self._path = path
        self._parse = parse
        self._stamp, self.content = self._read()

    def refresh(self) -> bool:
        """Whether the content is a new one."""
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            self._stamp, self.content = self._read()
        except CannotStart as error:
            log.error("%s; what was read before stays in force", error)
            return False
        log.info("%s: read again", self._where)
        return True

    def _read(self) -> tuple[Stamp, Content]:
        try:
            with open(self._path, encoding="utf-8") as file:
                stamp = _stamp(os.fstat(file.fileno()))
                text = file.read()
        except OSError as error:
            raise CannotStart(f"{self._where} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise CannotStart(f"{self._where} cannot be read: expected text in UTF-8") from None
        return stamp, self._parse(text, self._where)

    def _stamp_now(self) -> Stamp:
        try:
            return _stamp(os.stat(self._path))
        except OSError:
            return None


def _stamp(status: os.stat_result) -> Stamp:
    # The size as well, because two writes can fall into one tick of the file system's clock.
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
