"""Files in /dev/shm that two processes map, one request at a time: a bounded pool of them.

Each is ours by name (prefix, process, a random word, number) and locked as long as we live, so that what a process
left behind that was killed can be told from what somebody still uses.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import secrets
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)

FOLDER = Path("/dev/shm")  # noqa: S108  where POSIX shared memory is
PREFIX = "kservekit-region-"
"""Ours alone: a local Triton's own memory is called kservekit- too, and is locked by nobody."""

QUARANTINE_S = 300.0
"""How long a region is kept from reuse after a request whose end we do not know: longer than an engine may be at it."""

_LEAST_SIZE_BITS = 16

_SETTLED_S = 10.0
"""The age from which a file that nobody has locked is left behind, and not just made."""


class Exhausted(Exception):
    """No memory for another region, within our own bound or in /dev/shm."""


@dataclass(eq=False)
class Region:
    name: str
    size: int
    map: mmap.mmap
    file: int
    registered: bool = False
    """With the server, as far as we know."""
    lent: bool = False
    """Somebody has arrays that lie in it."""
    doubtful: bool = False
    """The engine may still be at it when those are gone."""

    def free(self) -> None:
        """Gone from /dev/shm; the memory itself goes when the other side lets go of it too."""
        with contextlib.suppress(OSError):
            (FOLDER / self.name).unlink()
        os.close(self.file)
        with contextlib.suppress(BufferError):  # somebody has an answer's tensor; then it goes with that
            self.map.close()


class Regions:
    """At most `max_bytes` of them, in powers of two. `dropped` hears of each that is no more, in whatever thread.

    They may be taken in any thread, and come back at any moment: the collector gives back what was lent.
    """

    def __init__(
        self, max_bytes: int, *, dropped: Callable[[Region], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._all: set[Region] = set()
        self._idle: list[Region] = []
        self._quarantined: list[tuple[float, Region]] = []
        self._borrowed: dict[int, Region] = {}
        self._lock = threading.RLock()
        self._owner = f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        self._made = 0
        self._dropped, self._clock = dropped, clock

    def take(self, size: int) -> Region:
        """One of at least `size` bytes that nobody else has until it comes back; Exhausted where there is none."""
        with self._lock:
            while self._quarantined and self._quarantined[0][0] <= self._clock():
                self.drop(self._quarantined.pop(0)[1])
            fitting = [region for region in self._idle[::-1] if region.size >= size]  # the last one's cache is warm
            if fitting:
                region = min(fitting, key=lambda region: region.size)
                self._idle.remove(region)
                return region
            size = 1 << max(_LEAST_SIZE_BITS, (size - 1).bit_length())
            while self._idle and self.bytes + size > self.max_bytes:
                self.drop(self._idle.pop(0))
            if self.bytes + size > self.max_bytes:
                raise Exhausted
            return self._new(size)

    def give_back(self, region: Region) -> None:
        region.lent = False
        if region not in self._all:  # it may be dropped while it was out
            return
        if region.doubtful:
            self.quarantine(region)
        else:
            self._idle.append(region)

    def quarantine(self, region: Region) -> None:
        """The engine may still read or write it: nobody has it again, and it is dropped later."""
        region.doubtful = True
        if not region.lent:
            self._quarantined.append((self._clock() + QUARANTINE_S, region))

    def lend(self, region: Region, *, writeable: bool) -> np.ndarray:
        """The memory of one that was taken, UINT8. It comes back when the last array is gone that lies in it."""
        memory = np.frombuffer(region.map, np.uint8)
        memory.flags.writeable = writeable
        region.lent = True
        self._borrowed[id(memory)] = region
        weakref.finalize(memory, self._returned, id(memory), region).atexit = False
        return memory

    def place(self, raw: bytes | memoryview) -> tuple[Region, int] | None:
        """In which region that was lent an array's memory lies, and where there; None for any other memory."""
        found: object = raw
        while isinstance(found, (np.ndarray, memoryview)):
            region = self._borrowed.get(id(found))
            if region is not None:
                return (region, _address(raw) - _address(found)) if region in self._all else None
            found = found.base if isinstance(found, np.ndarray) else found.obj
        return None

    def drop(self, region: Region) -> None:
        with self._lock:
            if region not in self._all:  # another request with an array in it was first
                return
            self._all.remove(region)
            self.bytes -= region.size
        region.free()
        self._dropped(region)

    def known_are(self, names: Set[str]) -> None:
        """The server says which it has. It is another one if it lacks some, and is not at work on those."""
        with self._lock:
            for region in self._all:
                region.registered = region.name in names
            for item in [item for item in self._quarantined if not item[1].registered]:
                self._quarantined.remove(item)
                self.drop(item[1])

    def drop_all(self) -> None:
        with self._lock:
            self._idle, self._quarantined = [], []
            for region in list(self._all):
                self.drop(region)

    def _returned(self, memory: int, region: Region) -> None:
        del self._borrowed[memory]
        self.give_back(region)

    def _new(self, size: int) -> Region:
        self._made += 1
        name = f"{self._owner}-{self._made}"
        # In a pod the folder may be a volume that belongs to the group of the pod's containers (fsGroup).
        mode = 0o660 if FOLDER.stat().st_mode & stat.S_ISGID else 0o600
        try:
            file = os.open(FOLDER / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        except OSError as error:
            raise self._no_memory(size, error) from error
        try:
            os.fchmod(file, mode)
            fcntl.flock(file, fcntl.LOCK_EX)
            os.posix_fallocate(file, 0, size)  # a write to memory that there is not would end the process
            region = Region(name, size, mmap.mmap(file, size), file)
        except OSError as error:
            (FOLDER / name).unlink()
            os.close(file)
            raise self._no_memory(size, error) from error
        self.bytes += size
        self._all.add(region)
        return region

    def _no_memory(self, size: int, error: OSError) -> Exhausted:
        self.max_bytes = self.bytes + size // 2  # what smaller ones may still find
        log.warning("no %d bytes of shared memory in %s beside our %d: %s", size, FOLDER, self.bytes, error.strerror)
        return Exhausted()


def _address(memory: np.ndarray | memoryview | bytes) -> int:
    found: int = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
    return found


def left_behind() -> Iterator[str]:
    """Removes the regions of processes that ended without doing so; their names. Never one that somebody still has."""
    for path in FOLDER.glob(f"{PREFIX}*"):
        try:
            file = os.open(path, os.O_RDWR)
        except OSError:
            continue
        try:
            if time.time() - os.fstat(file).st_mtime < _SETTLED_S:
                continue
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        except OSError:
            continue
        finally:
            os.close(file)
        yield path.name
