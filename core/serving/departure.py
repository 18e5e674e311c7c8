"""Notices that a REST caller went away, and ends the work that nobody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from kservekit.errors import Cancelled
from kservekit.serving.in_time import resumed

Result = TypeVar("Result")

LOOK_AFTER_S = 0.05
"""Only requests that last are watched, so that the others pay for a timer and nothing more."""


async def unless_gone(work: Coroutine[Any, Any, Result], receive: Any) -> Result:
    """What the work returns; Cancelled where `receive` says before that that the caller is gone."""
    try:
        waits_for = work.send(None)
    except StopIteration as done:
        result: Result = done.value
        return result
    async with _Departure(receive):
        return await resumed(work, waits_for)


class _Departure:
    """Inside the block the task is cancelled when `receive` says that the caller is gone: a Cancelled comes out."""

    def __init__(self, receive: Any) -> None:
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None
        self._gone = False

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._timer = loop.call_later(LOOK_AFTER_S, self._look)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._gone and kind is asyncio.CancelledError and self._task is not None:
            self._task.uncancel()
            raise Cancelled("the caller went away") from None

    def _look(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._task is not None and not self._task.done():
            self._gone = True
            self._task.cancel()
