import asyncio
import time

import pytest

from kservekit.errors import DeadlineExceeded
from kservekit.serving.in_time import in_time


def soon():
    return time.monotonic() + 60


def past():
    return time.monotonic() - 1


async def waits(for_what):
    return await for_what


def test_work_that_never_waits_sets_no_timer():
    async def work():
        return 7

    async def main():
        loop = asyncio.get_running_loop()
        loop.call_at = None
        return await in_time(work(), soon(), "it")

    assert asyncio.run(main()) == 7


def test_a_result_that_was_waited_for_comes_back():
    async def work():
        first = await asyncio.to_thread(lambda: 3)
        await asyncio.sleep(0)
        return first + await asyncio.to_thread(lambda: 4)

    assert asyncio.run(in_time(work(), soon(), "it")) == 7


@pytest.mark.parametrize("waiting", [False, True])
def test_the_works_own_error_passes(waiting):
    async def work():
        if waiting:
            await asyncio.sleep(0)
        raise TimeoutError("its own") if not waiting else ValueError("its own")

    with pytest.raises((TimeoutError, ValueError), match="its own"):
        asyncio.run(in_time(work(), soon(), "it"))


def test_the_deadline_cancels_the_work_and_says_who_was_late():
    seen = []

    async def work():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    with pytest.raises(DeadlineExceeded, match="the model gave no answer before"):
        asyncio.run(in_time(work(), time.monotonic() + 0.01, "the model"))
    assert seen == ["cancelled"]


def test_a_deadline_that_has_passed_ends_the_work_before_it_begins():
    seen = []

    async def work():
        seen.append("begun")

    with pytest.raises(DeadlineExceeded):
        asyncio.run(in_time(work(), past(), "it"))
    assert seen == []


def test_a_caller_who_gives_up_cancels_the_work():
    seen = []

    async def main():
        begun = asyncio.Event()

        async def work():
            try:
                begun.set()
                await asyncio.Event().wait()
            finally:
                seen.append("ended")

        task = asyncio.create_task(in_time(work(), soon(), "it"))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert seen == ["ended"]


def test_time_outs_of_the_works_own_nest_in_it():
    async def work():
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            pass
        await asyncio.sleep(0)
        return "went on"

    assert asyncio.run(in_time(work(), soon(), "it")) == "went on"


def test_an_awaited_future_is_waited_for_once():
    async def main():
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, "set")
        return await in_time(waits(future), soon(), "it")

    assert asyncio.run(main()) == "set"
