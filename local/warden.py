"""Runs one command and sees to it that nothing of it is left, however its owner ends.

GuardedProcess runs this file by path with `-I -S`: it is up in some 30 ms and imports nothing of ours.
stdin brings the orders (8 digits of length, then JSON); after them a byte, or the end, means stop: the byte AT_ONCE
without a grace.
stdout takes back `pid N` or `error TEXT`, and at the very end `exit CODE`.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
STOPPING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
AT_ONCE = b"!"
LAST_WAIT_S = 5.0
"""SIGKILL works at once, unless the kernel is stuck; then we do not hang with it."""


class Family:
    """The command and whatever it forked. As subreaper we become the parent of everyone who loses theirs."""

    def __init__(self, leader: int) -> None:
        self.leader = leader
        self.code: int | None = None
        self.asked: set[int] = set()

    def reap(self) -> bool:
        """Collect those that ended; False once nobody is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.leader:
                self.code = os.waitstatus_to_exitcode(status)

    def ask(self) -> None:
        """SIGTERM, once to each: the group first, and later those who left the group, as they come to us."""
        if not self.asked:
            self._signal_group(signal.SIGTERM)
            self.asked.add(self.leader)
        for pid in _children() - self.asked:
            self.asked.add(pid)
            with suppress(ProcessLookupError):
                if os.getpgid(pid) != self.leader:
                    os.kill(pid, signal.SIGTERM)

    def kill(self) -> None:
        self._signal_group(signal.SIGKILL)
        for pid in _children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _signal_group(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.leader, number)


def _children() -> set[int]:
    """Ours by birth or orphaned to us; outside Linux only the process group tells who belongs to us."""
    try:
        return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}
    except OSError:
        return set()


def main() -> None:
    orders = _orders()
    if orders is None:
        return
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    bell = _bell()
    leader, refusal = _launch(orders["command"], orders["env"])
    if refusal:
        _report(f"error {refusal}")
        return
    _report(f"pid {leader}")
    family = Family(leader)
    try:
        _guard(family, bell, owner=orders["owner"], grace_s=orders["grace_s"])
    finally:
        _end(family, bell)
        remove_shared_memory(orders["shm_prefix"])
        _report(f"exit {-signal.SIGKILL if family.code is None else family.code}")


def remove_shared_memory(prefix: str) -> None:
    """Delete the /dev/shm files that begin so; an empty prefix means none."""
    folder = Path("/dev/shm")  # noqa: S108  POSIX shared memory itself, not a temporary file
    if prefix and folder.is_dir():
        for name in os.listdir(folder):
            if name.startswith(prefix):
                (folder / name).unlink(missing_ok=True)


def _orders() -> dict[str, Any] | None:
    """None if the owner was gone before it had finished."""
    size = _read(8)
    text = _read(int(size)) if len(size) == 8 else b""
    return json.loads(text) if text and len(text) == int(size) else None


def _read(size: int) -> bytes:
    """Unbuffered: a byte more than asked for would be the one that says stop."""
    data = b""
    while len(data) < size and (chunk := os.read(0, size - len(data))):
        data += chunk
    return data


def _bell() -> int:
    """A descriptor that can be read whenever a signal came; each byte is the signal's number."""
    bell, rope = os.pipe()
    os.set_blocking(bell, False)
    os.set_blocking(rope, False)
    signal.set_wakeup_fd(rope, warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGCHLD, *STOPPING):
        signal.signal(number, lambda *_: None)
    return bell


def _launch(command: list[str], env: dict[str, str]) -> tuple[int, str]:
    """The command's pid, or why it cannot be executed."""
    warden = os.getpid()
    refused, refusal = os.pipe()  # close-on-exec: an end without a word means that exec worked
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            # Only for the case that this warden itself gets a kill -9. It has one thread, so it means the process.
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != warden:
                os._exit(127)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(2, 1)
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and exec would hand that on
                signal.signal(number, signal.SIG_DFL)
            os.execvpe(command[0], command, env)  # noqa: S606  no shell is what we want
        except OSError as error:
            os.write(refusal, (error.strerror or str(error)).encode())
        except BaseException as error:
            os.write(refusal, repr(error).encode())
        finally:
            os._exit(127)
    os.close(refusal)
    reason = os.read(refused, 4096).decode()
    os.close(refused)
    return pid, reason


def _guard(family: Family, bell: int, *, owner: int, grace_s: float) -> None:
    """Return once the command has ended, by itself or because it was asked to, or its grace is over."""
    poller = select.poll()
    poller.register(bell, select.POLLIN)
    poller.register(0, select.POLLIN)
    # The pipe's other end stays open where the owner forked without exec; its own death is certain.
    if hasattr(os, "pidfd_open"):
        with suppress(OSError):
            poller.register(os.pidfd_open(owner), select.POLLIN)
    alone = os.getppid() != owner
    while family.code is None and not alone:
        ready = {descriptor for descriptor, _ in poller.poll()}
        if 0 in ready and os.read(0, 1) == AT_ONCE:
            return
        if ready - {bell} or _rung(bell) & STOPPING:
            break
        family.reap()
    if family.code is None:
        deadline = time.monotonic() + grace_s
        while family.reap() and (left := deadline - time.monotonic()) > 0:
            family.ask()
            _sleep(bell, left)


def _end(family: Family, bell: int) -> None:
    """Kill all that is left; those orphaned by it come to us and are killed in the next round."""
    deadline = time.monotonic() + LAST_WAIT_S
    while family.reap() and time.monotonic() < deadline:
        family.kill()
        _sleep(bell, 0.02)


def _sleep(bell: int, seconds: float) -> None:
    """Until a signal comes, SIGCHLD being the one that is hoped for."""
    select.select([bell], [], [], seconds)
    _rung(bell)


def _rung(bell: int) -> set[int]:
    try:
        return set(os.read(bell, 4096))
    except BlockingIOError:
        return set()


def _report(line: str) -> None:
    with suppress(OSError):  # the owner may be gone: that is when our work matters most
        os.write(1, f"{line}\n".encode())


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


if __name__ == "__main__":
    main()
