from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from calls import eventually

from kservekit.errors import CannotStart
from kservekit.local.cache import cache_folder
from kservekit.local.triton_host import (
    Interpreter,
    Machine,
    TritonUnavailable,
    candidates,
    check_machine,
    find_interpreter,
    probe,
)
from kservekit.local.triton_install import (
    PINS,
    ROOM_BYTES,
    Progress,
    ensure_environment,
    find_triton,
    finished_environment,
    install_wheels,
)

GOOD = Machine("Linux", "x86_64", "2.36")


def silent(line: str) -> None:
    pass


def plenty(folder: Path) -> int:
    return ROOM_BYTES


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def python_that_says(folder: Path, *, with_library: bool = True, **facts: object) -> Path:
    """A fake interpreter: whatever it is asked, it prints these facts; its library lies where they say."""
    (folder / "lib").mkdir(parents=True)
    told = {
        "version": "3.11",
        "base_prefix": str(folder),
        "libdir": "/install/lib",
        "multiarch": "",
        "library": "libpython3.11.so.1.0",
        "ensurepip": True,
    } | facts
    if with_library:
        (folder / "lib" / str(told["library"])).touch()
    return program(folder / "python3.11", f"#!/bin/sh\ncat <<'FACTS'\n{json.dumps(told)}\nFACTS\n")


def test_the_cache_is_where_the_settings_say(tmp_path: Path) -> None:
    own, xdg = str(tmp_path / "own"), str(tmp_path / "xdg")
    assert cache_folder({"KSERVEKIT_CACHE_DIR": own, "XDG_CACHE_HOME": xdg}) == tmp_path / "own"
    assert cache_folder({"XDG_CACHE_HOME": xdg}) == tmp_path / "xdg/kservekit"
    assert (tmp_path / "xdg/kservekit").is_dir()


def test_a_cache_that_cannot_be_made_is_named_with_the_setting_that_moves_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotStart, match=r"/file/cache cannot be created: Not a directory; set KSERVEKIT_CACHE_DIR"):
        cache_folder({"KSERVEKIT_CACHE_DIR": str(tmp_path / "file/cache")})


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (Machine("Darwin", "arm64", ""), "cannot run on Darwin: it is built for Linux"),
        (Machine("Linux", "ppc64le", "2.36"), "cannot run on ppc64le: it is built for x86_64 and aarch64"),
        (Machine("Linux", "x86_64", ""), "another C library, such as musl in Alpine"),
        (Machine("Linux", "x86_64", "2.34"), "needs glibc 2.35 or newer, and this system has 2.34"),
        (Machine("Linux", "aarch64", "2.9"), "needs glibc 2.35 or newer, and this system has 2.9"),
    ],
)
def test_a_machine_that_cannot_run_the_wheel_is_refused_before_anything_is_installed(
    tmp_path: Path, machine: Machine, reason: str
) -> None:
    with pytest.raises(TritonUnavailable, match=reason) as refusal:
        find_triton(progress=silent, environ={"KSERVEKIT_CACHE_DIR": str(tmp_path / "cache")}, machine=machine)
    assert "KSERVEKIT_TRITONSERVER" in str(refusal.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("glibc", ["2.35", "2.36", "2.100", "3.0", "2.39.9000"])
@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_a_machine_that_can_run_it_is_not_refused(glibc: str, architecture: str) -> None:
    check_machine(Machine("Linux", architecture, glibc))


@pytest.mark.parametrize("folder", ["lib", "lib/x86_64-linux-gnu", "elsewhere"])
def test_the_shared_library_is_found_where_pythons_are_known_to_keep_it(tmp_path: Path, folder: str) -> None:
    prefix = tmp_path if folder == "lib" else tmp_path / "unused"
    libdir = tmp_path / ("lib" if folder.startswith("lib/") else folder)
    python = python_that_says(
        tmp_path, with_library=False, base_prefix=str(prefix), libdir=str(libdir), multiarch="x86_64-linux-gnu"
    )
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / "libpython3.11.so.1.0").touch()
    assert probe(python) == Interpreter(python, "3.11", tmp_path / folder)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"with_library": False}, "has no shared libpython (Debian's package is libpython3.11)"),
        ({"library": "libpython3.11.a"}, "has no shared libpython (Debian's package is libpython3.11)"),
        ({"version": "3.13"}, "is Python 3.13"),
        ({"version": "3.8"}, "is Python 3.8"),
        ({"ensurepip": False}, "has no ensurepip (Debian's package is python3.11-venv)"),
    ],
)
def test_an_interpreter_that_cannot_host_python_models_is_refused(
    tmp_path: Path, facts: dict[str, object], reason: str
) -> None:
    python = python_that_says(tmp_path, **facts)  # type: ignore[arg-type]
    with pytest.raises(TritonUnavailable) as refusal:
        probe(python)
    assert str(refusal.value) == f"{python}: {reason}"


