"""Engines that were built, kept on disk: for one model, one library, one GPU and one set of options."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kservekit import config
from kservekit.errors import CannotStart
from kservekit.predictors.replace import replace
from kservekit.predictors.tensorrt_build import Options
from kservekit.predictors.tensorrt_runtime import Gpu, Library

log = logging.getLogger(__name__)

_LOCATION = re.compile(rb"\x0a\x08location\x12")
"""ONNX's entry for a file of weights, as protobuf writes it: the key, and the tag of the value that follows."""


def engine_name(library: Library, gpu: Gpu, model: Path, options: Options) -> str:
    """The file's name for an engine; another one where anything differs that the engine depends on."""
    depends = {
        "model": _digest(model),
        "library": [library.name, library.api.__version__],
        "gpu": dataclasses.astuple(gpu),
        "options": dataclasses.asdict(options),
    }
    key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
    return f"{model.stem}-{key[:40]}.engine"


def folder(setting: str) -> Path | None:
    """Where engines are kept; None where they are not."""
    if not setting:
        return None
    try:
        return config.cache_folder() / "engines" if setting == "auto" else Path(setting).expanduser()
    except (RuntimeError, CannotStart):
        log.warning("this user has no home folder, so no engine is kept; %s", _WAY_OUT)
        return None


def read(folder: Path, name: str) -> bytes | None:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("the engine in %s is not read, and built anew: %s", folder, error)
        return None


@contextmanager
def one_builds(folder: Path) -> Iterator[None]:
    """One process at a time, of those with this folder: who had to wait finds what the other one built. Builds on one
    GPU would also disturb each other's timing of kernels."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # nothing can be kept there, so there is nothing to wait for
        yield
        return
    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("another process builds an engine for %s: waiting for it", folder)
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def keep(folder: Path, name: str, engine: bytes) -> None:
    """A folder that cannot be written costs a warning."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write(folder / name, engine)
    except OSError as error:
        log.warning("the engine is not kept, and built again at the next start: %s; %s", error, _WAY_OUT)


_WAY_OUT = "set KSERVEKIT_TENSORRT_ENGINE_CACHE to a folder that can be written"


def write(path: Path, engine: bytes) -> None:
    """All of it or nothing, also where several do it at once, or the machine stops."""

    def to_the_disk(partial: Path) -> None:
        with partial.open("wb") as file:
            file.write(engine)
            file.flush()
            os.fsync(file.fileno())

    replace(path, to_the_disk)


def _digest(model: Path) -> str:
    """Of a model's file, and of those beside it that hold its weights."""
    content = model.read_bytes()
    digest = hashlib.sha256(content)
    for name in sorted(_weights(content)):
        file = model.parent / os.fsdecode(name)
        if file.is_file():  # else the parser says that it is missing
            with file.open("rb") as weights:
                digest.update(hashlib.file_digest(weights, "sha256").digest())
    return digest.hexdigest()


def _weights(content: bytes) -> set[bytes]:
    """Files that an ONNX file names, read without the package onnx, which a serving image need not have."""
    found = set()
    for match in _LOCATION.finditer(content):
        at, length, shift = match.end(), 0, 0
        while at < len(content) and shift < 32:
            byte = content[at]
            length |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                break
        found.add(content[at : at + length])
    return {name for name in found if 0 < len(name) < 4096 and b"\0" not in name}
