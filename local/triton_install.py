"""Which Triton to run: the one that is named, the one on PATH, or the PyPI wheel, installed once into the cache."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kservekit.errors import CannotStart
from kservekit.local.cache import cache_folder
from kservekit.local.triton_host import (
    ELSEWHERE,
    PYTHONS,
    Interpreter,
    Machine,
    TritonUnavailable,
    candidates,
    check_machine,
    find_interpreter,
    this_machine,
)

__all__ = ["TritonInstallation", "TritonUnavailable", "find_triton"]

WHEEL = "0.7.0"
TRITON = "2.51"
# Only the server, its libraries and the Python backend are used, so pytriton's own dependencies stay out; the rest is
# what models may import: NumPy of the version that the backend is built for, and ONNX Runtime.
PINS = (
    f"nvidia-pytriton=={WHEEL}",
    "numpy==1.26.4",
    "onnxruntime==1.32.0",
    "protobuf==6.33.6",
    "flatbuffers==25.12.19",
    "packaging==26.3",
)
ROOM_BYTES = 1_000_000_000
"""330 MB stay; pip needs the rest on the way."""

STUB = "triton_python_backend_stub"

Progress = Callable[[str], None]
Install = Callable[[Interpreter, Path, Progress, int], None]


@dataclass(frozen=True)
class TritonInstallation:
    command: tuple[str, ...]
    where: str
    """For people: which Triton this is, and where it came from."""
    env: Mapping[str, str]
    """To be put over the environment that it is started with."""
    backend_directory: Path | None
    """None: Triton's own default holds."""
    cache_directory: Path | None
    python_models: bool
    """Whether its Python backend is complete."""


def find_triton(
    *, progress: Progress, environ: Mapping[str, str] | None = None, machine: Machine | None = None
) -> TritonInstallation:
    """A Triton that can be started here; the first time, that installs one and takes some 20 seconds."""
    environ = os.environ if environ is None else environ
    if named := environ.get("KSERVEKIT_TRITONSERVER"):
        if not (Path(named).is_file() and os.access(named, os.X_OK)):
            raise CannotStart(
                f"KSERVEKIT_TRITONSERVER is {named!r}: expected the path of an executable tritonserver binary, "
                "such as /opt/tritonserver/bin/tritonserver; unset it to have Triton installed"
            )
        return _existing(Path(named), "KSERVEKIT_TRITONSERVER")
    if on_path := shutil.which("tritonserver", path=environ.get("PATH", "")):
        return _existing(Path(on_path), "PATH")
    check_machine(machine or this_machine())
    root = cache_folder(environ)
    if shlex.quote(str(root)) != str(root):
        raise TritonUnavailable(
            f"the cache folder {str(root)!r} has a path that Triton's Python backend cannot use, as it goes through a "
            f"shell unquoted; set KSERVEKIT_CACHE_DIR to a path of letters, digits and ._- only, {ELSEWHERE}"
        )
    environment = finished_environment(root) or ensure_environment(
        root, lambda: find_interpreter(candidates(environ)), progress=progress
    )
    return _from_wheel(environment, environ)


@dataclass(frozen=True)
class Environment:
    folder: Path
    version: str
    library_folder: Path

    @property
    def triton(self) -> Path:
        return self.folder / "lib" / f"python{self.version}" / "site-packages/pytriton/tritonserver"


def finished_environment(root: Path) -> Environment | None:
    """An environment that was completed with these pins, and whose interpreter is still there."""
    for version in PYTHONS:
        folder = _folder(root, version)
        try:
            marker = json.loads((folder / "complete.json").read_text())
            library_folder = Path(marker["library_folder"])
        except (OSError, ValueError, LookupError, TypeError):
            continue
        if marker.get("pins") == list(PINS) and (folder / "bin/python").exists() and library_folder.is_dir():
            return Environment(folder, version, library_folder)
    return None


def install_wheels(interpreter: Interpreter, folder: Path, progress: Progress, lock: int) -> None:
    """A virtual environment with the pinned wheels, and the stub of its Python where the backend looks for it."""
    # The lock goes along: if we get killed, it stays taken until this pip has ended too.
    _run([str(interpreter.path), "-I", "-m", "venv", str(folder)], lock)
    pip = [str(folder / "bin/python"), "-I", "-m", "pip", "install", "--no-deps", "--only-binary=:all:", "--no-input"]
    _run([*pip, "--disable-pip-version-check", "--progress-bar=off", *PINS], lock, progress)
    environment = Environment(folder, interpreter.version, interpreter.library_folder)
    stub = environment.triton / "python_backend_stubs" / interpreter.version / STUB
    (environment.triton / "backends/python" / STUB).symlink_to(stub)


