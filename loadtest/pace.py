"""Waiting in a loop of greenlets: to a fraction of a millisecond, and knowing how much of the time it had work."""

from __future__ import annotations

import time

import gevent

COARSE_S = 0.0015
"""gevent's timers are late by up to a millisecond; the rest is waited out with the loop turning."""
EMPTY_TURN_S = 60e-6
"""A turn of the loop that took less had nothing to do."""


class LoopClock:
    """Counts the seconds in which the loop had nothing to do."""

    def __init__(self) -> None:
        loop = gevent.get_hub().loop
        self._idle_s = 0.0
        self._since = 0.0
        # Last before the loop waits, after gevent has run what it had; first thereafter.
        before = loop.prepare(ref=False, priority=loop.MINPRI)
        after = loop.check(ref=False, priority=loop.MAXPRI)
        self._watchers = [(before, self._before), (after, self._after)]
        for watcher, callback in self._watchers:
            watcher.start(callback)
        self.begin()

    def begin(self) -> None:
        self._idle_s = 0.0
        self._begin = time.perf_counter()

    def wait_until(self, moment: float) -> None:
        """Of time.perf_counter(); returns at once where it has passed."""
        left = moment - time.perf_counter()
        if left > COARSE_S:
            gevent.sleep(left - COARSE_S)
        while (now := time.perf_counter()) < moment:
            before = self._idle_s
            gevent.sleep(0)
            turn = time.perf_counter() - now
            if turn < EMPTY_TURN_S:
                self._idle_s = before + turn

    @property
    def busy(self) -> float:
        """Share of the time since the beginning."""
        passed = time.perf_counter() - self._begin
        return min(1.0, max(0.0, 1 - self._idle_s / passed)) if passed else 0.0

    def close(self) -> None:
        for watcher, _ in self._watchers:
            watcher.stop()

    def _before(self) -> None:
        self._since = time.perf_counter()

    def _after(self) -> None:
        if self._since:
            self._idle_s += time.perf_counter() - self._since
            self._since = 0.0