def test_shims_that_fail_are_skipped_and_the_first_that_fits_is_taken(tmp_path: Path) -> None:
    shim = program(
        tmp_path / "shims/python3.11", "#!/bin/sh\necho 'pyenv: python3.11: command not found' >&2\nexit 127\n"
    )
    static = python_that_says(tmp_path / "static", with_library=False)
    good = python_that_says(tmp_path / "good")
    folders = [path.parent for path in (shim, static, good)]
    found = list(candidates({"PATH": os.pathsep.join(map(str, folders))}))
    assert found[1:] == [shim, static, good]
    assert find_interpreter(found[1:]).path == good


def test_without_any_interpreter_each_that_was_tried_is_named_with_its_fault(tmp_path: Path) -> None:
    tried = [python_that_says(tmp_path / "a", with_library=False), python_that_says(tmp_path / "b", version="3.13")]
    with pytest.raises(
        TritonUnavailable, match=r"a Python 3\.11 or 3\.12 with a shared libpython.*on Debian 12, .*on Debian 13"
    ) as refusal:
        find_interpreter(tried)
    assert str(refusal.value).splitlines()[1:] == [
        f"  {tried[0]}: has no shared libpython (Debian's package is libpython3.11)",
        f"  {tried[1]}: is Python 3.13",
    ]


def test_the_python_beneath_a_virtual_environment_is_the_first_candidate() -> None:
    first = next(candidates({}))
    assert first.parent.parent == Path(sys.base_prefix)


@pytest.mark.parametrize("value", ["/no/such/tritonserver", "/", __file__])
def test_a_wrong_path_in_the_setting_is_refused_with_its_value(value: str) -> None:
    with pytest.raises(CannotStart, match="expected the path of an executable tritonserver") as refusal:
        find_triton(progress=silent, environ={"KSERVEKIT_TRITONSERVER": value}, machine=GOOD)
    assert f"KSERVEKIT_TRITONSERVER is {value!r}" in str(refusal.value)


def test_a_triton_that_is_there_is_used_with_the_folders_beside_it_the_setting_first(tmp_path: Path) -> None:
    named, on_path = (program(tmp_path / name / "bin/tritonserver", "#!/bin/sh\n") for name in ("named", "path"))
    (tmp_path / "path/backends/python").mkdir(parents=True)
    (tmp_path / "path/caches").mkdir()
    environ = {"PATH": str(on_path.parent)}

    found = find_triton(progress=silent, environ=environ, machine=Machine("Darwin", "arm64", ""))
    assert (found.command, found.env) == ((str(on_path),), {})
    assert (found.backend_directory, found.cache_directory) == (tmp_path / "path/backends", tmp_path / "path/caches")
    assert not found.python_models
    (tmp_path / "path/backends/python/triton_python_backend_stub").touch()
    assert find_triton(progress=silent, environ=environ).python_models

    found = find_triton(progress=silent, environ={**environ, "KSERVEKIT_TRITONSERVER": str(named)})
    assert (found.command, found.backend_directory, found.cache_directory) == ((str(named),), None, None)
    assert "KSERVEKIT_TRITONSERVER" in found.where


def test_a_cache_path_that_a_shell_would_split_is_refused_as_the_python_backend_cannot_use_it(tmp_path: Path) -> None:
    with pytest.raises(TritonUnavailable, match=r"my cache.*a shell unquoted; set KSERVEKIT_CACHE_DIR"):
        find_triton(progress=silent, environ={"KSERVEKIT_CACHE_DIR": str(tmp_path / "my cache")}, machine=GOOD)


