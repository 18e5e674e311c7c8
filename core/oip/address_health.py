"""Which of a backend's addresses get calls: a sick one is left out while another is well."""

from __future__ import annotations

SICK_AFTER = 3
"""Calls in a row that an address refused as unavailable, or left without a word, after which it is left out."""
FIRST_OUT_S, LONGEST_OUT_S = 1.0, 10.0
"""For so long, as long as another one is well; then it gets one call to show that it is well again."""


class Health:
    """What an address' last calls say of it, over all its connections."""

    __slots__ = ("_failures", "_out_s", "_out_until", "heard_at")

    def __init__(self) -> None:
        self._failures = 0
        self._out_s, self._out_until = FIRST_OUT_S, 0.0
        self.heard_at = 0.0
        """When it last answered, whatever it said."""

    @property
    def well(self) -> bool:
        return self._failures < SICK_AFTER

    def takes_call(self, now: float) -> bool:
        """Whether it gets one now; where it is sick, that is the one by which it is seen whether it still is."""
        if self.well:
            return True
        if now < self._out_until:
            return False
        self._leave_out(now)
        return True

    def answered(self, now: float) -> None:
        self.heard_at = now
        self._failures, self._out_s = 0, FIRST_OUT_S

    def failed(self, now: float) -> None:
        self._failures += 1
        if self._failures == SICK_AFTER:
            self._leave_out(now)

    def _leave_out(self, now: float) -> None:
        self._out_until = now + self._out_s
        self._out_s = min(2 * self._out_s, LONGEST_OUT_S)
