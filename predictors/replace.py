"""Files that are replaced whole: who reads one meanwhile, or writes the same, sees no half of it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path


def replace(target: Path, write: Callable[[Path], object]) -> None:
    """`write` is given a file of a name that no other has, in the same folder; where it fails, the target stays."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        write(partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
