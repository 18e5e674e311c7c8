from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
from calls import eventually, processes_with

from kservekit.errors import CannotStart
from kservekit.local.process import GuardedProcess

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is left is read from /proc")

SHM = Path("/dev/shm")
# One in the command's group, one that left it, one that was orphaned on top, and a file in shared memory.
FAMILY = """
sleep 1000 &
setsid sleep 1000 &
setsid sh -c 'sleep 1000 & exec true'
: > /dev/shm/$PREFIX.file
echo complete
wait
"""
# A person's program. It says `ready`, then ends in the way that the test wants.
PARENT = """
import os, signal, sys, time
from pathlib import Path
from kservekit.local.process import GuardedProcess

process = GuardedProcess(["sh", "-c", os.environ["FAMILY"]], env=os.environ, log=Path(sys.argv[1]),
                         shm_prefix=os.environ["PREFIX"])
def ready():
    while process.log_tail(lines=1) != "complete":
        time.sleep(0.01)
    print("ready", flush=True)
    sys.stdin.readline()
def wait():  # unlike signal.pause, it misses no signal that comes just before
    while True:
        time.sleep(0.01)
"""
WAIT = "\nwith process:\n    ready()\n    wait()\n"


@pytest.fixture
def mark() -> Iterator[str]:
    """Carried in the environment by all that a test starts; what is left is found by it, and removed."""
    mark = f"kservekit-test-{uuid4().hex}-"
    yield mark
    for pid in marked(mark):
        os.kill(pid, signal.SIGKILL)
    for path in SHM.glob(f"{mark}*"):
        path.unlink()


def marked(mark: str) -> dict[int, str]:
    return processes_with(f"PREFIX={mark}")


def left(mark: str) -> list[str]:
    return [*marked(mark).values(), *(path.name for path in SHM.glob(f"{mark}*"))]


def guarded(script: str, log: Path, mark: str = "", *, grace_s: float = 10.0) -> GuardedProcess:
    env = {**os.environ, "PREFIX": mark}
    return GuardedProcess(["sh", "-c", script], env=env, log=log, shm_prefix=mark, grace_s=grace_s)


