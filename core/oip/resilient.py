"""Calls that survive a backend's bad moment: tried again within limits, and not at all while it is down."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

import numpy as np
from numpy.typing import DTypeLike

from kservekit.codec.message import Answer, Request
from kservekit.config import BackendSettings
from kservekit.errors import DeadlineExceeded, ServingError, Unavailable
from kservekit.oip.backend import Backend
from kservekit.resilience import CircuitBreaker, RetryBudget
from kservekit.tensors import ModelSpec

log = logging.getLogger(__name__)

FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 1.0


class ResilientBackend:
    """Another Backend, with retries for Unavailable alone, and a circuit breaker.

    A call is tried again only while its deadline allows the wait, and only within the budget of all calls.
    """

    def __init__(
        self,
        backend: Backend,
        settings: BackendSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.wire = backend
        self.retries = settings.retries
        self.budget = RetryBudget(settings.retry_ratio)
        self.breaker = (
            CircuitBreaker(settings.breaker_failures, settings.breaker_cooldown_s, clock=clock, on_change=_log_breaker)
            if settings.breaker_failures
            else None
        )
        self._clock, self._sleep, self._jitter = clock, sleep, jitter

    async def infer(self, request: Request) -> Answer:
        self.budget.called()
        attempt = 0
        while True:
            if self.breaker is not None:
                self.breaker.check()
            try:
                return await self._once(request)
            except Unavailable as error:
                # Full jitter: callers that failed together must not come back together.
                wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt) * (0.5 + 0.5 * self._jitter())
                asked_to_stay_away = (error.retry_after or 0) > LONGEST_WAIT_S
                late = self._clock() + wait >= request.deadline
                # What a sequence has got twice it would count twice.
                over = attempt >= self.retries or "sequence_id" in request.parameters
                if over or asked_to_stay_away or late or not self.budget.may_retry():
                    raise
                attempt += 1
                await self._sleep(wait)

    async def stream(self, request: Request) -> AsyncGenerator[Answer]:
        """Never tried again: what came already would come twice."""
        if self.breaker is not None:
            self.breaker.check()
        try:
            async with aclosing(self.wire.stream(request)) as answers:
                async for answer in answers:
                    yield answer
        except BaseException as error:
            self._tell_breaker(error, request)
            raise
        self._tell_breaker(None, request)

    async def ready(self, model: str, version: str = "") -> bool:
        """Asks the backend itself: a probe is what finds out that it is well again."""
        return await self.wire.ready(model, version)

    async def spec(self, model: str, version: str = "") -> ModelSpec:
        return await self.wire.spec(model, version)

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
        return self.wire.empty(shape, dtype)

    async def close(self) -> None:
        await self.wire.close()

    async def _once(self, request: Request) -> Answer:
        try:
            answer = await self.wire.infer(request)
        except BaseException as error:
            self._tell_breaker(error, request)
            raise
        self._tell_breaker(None, request)
        return answer

    def _tell_breaker(self, error: BaseException | None, request: Request) -> None:
        if self.breaker is None:
            return
        if isinstance(error, ServingError) and error.elsewhere:
            self.breaker.forgotten()
            return
        silent = isinstance(error, DeadlineExceeded)
        # A backend that keeps silent for its whole budget is ill; a caller in a hurry says nothing of it.
        if isinstance(error, Unavailable) or (silent and self._clock() < request.deadline):
            self.breaker.failed()
        elif error is None or (isinstance(error, ServingError) and not silent):
            self.breaker.succeeded()  # any other answer shows that it is there
        else:
            self.breaker.forgotten()


def _log_breaker(state: str) -> None:
    log.warning("the breaker in front of the backend is %s", state)
