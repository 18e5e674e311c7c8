"""MicroBatcher: every caller gets exactly the rows that are his own, whoever else comes, leaves or fails."""

import asyncio
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kservekit.codec.message import Request
from kservekit.errors import DeadlineExceeded, InvalidInput, ModelError, PayloadTooLarge, TooManyRequests, Unavailable
from kservekit.predictors.batching import MicroBatcher, rows
from kservekit.serving import Predictor


def numbers(*values, width=1):
    return {"x": np.repeat(np.array(values, np.float64)[:, None], width, axis=1)}


class Engine:
    """Doubles each row; fails for a batch that holds a row of -1. A run ends when `gate` does, where there is one."""

    def __init__(self, gate=None):
        self.batches = []
        self.begun = asyncio.Event()
        self.gate = gate
        self.running = self.most_at_once = 0

    async def __call__(self, tensors):
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        try:
            self.batches.append(len(tensors["x"]))
            self.begun.set()
            if self.gate is not None:
                await self.gate()
            if (tensors["x"] == -1).any():
                raise InvalidInput("a row is -1")
            return {"y": tensors["x"] * 2}
        finally:
            self.running -= 1


def batcher(engine, **named):
    return MicroBatcher(engine, **{"max_cost": 8, "max_delay_s": 0.001, **named})


def test_callers_who_come_together_share_a_run():
    async def main():
        engine = Engine()
        shared = batcher(engine, max_delay_s=60, max_cost=6)
        answers = await asyncio.gather(*(shared.infer(numbers(at, at + 0.5)) for at in range(3)))
        assert [answer["y"].ravel().tolist() for answer in answers] == [[0, 1], [2, 3], [4, 5]]
        assert engine.batches == [6]

    asyncio.run(main())


def test_one_who_comes_alone_is_answered_after_the_delay():
    async def main():
        engine = Engine()
        assert (await batcher(engine).infer(numbers(3)))["y"].tolist() == [[6]]
        assert engine.batches == [1]

    asyncio.run(main())


def test_what_comes_while_the_engine_is_busy_goes_together_when_it_is_free():
    async def main():
        gate = asyncio.Event()
        engine = Engine(gate.wait)
        shared = batcher(engine, max_delay_s=0)
        first = asyncio.create_task(shared.infer(numbers(1)))
        await engine.begun.wait()
        others = [asyncio.create_task(shared.infer(numbers(at))) for at in range(5)]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(first, *others)
        assert engine.batches == [1, 5]

    asyncio.run(main())


@pytest.mark.parametrize("count", [8, 9, 17])
def test_a_request_over_the_maximum_is_split_and_put_together_again(count):
    async def main():
        engine = Engine()
        answer = await batcher(engine).infer(numbers(*range(count)))
        assert answer["y"].ravel().tolist() == [2 * value for value in range(count)]
        assert max(engine.batches) <= 8
        assert sum(engine.batches) == count

    asyncio.run(main())


def test_a_cost_function_decides_what_fits():
    def points(tensors):
        return int(tensors["x"].sum())

    async def main():
        engine = Engine()
        shared = batcher(engine, cost=points, max_cost=10)
        answer = await shared.infer(numbers(6, 6, 50, 1, 2))  # 50 is over, and cannot be split further
        assert answer["y"].ravel().tolist() == [12, 12, 100, 2, 4]
        assert sum(engine.batches) == 5

    asyncio.run(main())


def test_tensors_of_different_kinds_never_stand_in_one_batch():
    async def main():
        engine = Engine()
        shared = batcher(engine)
        narrow, wide, whole = await asyncio.gather(
            shared.infer(numbers(1)), shared.infer(numbers(1, width=2)), shared.infer({"x": np.array([[1]])})
        )
        assert (narrow["y"].shape, wide["y"].shape, whole["y"].dtype) == ((1, 1), (1, 2), np.int64)
        assert engine.batches == [1, 1, 1]

    asyncio.run(main())


def test_no_more_runs_at_once_than_may_be():
    async def main():
        engine = Engine(lambda: asyncio.sleep(0.001))
        shared = batcher(engine, concurrency=2, max_cost=1)
        await asyncio.gather(*(shared.infer(numbers(at)) for at in range(10)))
        assert engine.most_at_once == 2

    asyncio.run(main())


