"""Notices that a caller went away, and ends the work that nobody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from kservekit.errors import Cancelled
from kservekit.serving.in_time import resumed

Result = TypeVar("Result")

SCOPE_KEY = "kservekit.departure"
"""Where a request's ASGI scope has its connection's Departure."""


class Departure:
    """One for a connection whose requests are answered one after the other, or for one request. Who notices says
    `happened`: the HTTP protocol, or the task that `watch` starts, which is asked once the work has to wait."""

    __slots__ = ("_gone", "_task", "_watch")

    def __init__(self, watch: Callable[[], asyncio.Task[None]] | None = None) -> None:
        self._watch = watch
        self._gone = False
        self._task: asyncio.Task[Any] | None = None

    @property
    def gone(self) -> bool:
        return self._gone

    def happened(self) -> None:
        self._gone = True
        if self._task is not None:
            self._task.cancel()

    async def ends(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What the work returns; Cancelled where the caller is gone before that, and the work is cancelled, too."""
        try:
            waits_for = work.send(None)
        except StopIteration as done:
            result: Result = done.value
            return result
        self._task = asyncio.current_task()
        if self._gone and self._task is not None:
            self._task.cancel()
        watching = self._watch() if self._watch is not None else None
        try:
            return await resumed(work, waits_for)
        except asyncio.CancelledError:
            if not self._gone or self._task is None:
                raise
            self._task.uncancel()
            raise Cancelled("the caller went away") from None
        finally:
            self._task = None
            if watching is not None:
                watching.cancel()
