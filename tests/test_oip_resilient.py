import asyncio

import numpy as np
import pytest

from kservekit.codec.message import Answer, Request
from kservekit.config import BackendSettings
from kservekit.errors import DeadlineExceeded, InvalidInput, ModelError, TooManyRequests, Unavailable
from kservekit.oip.resilient import ResilientBackend

ANSWER = Answer({"y": np.zeros(1)})


class Scripted:
    """A backend that does what its list says, one item a call."""

    def __init__(self, *script):
        self.script, self.calls = list(script), 0

    async def infer(self, request):
        self.calls += 1
        step = self.script.pop(0) if self.script else ANSWER
        if isinstance(step, BaseException):
            raise step
        return step


class World:
    """Time that passes only while somebody sleeps."""

    now = 0.0

    def clock(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds


def resilient(backend, world=None, **settings):
    world = world or World()
    return ResilientBackend(
        backend, BackendSettings(**settings), clock=world.clock, sleep=world.sleep, jitter=lambda: 1
    )


def infer(backend, **fields):
    return asyncio.run(backend.infer(Request({}, **fields)))


def test_an_unavailable_backend_is_tried_again():
    backend = Scripted(Unavailable("down"), Unavailable("down"))
    assert infer(resilient(backend, retries=2)) is ANSWER
    assert backend.calls == 3


def test_no_more_often_than_it_is_allowed():
    backend = Scripted(*[Unavailable("down")] * 9)
    with pytest.raises(Unavailable):
        infer(resilient(backend, retries=2))
    assert backend.calls == 3


@pytest.mark.parametrize("error", [InvalidInput, TooManyRequests, ModelError, DeadlineExceeded])
def test_nothing_else_is_tried_again(error):
    backend = Scripted(error("no"))
    with pytest.raises(error):
        infer(resilient(backend))
    assert backend.calls == 1


def test_waits_grow_and_end_with_the_deadline():
    world = World()
    backend = Scripted(*[Unavailable("down")] * 9)
    with pytest.raises(Unavailable):
        infer(resilient(backend, world, retries=9, breaker_failures=0), deadline=0.4)
    assert backend.calls == 4  # after 50, 150 and 350 ms; the next wait would end after the deadline
    assert world.now == pytest.approx(0.35)


def test_a_backend_that_asks_for_a_long_time_is_not_tried_again():
    backend = Scripted(Unavailable("maintenance", retry_after=30))
    with pytest.raises(Unavailable) as found:
        infer(resilient(backend))
    assert (backend.calls, found.value.retry_after) == (1, 30)


def test_all_calls_share_one_budget_of_retries():
    backend = Scripted(*[Unavailable("down")] * 100)
    guarded = resilient(backend, retries=1, retry_ratio=0.1, breaker_failures=0)
    for _ in range(30):
        with pytest.raises(Unavailable):
            infer(guarded)
    assert backend.calls < 30 + 10 + 30 * 0.1 + 1


def test_while_the_breaker_is_open_the_backend_is_left_alone():
    world = World()
    backend = Scripted(*[Unavailable("down")] * 5)
    guarded = resilient(backend, world, retries=0, breaker_failures=5, breaker_cooldown_s=2)
    for _ in range(20):
        with pytest.raises(Unavailable):
            infer(guarded)
    assert backend.calls == 5
    world.now += 2
    assert infer(guarded) is ANSWER
    assert infer(guarded) is ANSWER


def test_an_answer_that_is_an_error_of_the_caller_closes_the_breaker():
    world = World()
    backend = Scripted(Unavailable("down"), InvalidInput("x"), Unavailable("down"), InvalidInput("x"))
    guarded = resilient(backend, world, retries=0, breaker_failures=2)
    for _ in range(4):
        with pytest.raises((Unavailable, InvalidInput)):
            infer(guarded)
    assert infer(guarded) is ANSWER


def test_a_call_whose_caller_went_away_says_nothing_of_the_backend():
    world = World()
    backend = Scripted(Unavailable("down"), asyncio.CancelledError())
    guarded = resilient(backend, world, retries=0, breaker_failures=1, breaker_cooldown_s=1)
    with pytest.raises(Unavailable):
        infer(guarded)
    world.now += 1
    with pytest.raises(asyncio.CancelledError):
        infer(guarded)
    assert infer(guarded) is ANSWER


def test_one_sick_address_of_several_does_not_open_the_breaker():
    backend, world = Scripted(), World()
    guarded = resilient(backend, world, retries=0, breaker_failures=2)
    for elsewhere in (True, True, True, False, False):
        error = Unavailable("down")
        error.elsewhere = elsewhere
        backend.script = [error]
        with pytest.raises(Unavailable, match="down"):
            infer(guarded)
    with pytest.raises(Unavailable, match="given time"):
        infer(guarded)