def parent(ending: str, log: Path, mark: str) -> subprocess.Popen[str]:
    """The program above, in a session of its own, as from a terminal; returns once its family is complete."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT + ending, str(log)],
        env={**os.environ, "PREFIX": mark, "FAMILY": FAMILY},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    assert eventually(lambda: list(marked(mark).values()).count("sleep 1000 ") == 3), marked(mark)
    assert any("warden.py" in command for command in marked(mark).values())
    process.stdin.write("go\n")
    process.stdin.flush()
    return process


def test_a_command_gets_its_environment_and_no_stdin_and_its_output_and_code_come_back(tmp_path: Path) -> None:
    log = tmp_path / "new" / "log"
    command = ["/bin/sh", "-c", "echo out; echo err >&2; echo only=$ONLY home=$HOME; cat; exit 7"]
    with GuardedProcess(command, env={"ONLY": "this"}, log=log) as process:
        assert eventually(lambda: process.poll() is not None)
    assert process.poll() == 7
    assert process.log_tail().splitlines()[1:] == ["out", "err", "only=this home="]
    assert process.log_tail(lines=1) == "only=this home="


def test_the_log_is_appended_to(tmp_path: Path) -> None:
    for word in ("first", "second"):
        with guarded(f"echo {word}", tmp_path / "log") as process:
            assert eventually(lambda process=process: process.poll() is not None)
    assert {"first", "second"} <= set(process.log_tail().splitlines())


def test_a_signal_that_ended_the_command_is_its_negative_code(tmp_path: Path) -> None:
    with guarded("kill -SEGV $$", tmp_path / "log") as process:
        assert eventually(lambda: process.poll() == -signal.SIGSEGV)


def test_signals_that_python_ignores_have_their_usual_effect_on_the_command(tmp_path: Path) -> None:
    with guarded("kill -PIPE $$; echo lived on", tmp_path / "log") as process:
        assert eventually(lambda: process.poll() is not None)
    assert process.poll() == -signal.SIGPIPE


@pytest.mark.parametrize(("program", "why"), [("missing", "No such file or directory"), ("text", "Permission denied")])
def test_a_program_that_cannot_be_executed_is_named_and_leaves_nothing(
    tmp_path: Path, mark: str, program: str, why: str
) -> None:
    (tmp_path / "text").touch()
    command = [str(tmp_path / program)]
    with pytest.raises(CannotStart, match=f"/{program} cannot be executed: {why}; check the path"):
        GuardedProcess(command, env={**os.environ, "PREFIX": mark}, log=tmp_path / "log").start()
    assert left(mark) == []


def test_a_log_that_cannot_be_written_is_said_before_anything_starts(tmp_path: Path, mark: str) -> None:
    with pytest.raises(CannotStart, match="the log /dev/full cannot be written: No space left on device; free some"):
        guarded(f"touch {tmp_path}/started", Path("/dev/full"), mark).start()
    assert not (tmp_path / "started").exists()


def test_stop_ends_all_descendants_and_may_be_called_again(tmp_path: Path, mark: str) -> None:
    process = guarded(FAMILY, tmp_path / "log", mark).start()
    assert eventually(lambda: process.log_tail(lines=1) == "complete")
    process.stop()
    assert left(mark) == []
    process.stop()
    assert process.poll() == -signal.SIGTERM


def test_stop_lets_the_command_end_in_its_own_way(tmp_path: Path) -> None:
    script = "trap 'echo goodbye; exit 3' TERM; echo up; while :; do sleep 0.01; done"
    with guarded(script, tmp_path / "log") as process:
        assert eventually(lambda: process.log_tail(lines=1) == "up")
    assert process.poll() == 3
    assert process.log_tail(lines=1) == "goodbye"


def test_a_command_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path, mark: str) -> None:
    script = "trap '' TERM; echo up; sleep 1000 & setsid sleep 1000 & while :; do sleep 1000; done"
    with guarded(script, tmp_path / "log", mark, grace_s=0.1) as process:
        assert eventually(lambda: process.log_tail(lines=1) == "up")
    assert process.poll() == -signal.SIGKILL
    assert left(mark) == []


def test_a_command_that_crashes_takes_its_descendants_along(tmp_path: Path, mark: str) -> None:
    with guarded(FAMILY.replace("wait", "kill -KILL $$"), tmp_path / "log", mark) as process:
        assert eventually(lambda: process.poll() is not None)
        assert left(mark) == []


def test_only_files_of_its_own_prefix_are_removed_from_shared_memory(tmp_path: Path, mark: str) -> None:
    other = SHM / f"{mark[:-1]}.other"
    other.touch()
    try:
        with guarded(FAMILY, tmp_path / "log", mark) as process:
            assert eventually(lambda: process.log_tail(lines=1) == "complete")
        assert other.exists()
    finally:
        other.unlink()
    assert left(mark) == []


ENDINGS: dict[str, tuple[str, Callable[[subprocess.Popen[str]], None]]] = {
    "exception": ("\nwith process:\n    ready()\n    raise ValueError('a mistake')\n", lambda _: None),
    "end without stop": ("\nprocess.start()\nready()\n", lambda _: None),
    "os._exit": ("\nprocess.start()\nready()\nos._exit(0)\n", lambda _: None),
    "SIGTERM": (WAIT, lambda parent: parent.terminate()),
    "Ctrl-C": (WAIT, lambda parent: os.killpg(parent.pid, signal.SIGINT)),
    "closed terminal": (WAIT, lambda parent: os.killpg(parent.pid, signal.SIGHUP)),
    "kill -9": (WAIT, lambda parent: parent.kill()),
    "kill -9 of the whole group": (WAIT, lambda parent: os.killpg(parent.pid, signal.SIGKILL)),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_however_the_owner_ends_nothing_is_left(tmp_path: Path, mark: str, ending: str) -> None:
    code, end = ENDINGS[ending]
    with parent(code, tmp_path / "log", mark) as owner:
        end(owner)
        owner.wait(30)
    assert eventually(lambda: not left(mark)), left(mark)


def test_ctrl_c_reaches_only_the_owner_who_can_still_use_the_command(tmp_path: Path, mark: str) -> None:
    code = "\nwith process:\n    try: ready(); wait()\n    except KeyboardInterrupt: print(process.poll())\n"
    with parent(code, tmp_path / "log", mark) as owner:
        os.killpg(owner.pid, signal.SIGINT)
        assert owner.stdout
        assert owner.stdout.read() == "None\n"


def test_a_fork_that_outlives_the_owner_does_not_keep_the_command_alive(tmp_path: Path, mark: str) -> None:
    code = WAIT.replace("wait()", "os.fork(); wait()")
    with parent(code, tmp_path / "log", mark) as owner:
        assert eventually(lambda: len(children(owner.pid)) == 2)
        (fork,) = (pid for pid in children(owner.pid) if "warden.py" not in marked(mark)[pid])
        try:
            owner.kill()
            owner.wait(30)
            assert eventually(lambda: set(marked(mark)) == {fork}), marked(mark)
        finally:
            os.kill(fork, signal.SIGKILL)


def test_nothing_is_left_when_the_warden_itself_is_killed(tmp_path: Path, mark: str) -> None:
    script = ": > /dev/shm/$PREFIX.file; sleep 1000 & echo complete; wait"
    with guarded(script, tmp_path / "log", mark) as process:
        assert eventually(lambda: process.log_tail(lines=1) == "complete")
        os.kill(parent_of(process.pid), signal.SIGKILL)
        # The command needs nobody for its end, not even the owner, who may be killed in the same moment.
        assert eventually(lambda: process.pid not in marked(mark))
        assert eventually(lambda: process.poll() is not None)
        assert process.poll() == -signal.SIGKILL
        assert eventually(lambda: not left(mark)), left(mark)


def test_sigterm_to_the_warden_is_a_stop(tmp_path: Path, mark: str) -> None:
    with guarded(FAMILY, tmp_path / "log", mark) as process:
        assert eventually(lambda: process.log_tail(lines=1) == "complete")
        os.kill(parent_of(process.pid), signal.SIGTERM)
        assert eventually(lambda: process.poll() == -signal.SIGTERM)
        assert left(mark) == []


def test_many_started_from_threads_at_once_end_one_by_one(tmp_path: Path, mark: str) -> None:
    processes = [guarded("echo up; exec sleep 1000", tmp_path / f"log{number}", mark) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(GuardedProcess.start, processes))
    for number, process in enumerate(processes):
        process.stop()
        assert process.poll() == -signal.SIGTERM
        assert [other.poll() for other in processes[number + 1 :]] == [None] * (7 - number)
    assert left(mark) == []


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
