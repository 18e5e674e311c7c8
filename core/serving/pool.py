"""The threads that plain handlers run in, so that the event loop, and with it every probe, never waits for them."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from kservekit.cpus import usable_cpus
from kservekit.errors import TooManyRequests


class HandlerPool:
    """`threads` handlers at once and `waiting` more in line; beyond that, TooManyRequests.

    A handler whose caller no longer waits is not started; one that has started runs to its end, in its place.
    """

    def __init__(self, threads: int = 0, waiting: int = 256) -> None:
        self.threads = threads or min(32, usable_cpus() + 4)
        self.limit = self.threads + waiting
        self._inside = 0
        self._started = 0
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._unheard: deque[None] = deque()
        """One for each handler that ended after the loop that it was run for; their places are free again."""

    async def run(self, handler: Callable[..., Any], *arguments: Any) -> Any:
        """The handler's result, with the caller's context variables around it."""
        while self._unheard:
            self._unheard.pop()
            self._inside -= 1
        if self._inside >= self.limit:
            raise TooManyRequests(f"{self._inside} requests wait for this server's handlers", retry_after=1)
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._inside += 1
        if self._started < min(self.threads, self._inside):
            self._started += 1
            # A daemon: a handler that never returns must not keep the process from ending.
            threading.Thread(target=self._work, name=f"handler-{self._started}", daemon=True).start()
        # Whoever takes it first, the thread to begin or the caller to give up, has the job.
        taken = threading.Lock()
        self._jobs.put((loop, future, taken, contextvars.copy_context(), handler, arguments))
        try:
            return await future
        except asyncio.CancelledError:
            if taken.acquire(blocking=False):
                self._inside -= 1
            raise

    def _work(self) -> None:
        while True:
            loop, future, taken, context, handler, arguments = self._jobs.get()
            if taken.acquire(blocking=False):
                result, error = None, None
                try:
                    result = context.run(handler, *arguments)
                except BaseException as raised:
                    error = raised
                try:
                    loop.call_soon_threadsafe(self._finish, future, result, error)
                except RuntimeError:  # the loop has ended, and with it everyone who waited; there may be another one
                    self._unheard.append(None)
                del result, error
            # Nothing of a request stays behind while the thread waits for the next one.
            del loop, future, taken, context, handler, arguments

    def _finish(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._inside -= 1
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        elif isinstance(error, StopIteration):  # which no future can hold
            future.set_exception(RuntimeError(f"a handler raised {error!r}"))
        else:
            future.set_exception(error)


_pool = HandlerPool()


def handler_pool() -> HandlerPool:
    """This process's pool; under a stock kserve.ModelServer one of the default size."""
    return _pool


def resize(threads: int, waiting: int) -> None:
    """Before the first handler runs."""
    global _pool
    _pool = HandlerPool(threads, waiting)