def test_an_engine_that_is_not_there_is_asked_once_and_all_hear_of_it():
    calls = []

    async def gone(tensors):
        calls.append(len(tensors["x"]))
        raise Unavailable("the engine is gone")

    async def main():
        shared = batcher(gone, max_delay_s=60, max_cost=4)
        found = await asyncio.gather(*(shared.infer(numbers(at)) for at in range(4)), return_exceptions=True)
        assert [type(error) for error in found] == [Unavailable] * 4
        assert calls == [4]

    asyncio.run(main())


def test_a_model_whose_outputs_have_other_rows_is_said_to_be_none_for_batches():
    async def mean(tensors):
        return {"mean": tensors["x"].mean(axis=0)}

    with pytest.raises(ModelError, match=r"output 'mean' has shape \[1\] for 3 rows"):
        asyncio.run(batcher(mean).infer(numbers(1, 2, 3)))


@pytest.mark.parametrize("tensors", [{}, {"x": np.zeros(2), "y": np.zeros(3)}, {"x": np.float64(1).reshape(())}])
def test_inputs_without_common_rows_are_refused(tensors):
    with pytest.raises(InvalidInput, match="share their first dimension"):
        asyncio.run(batcher(Engine()).infer(tensors))


def test_no_rows_at_all_are_answered_by_the_engine():
    assert asyncio.run(batcher(Engine()).infer(numbers()))["y"].shape == (0, 1)


def test_too_many_in_line_are_refused_and_the_others_answered():
    async def main():
        gate = asyncio.Event()
        shared = batcher(Engine(gate.wait), max_cost=1, max_waiting=2)
        tasks = [asyncio.create_task(shared.infer(numbers(at))) for at in range(4)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        gate.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(answer) for answer in found] == [dict, dict, dict, TooManyRequests]
        assert (await shared.infer(numbers(7)))["y"].tolist() == [[14]]

    asyncio.run(main())


def test_those_who_give_up_leave_their_places_while_the_engine_is_busy():
    async def main():
        gate = asyncio.Event()
        engine = Engine(gate.wait)
        shared = batcher(engine, max_cost=2, max_waiting=4, max_delay_s=60)
        running = asyncio.create_task(shared.infer(numbers(0, 0)))
        await engine.begun.wait()
        leaving = [asyncio.create_task(shared.infer(numbers(at))) for at in (1, 2, 3)]
        staying = asyncio.create_task(shared.infer(numbers(4)))
        await asyncio.sleep(0)
        for task in leaving:
            task.cancel()
        await asyncio.wait(leaving)
        coming = [asyncio.create_task(shared.infer(numbers(at))) for at in (5, 6, 7)]
        await asyncio.sleep(0)
        gate.set()
        found = await asyncio.gather(running, staying, *coming)
        assert [answer["y"].ravel().tolist() for answer in found[1:]] == [[8], [10], [12], [14]]
        assert engine.batches == [2, 2, 2]  # nor do they fill a batch that they are not in

    asyncio.run(main())


def test_a_request_that_has_more_shares_than_may_wait_is_too_large_at_any_time():
    with pytest.raises(PayloadTooLarge, match="9 rows are 5 shares of batches: this model takes at most 4"):
        asyncio.run(batcher(Engine(), max_cost=2, max_waiting=4).infer(numbers(*range(9))))


class Clock:
    """Time goes on only while an engine runs, `run_s` a run."""

    def __init__(self, run_s=0.0):
        self.now, self.run_s = 0.0, run_s

    def __call__(self):
        return self.now

    async def run(self):
        self.now += self.run_s


class Asked(Predictor):
    """As a server asks it: within a request that has a deadline."""

    def __init__(self, shared):
        super().__init__()
        self.shared = shared

    async def infer(self, tensors):
        return await self.shared.infer(tensors)

    async def within(self, deadline, *values):
        return (await self.answer(Request(numbers(*values), deadline=deadline))).tensors


@pytest.mark.parametrize(
    ("last_run_s", "deadlines", "due"),
    [
        (0.0, [inf], 60),
        (0.0, [1000.0], 60),
        (0.0, [20.0], 10),
        (15.0, [20.0], 5),
        (15.0, [16.0], 1),
        (0.0, [inf, 8.0, 20.0], 4),
    ],
)
def test_a_batch_begins_in_time_for_its_most_urgent_caller(last_run_s, deadlines, due):
    async def main():
        clock = Clock(last_run_s)
        shared = batcher(Engine(clock.run), max_delay_s=60, clock=clock)
        if last_run_s:
            await shared.infer(numbers(*range(8)))
            clock.now = 0.0
        asked = [asyncio.create_task(Asked(shared).within(deadline, 1)) for deadline in deadlines]
        await asyncio.sleep(0)
        assert shared._timer.when() - asyncio.get_running_loop().time() == pytest.approx(due, abs=0.5)
        clock.now = due
        shared._start()
        await asyncio.gather(*asked)

    asyncio.run(main())


