"""Model repositories, written while others write and read them."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from kservekit.predictors.repository import write_model
from kservekit.tensors import ModelSpec, TensorSpec

SPEC = ModelSpec((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),))


@pytest.fixture
def files(tmp_path):
    """Two whose names differ in the ending only."""
    found = {name: tmp_path / f"source-{name}" for name in ("model.py", "model.onnx")}
    for name, source in found.items():
        source.write_bytes(name.encode() * 100_000)
    return found


def test_many_writers_at_once_do_not_disturb_each_other(tmp_path, files):
    repository = tmp_path / "repository"
    with ThreadPoolExecutor(16) as pool:
        for done in [pool.submit(write_model, repository, "m", SPEC, files) for _ in range(200)]:
            done.result()
    left = {path.relative_to(repository / "m").as_posix() for path in (repository / "m").rglob("*") if path.is_file()}
    assert left == {"config.pbtxt", "1/model.py", "1/model.onnx"}
    for name, source in files.items():
        assert (repository / "m/1" / name).read_bytes() == source.read_bytes()


def test_what_has_not_changed_is_not_replaced_and_what_has_is(tmp_path, files):
    folder = write_model(tmp_path / "repository", "m", SPEC, files)
    paths = [folder / "config.pbtxt", folder / "1/model.py", folder / "1/model.onnx"]
    before = [path.stat().st_ino for path in paths]
    write_model(tmp_path / "repository", "m", SPEC, files)
    assert [path.stat().st_ino for path in paths] == before
    files["model.py"].write_text("another")
    write_model(tmp_path / "repository", "m", SPEC, files, max_batch_size=8)
    assert (folder / "1/model.py").read_text() == "another"
    assert "max_batch_size: 8" in (folder / "config.pbtxt").read_text()
    assert paths[2].stat().st_ino == before[2]


def test_a_file_that_cannot_be_copied_leaves_nothing_behind(tmp_path, files):
    with pytest.raises(FileNotFoundError):
        write_model(tmp_path / "repository", "m", SPEC, {"model.py": tmp_path / "nix"})
    assert list((tmp_path / "repository/m/1").iterdir()) == []
