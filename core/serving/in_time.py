"""Work that must end by a deadline, or when its caller goes away. Where it never waits, no timer is set for it."""

from __future__ import annotations

import asyncio
import time
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from kservekit.errors import DeadlineExceeded

Result = TypeVar("Result")


async def in_time(work: Coroutine[Any, Any, Result], deadline: float, who: str) -> Result:
    """What the work returns; DeadlineExceeded says of `who` that it gave no answer by then, and the work is cancelled.

    `deadline` is a moment on time.monotonic(); one that has passed ends the work before it begins.
    """
    if time.monotonic() >= deadline:
        work.close()
        raise _late(who)
    try:
        waits_for = work.send(None)
    except StopIteration as done:
        result: Result = done.value
        return result
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await resumed(work, waits_for)
    except TimeoutError:
        raise _late(who) from None


@types.coroutine
def resumed(work: Coroutine[Any, Any, Result], waits_for: Any) -> Generator[Any, Any, Result]:
    """The rest of a coroutine whose first step, `send(None)`, gave `waits_for`."""
    step: Callable[[Any], Any]
    while True:
        try:
            told = yield waits_for
        except GeneratorExit:
            work.close()
            raise
        except BaseException as error:  # a cancellation, which is the work's to see
            step, told = work.throw, error
        else:
            step = work.send
        try:
            waits_for = step(told)
        except StopIteration as done:
            result: Result = done.value
            return result


def _late(who: str) -> DeadlineExceeded:
    return DeadlineExceeded(f"{who} gave no answer before the request's deadline")
