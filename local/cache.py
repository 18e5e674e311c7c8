"""Where kservekit keeps what it can make again: installed servers, downloaded models, logs."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from kservekit import config
from kservekit.errors import CannotStart

KEPT_LOGS = 20


def cache_folder(environ: Mapping[str, str] | None = None) -> Path:
    """KSERVEKIT_CACHE_DIR, else XDG_CACHE_HOME/kservekit, else ~/.cache/kservekit; it exists and can be written."""
    folder = config.cache_folder(os.environ if environ is None else environ)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStart(f"the cache folder {folder} cannot be created: {error.strerror}; {_WAY_OUT}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CannotStart(f"the cache folder {folder} cannot be written; {_WAY_OUT}")
    return folder


def new_log(role: str, number: int) -> Path:
    """A log file's name that no other process has.

    Of the older ones of this role the newest stay, and those of every process that still lives.
    """
    folder = cache_folder() / "logs"
    for old in sorted(folder.glob(f"{role}-*.log"))[: -(KEPT_LOGS - 1)]:
        if not _owner_lives(old):
            old.unlink(missing_ok=True)
    return folder / f"{role}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{number}.log"


def _owner_lives(log: Path) -> bool:
    try:
        os.kill(int(log.stem.split("-")[-2]), 0)
    except (ValueError, IndexError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        return True  # it is somebody else's
    return True


_WAY_OUT = "set KSERVEKIT_CACHE_DIR to a folder that can be written"
