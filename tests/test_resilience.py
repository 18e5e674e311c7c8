import math

import pytest

from kservekit.errors import DeadlineExceeded, TooManyRequests, Unavailable
from kservekit.resilience import CircuitBreaker, Limiter, RetryBudget, time_left


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def states():
    return []


@pytest.fixture
def breaker(clock, states):
    return CircuitBreaker(failures=3, cooldown_s=5.0, clock=clock, on_change=states.append)


def open_up(breaker):
    for _ in range(3):
        breaker.check()
        breaker.failed()


def test_a_breaker_opens_after_failures_in_a_row_and_says_how_long_to_wait(breaker, clock, states):
    breaker.failed()
    breaker.failed()
    breaker.succeeded()
    open_up(breaker)
    clock.now += 2
    with pytest.raises(Unavailable) as found:
        breaker.check()
    assert found.value.retry_after == 3.0
    assert states == ["open"]


def test_after_the_cooldown_one_call_is_let_through_and_the_rest_wait_for_it(breaker, clock, states):
    open_up(breaker)
    clock.now += 5
    breaker.check()
    with pytest.raises(Unavailable):
        breaker.check()
    breaker.succeeded()
    breaker.check()
    breaker.check()
    assert states == ["open", "half open", "closed"]


def test_a_look_that_fails_opens_the_breaker_at_once(breaker, clock):
    open_up(breaker)
    clock.now += 5
    breaker.check()
    breaker.failed()
    clock.now += 4.9
    with pytest.raises(Unavailable):
        breaker.check()
    clock.now += 0.2
    breaker.check()


def test_a_look_whose_caller_went_away_leaves_the_next_one_to_look(breaker, clock):
    open_up(breaker)
    clock.now += 5
    breaker.check()
    breaker.forgotten()
    breaker.check()
    with pytest.raises(Unavailable):
        breaker.check()


def test_retries_are_a_share_of_the_calls():
    budget = RetryBudget(0.25, reserve=2)
    assert [budget.may_retry() for _ in range(3)] == [True, True, False]
    for _ in range(4):
        budget.called()
    assert [budget.may_retry() for _ in range(2)] == [True, False]
    for _ in range(1000):
        budget.called()
    assert [budget.may_retry() for _ in range(3)] == [True, True, False]


def test_a_limit_holds_for_each_key_and_gives_back_what_failed():
    limiter = Limiter(1, "this tenant")
    with limiter.slot("a"), limiter.slot("b"):
        with pytest.raises(TooManyRequests, match="1 requests are running, the limit of this tenant") as found:
            limiter.slot("a").__enter__()
        assert found.value.retry_after == 1
    with pytest.raises(ZeroDivisionError), limiter.slot("a"):
        _ = 1 / 0
    with limiter.slot("a"):
        pass
    assert limiter._running == {}


def test_without_a_limit_all_may_run():
    limiter = Limiter(0, "nobody")
    with limiter.slot("a"), limiter.slot("a"):
        pass


def test_time_left_is_until_the_deadline_and_none_is_an_error(clock):
    assert time_left(101.5, clock) == 1.5
    assert time_left(math.inf, clock) == math.inf
    with pytest.raises(DeadlineExceeded):
        time_left(100.0, clock)
