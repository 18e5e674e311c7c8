"""The threads of plain handlers."""

import asyncio
import threading

import pytest

from kservekit.serving.pool import HandlerPool


def test_threads_and_places_outlive_a_loop_that_ends_before_their_handlers():
    pool = HandlerPool(threads=2, waiting=0)
    leave = threading.Event()
    ended = []

    def slowly(started):
        started.set()
        leave.wait()
        ended.append(threading.current_thread())

    async def give_up():
        started = [threading.Event(), threading.Event()]
        tasks = [asyncio.create_task(pool.run(slowly, each)) for each in started]
        for each in started:
            await asyncio.to_thread(each.wait)
        for task in tasks:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    async def two_more():
        async with asyncio.timeout(20):
            return await asyncio.gather(*(pool.run(threading.current_thread) for _ in range(2)))

    asyncio.run(give_up())
    leave.set()
    while len(ended) < 2 or len(pool._unheard) < 2:
        assert all(thread.is_alive() for thread in ended), "a thread ended with the loop"
    assert set(asyncio.run(two_more())) <= set(ended)