def test_who_is_late_is_left_out_of_a_batch_and_told_so():
    async def main():
        clock, gate = Clock(), asyncio.Event()
        engine = Engine(gate.wait)
        shared = batcher(engine, max_cost=2, clock=clock)
        asked = Asked(shared)
        running = asyncio.create_task(asked.within(inf, 0, 0))
        await engine.begun.wait()
        waiting = [asyncio.create_task(asked.within(deadline, 1)) for deadline in (5.0, 20.0)]
        split = asyncio.create_task(asked.within(5.0, 2, 3, 4))
        await asyncio.sleep(0)
        clock.now = 10.0
        gate.set()
        found = await asyncio.gather(running, *waiting, split, return_exceptions=True)
        assert [type(answer) for answer in found] == [dict, DeadlineExceeded, dict, DeadlineExceeded]
        assert engine.batches == [2, 1]

    asyncio.run(main())


def test_close_ends_those_who_wait_and_lets_a_run_end():
    async def main():
        gate = asyncio.Event()
        engine = Engine(gate.wait)
        shared = batcher(engine, max_cost=1)
        running = asyncio.create_task(shared.infer(numbers(1)))
        await engine.begun.wait()
        waiting = asyncio.create_task(shared.infer(numbers(2)))
        await asyncio.sleep(0)
        closing = asyncio.create_task(shared.close())
        with pytest.raises(Unavailable):
            await waiting
        assert not closing.done()
        gate.set()
        assert (await running)["y"].tolist() == [[2]]
        await closing

    asyncio.run(main())


def test_an_engine_that_is_cancelled_leaves_nobody_waiting():
    async def cancelled(tensors):
        raise asyncio.CancelledError

    async def main():
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(batcher(cancelled).infer(numbers(1)), 60)

    asyncio.run(main())


caller = st.tuples(
    st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0, -1.0]), min_size=1, max_size=12),
    st.integers(0, 4),  # turns of the loop before he comes
    st.none() | st.integers(0, 6),  # turns until he gives up
    st.integers(1, 2),  # which kind of tensor
)


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(
    st.lists(caller, min_size=1, max_size=10),
    st.integers(1, 8),
    st.sampled_from([0, 0.0005]),
    st.integers(1, 3),
    st.lists(st.integers(0, 3), min_size=1, max_size=5),
)
def test_everyone_gets_his_own_rows_whoever_else_comes_leaves_or_fails(callers, max_cost, delay, concurrency, turns):
    async def take(count):
        for _ in range(count):
            await asyncio.sleep(0)

    async def main():
        pace = iter(turns * 1000)
        engine = Engine(lambda: take(next(pace)))
        shared = MicroBatcher(engine, max_cost=max_cost, max_delay_s=delay, concurrency=concurrency)

        async def call(values, comes, leaves, width):
            await take(comes)
            asked = asyncio.create_task(shared.infer(numbers(*values, width=width)))
            if leaves is not None:
                await take(leaves)
                asked.cancel()
            try:
                return await asked
            except (asyncio.CancelledError, InvalidInput) as error:
                return error

        found = await asyncio.wait_for(asyncio.gather(*(call(*who) for who in callers)), 60)
        for (values, _, leaves, width), answer in zip(callers, found, strict=True):
            if isinstance(answer, asyncio.CancelledError):
                assert leaves is not None
            elif isinstance(answer, InvalidInput):
                assert -1.0 in values
            else:
                assert -1.0 not in values
                assert answer["y"].tolist() == [[2 * value] * width for value in values]
        assert all(size <= max_cost for size in engine.batches)
        await shared.close()
        assert (shared._waiting, shared._lines, shared._idle, engine.running) == (0, {}, concurrency, 0)

    asyncio.run(main())


def test_rows_are_the_common_first_dimension():
    assert rows({"x": np.zeros((3, 2)), "y": np.zeros(3)}) == 3
