"""What a table is worth depends on: command lines, versions, cores."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("kservekit", "kserve", "grpcio", "protobuf", "uvicorn", "uvloop", "httptools", "numpy")

HANDLERS = """\
handlers: plain is a `def`, async an `async def`; both give back what they are given. identity: a transformer that
overrides no hook, ours or stock's; the bare hop; Triton's Python model, which gives back what it is given."""


def versions(triton: str, programs: Iterable[str]) -> str:
    found = [f"python {platform.python_version()}", *(f"{name} {_version(name)}" for name in PACKAGES)]
    found += [_program_version(program) for program in programs]
    return f"versions: {', '.join(found)}; {triton or 'Triton was not needed'}"


def machine(others: float | None) -> str:
    """`others` is the load average before the first row: what took part in the measurements without being asked."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    busy = "" if others is None else f", load average {others:.1f} before the first row"
    return f"machine: {usable} cores, {platform.machine()}{busy}; all on loopback, one contender at a time"


def load_average() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def command_lines(commands: Iterable[Sequence[str]]) -> list[str]:
    """Each once, as typed; two that differ in their ports alone are one."""
    found: dict[str, str] = {}
    for command in commands:
        text = shlex.join([Path(command[0]).name, *command[1:]])
        found.setdefault(re.sub(r"\b\d{4,5}\b", "PORT", text), text)
    return list(found.values())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _program_version(program: str) -> str:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)  # noqa: S603
    first = (done.stdout or done.stderr).splitlines()[0]
    return first if program == "h2load" else " ".join(first.split()[:2])
