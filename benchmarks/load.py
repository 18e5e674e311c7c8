"""The load generators, wrk and h2load, as processes that cannot outlive us, and the files that they send."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kservekit.benchmarks.contest import Figure
from kservekit.errors import CannotStart
from kservekit.local.cache import cache_folder, new_log
from kservekit.local.process import GuardedProcess

CONNECTIONS = 8
PACKAGES = {"wrk": "wrk", "h2load": "nghttp2-client"}
"""Program and Debian's package."""
STUCK_S = 60.0
"""What a load generator may need beyond the time that it is given."""

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Load:
    """What a load generator counted, all of it answered with success."""

    answers: int
    per_s: float
    p50_s: float
    p99_s: float
    data_bytes: int = 0
    """Of all bodies, where they were counted."""

    @property
    def figure(self) -> Figure:
        return Figure(self.per_s, self.p50_s, self.p99_s)


def require(programs: Iterable[str]) -> None:
    """CannotStart names those that are missing, and their packages."""
    needed = set(programs)
    missing = [program for program in PACKAGES if program in needed and not shutil.which(program)]
    if missing:
        raise CannotStart(
            f"{' and '.join(missing)}: not on PATH, and the load of these rows comes from there; "
            f"apt-get install {' '.join(PACKAGES[program] for program in missing)} (Debian's and Ubuntu's names)"
        )


def run(command: Sequence[str], *, seconds: float) -> str:
    """What the program wrote; CannotStart where it failed or hung."""
    name = Path(command[0]).name
    process = GuardedProcess(command, env=os.environ, log=new_log(name, next(_numbers)), grace_s=1.0)
    deadline = time.monotonic() + seconds + STUCK_S
    with process:
        while (code := process.poll()) is None and time.monotonic() < deadline:
            time.sleep(0.02)
    if code != 0:
        ended = f"ended with code {code}" if code is not None else f"did not end within {seconds + STUCK_S:g} s"
        raise CannotStart(f"{name} {ended}; the last lines of {process.log}:\n{process.log_tail()}")
    return process.log.read_text(errors="replace")


def folder() -> Path:
    """Where bodies, scripts and Triton's models lie; what is there can be made again, and is the same for everyone."""
    found = cache_folder() / "bench"
    found.mkdir(exist_ok=True)
    return found


def file(name: str, content: bytes) -> Path:
    """A file of that content, whole at any moment, because another benchmark may be reading it."""
    path = folder() / name
    if not path.is_file() or path.read_bytes() != content:
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_bytes(content)
        os.replace(partial, path)
    return path
