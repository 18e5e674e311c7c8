from __future__ import annotations

import hashlib
import importlib.util
import os
import zipfile
from pathlib import Path

import pytest

from kservekit.errors import CannotStart
from kservekit.local import fetch
from kservekit.local.fetch import wheel_members

CONTENT = {"tiny/data/cat.png": b"a cat", "tiny/data/dog.png": b"a dog", "tiny/__init__.py": b"raise SystemExit"}
DIGESTS = {name: hashlib.sha256(data).hexdigest() for name, data in CONTENT.items()}
PINNED = {name: DIGESTS[name] for name in ("tiny/data/cat.png", "tiny/data/dog.png")}

needs_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this interpreter has no pip")


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the registry; pip sees nothing else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture
def said() -> list[str]:
    return []


def publish(index: Path, content: dict[str, bytes] | None = None, *, version: str = "1.0") -> Path:
    wheel = index / f"tiny-{version}-py3-none-any.whl"
    info = f"tiny-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (CONTENT if content is None else content).items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@needs_pip
def test_the_named_members_arrive_and_nothing_else_of_the_wheel(index: Path, tmp_path: Path, said: list[str]) -> None:
    publish(index)
    target = tmp_path / "cache"
    found = wheel_members("tiny==1.0", PINNED, target, progress=said.append)
    assert {name: path.read_bytes() for name, path in found.items()} == {name: CONTENT[name] for name in PINNED}
    assert files(target) == {name: CONTENT[name] for name in PINNED}
    assert said == ["fetching tiny==1.0"]


@needs_pip
def test_what_is_there_is_not_fetched_again(index: Path, tmp_path: Path, said: list[str]) -> None:
    wheel = publish(index)
    first = wheel_members("tiny==1.0", PINNED, tmp_path / "cache", progress=said.append)
    wheel.unlink()
    said.clear()
    assert wheel_members("tiny==1.0", PINNED, tmp_path / "cache", progress=said.append) == first
    assert said == []


@needs_pip
def test_a_damaged_file_is_fetched_again_and_its_intact_neighbour_is_left_alone(
    index: Path, tmp_path: Path, said: list[str]
) -> None:
    publish(index)
    found = wheel_members("tiny==1.0", PINNED, tmp_path / "cache", progress=said.append)
    cat, dog = found.values()
    cat.write_bytes(b"a ca")
    inode = dog.stat().st_ino
    wheel_members("tiny==1.0", PINNED, tmp_path / "cache", progress=said.append)
    assert cat.read_bytes() == b"a cat"
    assert dog.stat().st_ino == inode


@needs_pip
def test_one_member_with_other_bytes_keeps_the_whole_wheel_out(index: Path, tmp_path: Path, said: list[str]) -> None:
    publish(index, CONTENT | {"tiny/data/dog.png": b"a wolf"})
    with pytest.raises(
        CannotStart, match=rf"tiny/data/dog\.png in tiny==1\.0 .* expected {DIGESTS['tiny/data/dog.png']}"
    ):
        wheel_members("tiny==1.0", PINNED, tmp_path / "cache", progress=said.append)
    assert files(tmp_path / "cache") == {}


@needs_pip
def test_a_refused_wheel_does_not_cost_the_file_that_was_there(index: Path, tmp_path: Path, said: list[str]) -> None:
    publish(index, CONTENT | {"tiny/data/dog.png": b"a wolf"})
    cat = tmp_path / "cache/tiny/data/cat.png"
    cat.parent.mkdir(parents=True)
    cat.write_bytes(CONTENT["tiny/data/cat.png"])
    with pytest.raises(CannotStart):
        wheel_members("tiny==1.0", PINNED, tmp_path / "cache", progress=said.append)
    assert files(tmp_path / "cache") == {"tiny/data/cat.png": b"a cat"}


@needs_pip
def test_a_member_that_the_wheel_lacks_is_named(index: Path, tmp_path: Path, said: list[str]) -> None:
    publish(index, {"tiny/data/cat.png": b"a cat"})
    with pytest.raises(CannotStart, match=r"tiny==1\.0 holds no tiny/data/dog\.png"):
        wheel_members("tiny==1.0", PINNED, tmp_path / "cache", progress=said.append)
    assert files(tmp_path / "cache") == {}


@needs_pip
def test_a_version_that_is_not_there_says_the_package_pips_complaint_and_the_way_out(
    index: Path, tmp_path: Path, said: list[str]
) -> None:
    publish(index, version="2.0")
    with pytest.raises(CannotStart) as caught:
        wheel_members("tiny==1.0", PINNED, tmp_path / "cache", progress=said.append)
    message = str(caught.value)
    assert message.startswith("tiny==1.0 cannot be fetched: ")
    assert "No matching distribution found for tiny==1.0" in message
    assert "PIP_INDEX_URL" in message
    assert files(tmp_path / "cache") == {}


@needs_pip
def test_a_network_that_stays_silent_ends_the_wait(
    index: Path, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(index)
    monkeypatch.setattr(fetch, "TIMEOUT_S", 0.01)
    with pytest.raises(CannotStart, match=r"tiny==1\.0 did not arrive within 0\.01 seconds"):
        wheel_members("tiny==1.0", PINNED, tmp_path / "cache", progress=said.append)
    assert files(tmp_path / "cache") == {}


@needs_pip
def test_a_member_over_the_limit_is_refused(
    index: Path, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(index)
    monkeypatch.setattr(fetch, "SIZE_LIMIT", 4)
    with pytest.raises(CannotStart, match=r"tiny/data/cat\.png in tiny==1\.0 has 5 bytes, more than the limit of 4"):
        wheel_members("tiny==1.0", PINNED, tmp_path / "cache", progress=said.append)


@needs_pip
def test_a_wheel_that_was_damaged_on_its_way_is_refused(index: Path, tmp_path: Path, said: list[str]) -> None:
    wheel = publish(index)
    wheel.write_bytes(wheel.read_bytes().replace(b"a cat", b"a bat"))
    with pytest.raises(CannotStart, match=r"tiny==1\.0 arrived damaged"):
        wheel_members("tiny==1.0", PINNED, tmp_path / "cache", progress=said.append)
    assert files(tmp_path / "cache") == {}


@needs_pip
def test_a_target_that_is_no_folder_is_named(index: Path, tmp_path: Path, said: list[str]) -> None:
    publish(index)
    (tmp_path / "cache").write_bytes(b"a file in the way")
    with pytest.raises(CannotStart, match=r"tiny==1\.0 cannot be kept in .*cache"):
        wheel_members("tiny==1.0", PINNED, tmp_path / "cache", progress=said.append)


def test_an_interpreter_without_pip_says_how_to_get_it(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CannotStart, match=r"has no pip; run .* -m ensurepip"):
        wheel_members("tiny==1.0", PINNED, tmp_path / "cache", progress=said.append)


@pytest.mark.parametrize(
    "requirement", ["tiny", "tiny>=1.0", "--pre", "--index-url==x", "tiny==1.0 other", "tiny==1.*"]
)
def test_only_a_pinned_requirement_reaches_pip(requirement: str, tmp_path: Path, said: list[str]) -> None:
    with pytest.raises(ValueError, match="not pinned"):
        wheel_members(requirement, PINNED, tmp_path / "cache", progress=said.append)
