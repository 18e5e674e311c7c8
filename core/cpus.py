"""How many CPUs this process may use: those it may run on, and of these no more than its container's limit."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cpus(root: Path = Path("/"), runnable: int | None = None) -> int:
    """At least 1. A limit of one and a half CPUs is 2 threads: one more waits now and then, one less never works.

    os.cpu_count() is the node's, also in a pod that is limited to two: 64 threads would share those two, and be
    stopped together for most of the time. `runnable`: as the scheduler says it, where nobody says otherwise.
    """
    count = _runnable() if runnable is None else runnable
    return max(1, min([count, *map(math.ceil, _limits(root))]))


def _runnable() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _limits(root: Path) -> Iterator[float]:
    """In CPUs: that of this process's own group, and of each group around it."""
    mounted = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, group = line.partition(":")
        controllers, _, path = group.partition(":")
        if number == "0" and not controllers:
            for folder in _folders(mounted, path):
                quota, _, period = _text(folder / "cpu.max").partition(" ")
                yield from _quota(quota, period)
        elif "cpu" in controllers.split(","):
            for folder in (*_folders(mounted / "cpu", path), *_folders(mounted / controllers, path)):
                yield from _quota(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))


def _folders(mounted: Path, path: str) -> list[Path]:
    """From the group's up to the mount, which in a container is the group itself, and its path then the node's."""
    own = Path(path.lstrip("/"))
    return [mounted / folder for folder in (own, *own.parents)]


def _quota(quota: str, period: str) -> Iterator[float]:
    """Nothing where there is no limit: version 2 says `max`, version 1 -1."""
    if quota.strip().isdigit() and period.strip().isdigit() and int(period):
        yield int(quota) / int(period)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
