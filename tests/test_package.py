"""What is installed: one name, everything in it, and good manners towards others."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {
    "core": "",
    "predictors": "predictors/",
    "transformers": "transformers/",
    "local": "local/",
    "manifests": "manifests/",
    "benchmarks": "benchmarks/",
    "loadtest": "loadtest/",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, because setuptools would put what an older build left in the folder into it."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", folder, folder]
    subprocess.run(command, check=True)
    return next(folder.glob("kservekit-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the wheel's content, without the editable install's import hook in its way."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


def python(code, *, cwd, path=None):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)


def test_the_wheel_installs_one_top_level_name(wheel):
    with zipfile.ZipFile(wheel) as file:
        tops = {name.split("/")[0] for name in file.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"kservekit"}


def test_the_wheel_has_every_file_of_every_room(wheel):
    expected = {
        f"kservekit/{target}{file.relative_to(ROOT / room).as_posix()}"
        for room, target in ROOMS.items()
        for file in (ROOT / room).rglob("*")
        if file.suffix in (".py", ".yaml", ".toml", ".json", ".md")
    }
    with zipfile.ZipFile(wheel) as file:
        assert {name for name in file.namelist() if name.startswith("kservekit/")} == expected


def test_hugging_faces_transformers_lives_beside_ours(installed, tmp_path):
    done = python(
        "import transformers, kservekit.transformers.image\n"
        "assert transformers.AutoConfig.__module__.startswith('transformers.')\n"
        "print(kservekit.transformers.__file__)",
        cwd=tmp_path,
        path=installed,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(installed / "kservekit/transformers/__init__.py")


def test_our_folder_imported_as_the_other_package_says_what_is_wrong():
    done = python("import transformers", cwd=ROOT)
    assert done.returncode == 1
    assert "ImportError: this is kservekit's folder transformers/, not Hugging Face's package" in done.stderr


def test_import_kservekit_imports_nothing_else(tmp_path):
    done = python(
        "import sys; before = set(sys.modules); import kservekit; print(*set(sys.modules) - before)", cwd=tmp_path
    )
    assert {name for name in done.stdout.split() if not name.startswith("__editable__")} <= {"kservekit"}
