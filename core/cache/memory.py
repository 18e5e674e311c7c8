"""A store in this process: the entries that were used last, up to a number of bytes."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from kservekit.codec.message import Answer

OVERHEAD_BYTES = 512
"""Of an entry, and again of each of its tensors: a key, objects, a dictionary."""


class MemoryStore:
    """At most `max_bytes` in all; an entry of more than a quarter of them is not kept."""

    def __init__(self, max_bytes: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_bytes = max_bytes
        self.size = 0
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[float, int, Answer]] = OrderedDict()

    async def get(self, key: bytes) -> Answer | None:
        found = self._entries.get(key)
        if found is None:
            return None
        expires, _, answer = found
        if self._clock() >= expires:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return replace(answer, tensors=dict(answer.tensors), parameters=dict(answer.parameters))

    async def put(self, key: bytes, answer: Answer, ttl_s: float) -> None:
        size = OVERHEAD_BYTES + sum(map(_size, answer.tensors.values()))
        if size > self.max_bytes // 4:
            return
        self._drop(key)
        # Copies, because an output may be a few rows of a large batch, all of which a view would keep.
        tensors = {name: _frozen(array) for name, array in answer.tensors.items()}
        kept = replace(answer, id="", tensors=tensors, parameters=dict(answer.parameters))
        self._entries[key] = (self._clock() + ttl_s, size, kept)
        self.size += size
        while self.size > self.max_bytes:
            self._drop(next(iter(self._entries)))

    async def close(self) -> None:
        self._entries.clear()
        self.size = 0

    def _drop(self, key: bytes) -> None:
        found = self._entries.pop(key, None)
        if found is not None:
            self.size -= found[1]


def _size(array: np.ndarray) -> int:
    elements = sum(map(len, array.ravel().tolist())) if array.dtype == object else 0
    return OVERHEAD_BYTES + array.nbytes + elements


def _frozen(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy
