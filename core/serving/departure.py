"""Notices that a REST caller went away, and ends the work that nobody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from kservekit.errors import Cancelled
from kservekit.serving.in_time import resumed

Result = TypeVar("Result")

SCOPE_KEY = "kservekit.departure"
"""Where a request's ASGI scope has its connection's Departure."""


class Departure:
    """One for a connection, whose requests are answered one after the other. The HTTP protocol says `happened`."""

    __slots__ = ("_gone", "_task")

    def __init__(self) -> None:
        self._gone = False
        self._task: asyncio.Task[Any] | None = None

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
        try:
            return await resumed(work, waits_for)
        except asyncio.CancelledError:
            if not self._gone or self._task is None:
                raise
            self._task.uncancel()
            raise Cancelled("the caller went away") from None
        finally:
            self._task = None
