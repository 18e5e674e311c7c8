"""When to try again, when to stop trying, and how many at once. Pure: clock and hooks come in by hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kservekit.errors import DeadlineExceeded, TooManyRequests, Unavailable

Clock = Callable[[], float]


def time_left(deadline: float, clock: Clock = time.monotonic) -> float:
    """Seconds until `deadline` (a moment on `clock`); DeadlineExceeded where there are none."""
    left = deadline - clock()
    if left <= 0:
        raise DeadlineExceeded("the request's deadline has passed")
    return left


class RetryBudget:
    """Retries as a share of the calls, so that a backend in trouble does not get a multiple of its load.

    Each call adds `ratio` of a retry, up to `reserve` of them, which is also what there is at the start.
    """

    def __init__(self, ratio: float = 0.2, *, reserve: float = 10.0) -> None:
        self.ratio, self.reserve = ratio, reserve
        self._tokens = reserve

    def called(self) -> None:
        self._tokens = min(self.reserve, self._tokens + self.ratio)

    def may_retry(self) -> bool:
        """Whether a retry is left; it is spent."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class CircuitBreaker:
    """After `failures` in a row calls fail at once for `cooldown_s`; then one is let through to see.

    `on_change` is told "open", "half open" or "closed". Use `check`, then `succeeded` or `failed`; a call
    that ends in neither (its caller went away) is `forgotten`.
    """

    def __init__(
        self,
        failures: int = 5,
        cooldown_s: float = 1.0,
        *,
        clock: Clock = time.monotonic,
        on_change: Callable[[str], None] = lambda state: None,
    ) -> None:
        self.failures, self.cooldown_s = failures, cooldown_s
        self._clock, self._on_change = clock, on_change
        self._in_a_row = 0
        self._open_until = 0.0
        self.state = "closed"

    def check(self) -> None:
        """Unavailable, with the seconds to wait, while calls are not let through."""
        if self.state == "closed":
            return
        left = self.cooldown_s if self.state == "half open" else self._open_until - self._clock()
        if left > 0:
            raise Unavailable("the backend failed repeatedly and is given time", retry_after=left)
        self._change("half open")

    def succeeded(self) -> None:
        self._in_a_row = 0
        self._change("closed")

    def failed(self) -> None:
        self._in_a_row += 1
        if self.state == "half open" or self._in_a_row >= self.failures:
            self._open_until = self._clock() + self.cooldown_s
            self._change("open")

    def forgotten(self) -> None:
        if self.state == "half open":
            self._change("open")  # its cooldown is over: the next call looks

    def _change(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self._on_change(state)


class Limiter:
    """At most `limit` at once of each key; 0: no limit."""

    def __init__(self, limit: int, what: str) -> None:
        self.limit, self.what = limit, what
        self._running: dict[str, int] = {}

    @contextmanager
    def slot(self, key: str = "") -> Iterator[None]:
        """TooManyRequests where `key` has `limit` already."""
        if not self.limit:
            yield
            return
        running = self._running.get(key, 0)
        if running >= self.limit:
            raise TooManyRequests(f"{running} requests are running, the limit of {self.what}", retry_after=1)
        self._running[key] = running + 1
        try:
            yield
        finally:
            if self._running[key] == 1:
                del self._running[key]
            else:
                self._running[key] -= 1