class Installer:
    """Stands for venv and pip: makes what they leave behind, and counts."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.runs = 0
        self.fails = fails

    def __call__(self, interpreter: Interpreter, folder: Path, progress: Progress, lock: int) -> None:
        self.runs += 1
        (folder / "bin").mkdir(parents=True)
        (folder / "bin/python").touch()
        if self.fails:
            raise self.fails


@pytest.fixture
def interpreter(tmp_path: Path) -> Interpreter:
    return probe(python_that_says(tmp_path / "python"))


def test_it_is_installed_once_and_found_again(tmp_path: Path, interpreter: Interpreter) -> None:
    install = Installer()
    assert finished_environment(tmp_path) is None
    for _ in range(2):
        made = ensure_environment(tmp_path, lambda: interpreter, progress=silent, install=install, free_bytes=plenty)
    assert made == finished_environment(tmp_path)
    assert (made.folder, made.library_folder) == (tmp_path / "triton-0.7.0-py311", interpreter.library_folder)
    assert install.runs == 1


def test_a_half_made_environment_is_removed_and_made_again(tmp_path: Path, interpreter: Interpreter) -> None:
    def ensure(install: Installer) -> Path:
        return ensure_environment(
            tmp_path, lambda: interpreter, progress=silent, install=install, free_bytes=plenty
        ).folder

    with pytest.raises(KeyboardInterrupt):
        ensure(Installer(fails=KeyboardInterrupt()))  # type: ignore[arg-type]
    assert finished_environment(tmp_path) is None
    half = tmp_path / "triton-0.7.0-py311"
    (half / "half-written").touch()
    assert ensure(Installer()) == half
    assert not (half / "half-written").exists()


@pytest.mark.parametrize("missing", ["pins", "interpreter", "library"])
def test_an_environment_that_no_longer_holds_is_made_again(
    tmp_path: Path, interpreter: Interpreter, missing: str
) -> None:
    install = Installer()

    def ensure() -> Path:
        return ensure_environment(
            tmp_path, lambda: interpreter, progress=silent, install=install, free_bytes=plenty
        ).folder

    folder = ensure()
    if missing == "pins":
        marker = json.loads((folder / "complete.json").read_text())
        assert marker["pins"] == list(PINS)
        (folder / "complete.json").write_text(json.dumps(marker | {"pins": ["nvidia-pytriton==0.6.0"]}))
    elif missing == "interpreter":
        (folder / "bin/python").unlink()
    else:
        (interpreter.library_folder).rename(tmp_path / "gone")
    ensure()
    assert install.runs == 2


def test_parallel_starts_wait_for_the_one_that_installs(tmp_path: Path, interpreter: Interpreter) -> None:
    said: list[str] = []
    install = Installer()
    waiting = threading.Event()

    def slowly(*arguments: object) -> None:
        assert waiting.wait(30)
        install(*arguments)  # type: ignore[arg-type]

    def progress(line: str) -> None:
        said.append(line)
        if "waiting" in line:
            waiting.set()

    def ensure() -> None:
        ensure_environment(tmp_path, lambda: interpreter, progress=progress, install=slowly, free_bytes=plenty)

    threads = [threading.Thread(target=ensure) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert install.runs == 1
    assert said.count("waiting for another process that installs Triton") in (1, 2)
    assert finished_environment(tmp_path)


def test_the_lock_stays_with_a_pip_whose_owner_was_killed(tmp_path: Path) -> None:
    # venv writes its pid into the folder that it was to make, and takes its time.
    python = program(tmp_path / "python", '#!/bin/sh\necho $$ > "$4.new"; mv "$4.new" "$4.pid"; exec sleep 1000\n')
    code = (
        "import sys; from pathlib import Path\n"
        "from kservekit.local.triton_host import Interpreter\n"
        "from kservekit.local.triton_install import ensure_environment\n"
        "python, root = map(Path, sys.argv[1:])\n"
        "chosen = Interpreter(python, '3.11', root)\n"
        "ensure_environment(root, lambda: chosen, progress=print, free_bytes=lambda _: 2**40)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(python), str(tmp_path)])
    pid_file = tmp_path / "triton-0.7.0-py311.pid"
    assert eventually(pid_file.exists)
    owner.kill()
    owner.wait()
    try:
        assert not free(tmp_path / "triton-0.7.0.lock")
    finally:
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
    assert eventually(lambda: free(tmp_path / "triton-0.7.0.lock"))


def free(lock: Path) -> bool:
    with lock.open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_a_full_disk_is_said_before_anything_is_downloaded(tmp_path: Path, interpreter: Interpreter) -> None:
    install = Installer()
    with pytest.raises(TritonUnavailable, match=r"needs 1000 MB to install, and .* has 999 MB free; make room"):
        ensure_environment(
            tmp_path, lambda: interpreter, progress=silent, install=install, free_bytes=lambda _: 999_999_999
        )
    assert install.runs == 0


def test_a_failing_pip_is_told_with_its_last_lines_and_its_downloads_on_the_way(tmp_path: Path) -> None:
    pip = (
        "#!/bin/sh\necho '  Downloading nvidia_pytriton.whl (55 MB)'; echo 'ERROR: No matching distribution'; exit 1\n"
    )
    python = program(
        tmp_path / "python",
        f'#!/bin/sh\nmkdir -p "$4/bin"; cat > "$4/bin/python" <<"END"\n{pip}END\nchmod +x "$4/bin/python"\n',
    )
    said: list[str] = []
    with (
        (tmp_path / "lock").open("w") as lock,
        pytest.raises(TritonUnavailable, match=r"pip install .* ended with 1; let pip reach an index") as refusal,
    ):
        install_wheels(Interpreter(python, "3.11", tmp_path), tmp_path / "new", said.append, lock.fileno())
    assert str(refusal.value).splitlines()[-1] == "  ERROR: No matching distribution"
    assert said == ["pip: Downloading nvidia_pytriton.whl (55 MB)"]