def ensure_environment(
    root: Path,
    interpreter: Callable[[], Interpreter],
    *,
    progress: Progress,
    install: Install = install_wheels,
    free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
) -> Environment:
    """Make the environment, or wait for the process that is making it. The marker comes last: without it, no use."""
    try:
        with _lock(root / f"triton-{WHEEL}.lock", progress) as lock:
            if done := finished_environment(root):
                return done
            chosen = interpreter()
            folder = _folder(root, chosen.version)
            if folder.exists():
                progress(f"removing an unfinished or outdated Triton in {folder}")
                shutil.rmtree(folder)
            if (free := free_bytes(root)) < ROOM_BYTES:
                raise TritonUnavailable(
                    f"Triton needs {ROOM_BYTES // 10**6} MB to install, and {root} has {free // 10**6} MB free; "
                    f"make room, set KSERVEKIT_CACHE_DIR to another disk, {ELSEWHERE}"
                )
            began = time.monotonic()
            progress(f"installing Triton {TRITON} for Python {chosen.version}, once, into {folder}")
            install(chosen, folder, progress, lock)
            marker = {"pins": list(PINS), "library_folder": str(chosen.library_folder)}
            (folder / "complete.tmp").write_text(json.dumps(marker))
            (folder / "complete.tmp").rename(folder / "complete.json")
            progress(f"Triton is installed, after {time.monotonic() - began:.0f} s")
            return Environment(folder, chosen.version, chosen.library_folder)
    except OSError as error:
        raise TritonUnavailable(
            f"Triton cannot be installed into {root}: {error}; "
            f"make that folder usable, set KSERVEKIT_CACHE_DIR to another one, {ELSEWHERE}"
        ) from error


def _folder(root: Path, version: str) -> Path:
    return root / f"triton-{WHEEL}-py{version.replace('.', '')}"


@contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[int]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process that installs Triton")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def _run(command: list[str], lock: int, progress: Progress | None = None) -> None:
    last: deque[str] = deque(maxlen=12)
    with subprocess.Popen(  # noqa: S603  our own venv and pip
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PIP_USER": "0"},  # a person's `user = true` would be refused inside an environment
        pass_fds=(lock,),
    ) as process:
        assert process.stdout  # noqa: S101  it is a pipe
        for line in process.stdout:
            last.append(line.rstrip())
            if progress and line.strip().startswith(("Downloading", "Installing")):
                progress(f"pip: {line.strip()}")
    if process.returncode:
        raise TritonUnavailable(
            f"Triton cannot be installed: `{' '.join(command[:5])} ...` ended with {process.returncode}; let pip reach "
            f"an index that has nvidia-pytriton (PIP_INDEX_URL), {ELSEWHERE}" + "".join(f"\n  {line}" for line in last)
        )


def _existing(binary: Path, source: str) -> TritonInstallation:
    """NVIDIA's layout: bin, backends and caches side by side."""
    home = binary.resolve().parent.parent
    backends, caches = home / "backends", home / "caches"
    return TritonInstallation(
        command=(str(binary),),
        where=f"{binary} (from {source})",
        env={},
        backend_directory=backends if backends.is_dir() else None,
        cache_directory=caches if caches.is_dir() else None,
        python_models=(backends / "python" / STUB).is_file(),
    )


def _from_wheel(environment: Environment, environ: Mapping[str, str]) -> TritonInstallation:
    triton = environment.triton
    # The stub is a Python inside a C++ program: it finds its packages through the first python3 on PATH, its
    # interpreter through LD_LIBRARY_PATH, and an inherited PYTHONHOME would send it elsewhere.
    folders = [environment.library_folder, triton.parent.parent / "nvidia_pytriton.libs", triton / "external_libs"]
    libraries = [folder for folder in folders if folder.is_dir()]
    return TritonInstallation(
        command=(str(triton / "bin/tritonserver"),),
        where=f"Triton {TRITON} of nvidia-pytriton {WHEEL} for Python {environment.version} in {environment.folder}",
        env={
            "PATH": _joined([environment.folder / "bin"], environ.get("PATH", "")),
            "LD_LIBRARY_PATH": _joined(libraries, environ.get("LD_LIBRARY_PATH", "")),
            "PYTHONHOME": "",
        },
        backend_directory=triton / "backends",
        cache_directory=triton / "caches",
        python_models=True,
    )


def _joined(first: list[Path], rest: str) -> str:
    # An empty entry would mean the current folder.
    return os.pathsep.join([*map(str, first), *filter(None, rest.split(os.pathsep))])
