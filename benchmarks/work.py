"""Work for handlers, ours and stock's: a second of a thread's own processor time, or so many steps."""

from __future__ import annotations

import time

import numpy as np

COMPUTE_S = 1.0


def compute_in_numpy() -> None:
    """Lets go of the GIL for nearly all of the second."""
    values, end = np.linspace(0.0, 1.0, 1_000_000), time.thread_time() + COMPUTE_S
    while time.thread_time() < end:
        np.sin(values, out=values)


def compute_in_python() -> None:
    """Holds the GIL as long as the interpreter lets it."""
    end = time.thread_time() + COMPUTE_S
    while time.thread_time() < end:
        count(10_000)


def count(steps: int) -> int:
    total = 0
    for step in range(steps):
        total += step * step
    return total
