"""Can this machine run the Triton of the PyPI wheel, and which Python hosts its Python models."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kservekit.errors import CannotStart

PYTHONS = ("3.11", "3.12")
"""Older ones are not ours; for 3.13 NumPy 1.26, which the wheel is built for, has no wheel."""
MACHINES = ("x86_64", "aarch64")
OLDEST_GLIBC = (2, 35)

ELSEWHERE = "or set KSERVEKIT_TRITONSERVER to a tritonserver binary, or work in NVIDIA's Triton container"

# What decides is asked of the candidate itself: config variables describe the interpreter that runs this.
_FACTS = """
import importlib.util, json, sys, sysconfig
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2],
    "base_prefix": sys.base_prefix,
    "libdir": sysconfig.get_config_var("LIBDIR") or "",
    "multiarch": sysconfig.get_config_var("MULTIARCH") or "",
    "library": sysconfig.get_config_var("INSTSONAME") or "",
    "ensurepip": importlib.util.find_spec("ensurepip") is not None,
}))
"""


class TritonUnavailable(CannotStart):
    """This machine has no Triton and cannot get one. The message says why, and what would help."""


@dataclass(frozen=True)
class Machine:
    system: str
    architecture: str
    glibc: str
    """Such as 2.36; empty where the C library is another one."""


@dataclass(frozen=True)
class Interpreter:
    path: Path
    version: str
    library_folder: Path
    """Where its shared libpython lies, which Triton's stub process loads."""


def this_machine() -> Machine:
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError):
        name, version = "", ""
    return Machine(platform.system(), platform.machine(), version if name == "glibc" else "")


def check_machine(machine: Machine) -> None:
    """TritonUnavailable if the wheel's binaries cannot run here, whatever is installed."""
    if machine.system != "Linux":
        raise TritonUnavailable(
            f"Triton's wheel cannot run on {machine.system}: it is built for Linux; use a Linux machine or container, "
            f"{ELSEWHERE}"
        )
    if machine.architecture not in MACHINES:
        raise TritonUnavailable(
            f"Triton's wheel cannot run on {machine.architecture}: it is built for {' and '.join(MACHINES)}; "
            f"use such a machine, {ELSEWHERE}"
        )
    oldest = ".".join(map(str, OLDEST_GLIBC))
    if not machine.glibc:
        raise TritonUnavailable(
            f"Triton's wheel needs glibc {oldest}, and this system has another C library, such as musl in Alpine; "
            f"use a Debian or Ubuntu image, {ELSEWHERE}"
        )
    if tuple(int(part) for part in machine.glibc.split(".")[:2]) < OLDEST_GLIBC:
        raise TritonUnavailable(
            f"Triton's wheel needs glibc {oldest} or newer, and this system has {machine.glibc}; "
            f"use Debian 12, Ubuntu 22.04 or newer, {ELSEWHERE}"
        )


def find_interpreter(candidates: Iterable[Path]) -> Interpreter:
    """The first that can host Python models; TritonUnavailable with what is wrong with each of them."""
    refusals = []
    for candidate in candidates:
        try:
            return probe(candidate)
        except TritonUnavailable as refusal:
            refusals.append(str(refusal))
    raise TritonUnavailable(
        f"Triton needs a Python {' or '.join(PYTHONS)} with a shared libpython, and none was found; "
        "install libpython3.11 and python3.11-venv on Debian 12, libpython3.12 and python3.12-venv on Ubuntu 24.04, "
        "or elsewhere, as on Debian 13, one from uv, conda or pyenv (PYTHON_CONFIGURE_OPTS=--enable-shared), "
        f"{ELSEWHERE}" + "".join(f"\n  {refusal}" for refusal in refusals)
    )


def candidates(environ: Mapping[str, str]) -> Iterator[Path]:
    """The Python that runs this, beneath its virtual environment, then every fitting name on PATH."""
    seen = set()
    folders = [Path(folder) for folder in environ.get("PATH", "").split(os.pathsep) if folder]
    names = [*(f"python{version}" for version in PYTHONS), "python3"]
    running = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    for path in [running, *(folder / name for name in names for folder in folders)]:
        if os.access(path, os.X_OK) and (real := path.resolve()) not in seen:
            # A version manager may put one program there under all names: then the name says which Python it means.
            if real.name.startswith("python"):
                seen.add(real)
            yield path


def probe(python: Path) -> Interpreter:
    """Ask one interpreter; TritonUnavailable says in one line why it does not fit."""
    try:
        answer = subprocess.run(  # noqa: S603  an interpreter found on PATH
            [python, "-I", "-c", _FACTS], capture_output=True, text=True, timeout=30, check=True
        )
        facts = json.loads(answer.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        raise TritonUnavailable(f"{python}: does not run") from None
    version = facts["version"]
    if version not in PYTHONS:
        raise TritonUnavailable(f"{python}: is Python {version}")
    if not facts["ensurepip"]:
        raise TritonUnavailable(f"{python}: has no ensurepip (Debian's package is python{version}-venv)")
    folders = (facts["libdir"], os.path.join(facts["libdir"], facts["multiarch"]), facts["base_prefix"] + "/lib")
    for folder in map(Path, folders):
        # Python builds without a shared library name the static archive here.
        if ".so" in facts["library"] and (folder / facts["library"]).is_file():
            return Interpreter(python, version, folder)
    raise TritonUnavailable(f"{python}: has no shared libpython (Debian's package is libpython{version})")
