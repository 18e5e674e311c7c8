"""A process that cannot outlive us, whether we end by return, exception, Ctrl-C, SIGTERM or kill -9.

The command is not our child but that of a warden (warden.py), in a session of its own where Ctrl-C does not reach.
The warden holds the other end of a pipe from us: a byte, or our death, and it ends the command and all descendants,
SIGTERM first, SIGKILL after the grace, and removes the command's files in /dev/shm.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from kservekit.errors import CannotStart
from kservekit.local import warden

WARDEN_MARGIN_S = 10.0
"""What a warden may need beyond the grace before we think that it hangs."""


class GuardedProcess:
    """Runs `command` with exactly `env`; stdin is empty, stdout and stderr are appended to `log`."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        shm_prefix: str = "",
        grace_s: float = 10.0,
    ) -> None:
        self.log = log
        self._command = list(command)
        self._env = dict(env)
        self._shm_prefix = shm_prefix
        self._grace_s = grace_s
        self._warden: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None
        self._code: int | None = None

    @property
    def pid(self) -> int:
        """Of the command itself; also the id of its process group."""
        if self._pid is None:
            raise RuntimeError(f"{self._command[0]} has no pid: it was not started")
        return self._pid

    def start(self) -> Self:
        """Return once the command is being executed; CannotStart if the log or the program is in the way."""
        if self._warden is not None:
            raise RuntimeError(f"{self._command[0]} was started before: make another GuardedProcess")
        with _open_log(self.log, self._command) as log:
            self._warden = subprocess.Popen(  # noqa: S603  the caller's own command is the point
                [sys.executable, "-I", "-S", warden.__file__, Path(self._command[0]).name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self._line = cast("IO[bytes]", self._warden.stdin)
        self._news = cast("IO[bytes]", self._warden.stdout)
        try:
            self._pid = self._hand_over()
        except BaseException:
            self.stop()
            raise
        return self

    def _hand_over(self) -> int:
        orders = json.dumps(
            {
                "command": self._command,
                "env": self._env,
                "owner": os.getpid(),
                "grace_s": self._grace_s,
                "shm_prefix": self._shm_prefix,
            }
        ).encode()
        with suppress(BrokenPipeError):
            self._line.write(b"%08d" % len(orders) + orders)
            self._line.flush()
        word, _, rest = self._news.readline().decode().strip().partition(" ")
        if word == "pid":
            return int(rest)
        if word == "error":
            raise CannotStart(f"{self._command[0]} cannot be executed: {rest}; check the path and its permissions")
        raise CannotStart(f"the warden of {self._command[0]} ended before its work; {self.log} may say why")

    def poll(self) -> int | None:
        """None while the command runs, else its exit code (-N: ended by signal N); then nothing of it is left."""
        if self._code is None and self._warden is not None and self._warden.poll() is not None:
            self._code = self._last_words()
        return self._code

    def stop(self) -> None:
        """Return once the command and all its descendants are gone. Does nothing if they are."""
        self._end(b".")

    def kill(self) -> None:
        """As stop, but without SIGTERM and its grace."""
        self._end(warden.AT_ONCE)

    def _end(self, word: bytes) -> None:
        process = self._warden
        if process is None:
            return
        if not self._line.closed:
            # The byte, not just the end: a fork of ours may hold the pipe open.
            with suppress(OSError):
                self._line.write(word)
                self._line.flush()
            with suppress(OSError):
                self._line.close()
        try:
            process.wait(self._grace_s + WARDEN_MARGIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.poll()
        self._news.close()

    def _last_words(self) -> int:
        with suppress(OSError):
            self._line.close()
        for line in self._news.read().decode().splitlines():
            word, _, code = line.partition(" ")
            if word == "exit":
                return int(code)
        # Somebody killed the warden. The kernel took the command with it, so only its surroundings are left to us.
        if self._pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGKILL)
        warden.remove_shared_memory(self._shm_prefix)
        return -signal.SIGKILL

    def log_tail(self, lines: int = 20) -> str:
        """The log's last lines; empty if it is gone."""
        try:
            with self.log.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(0, size - 65536))
                return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _open_log(path: Path, command: list[str]) -> IO[bytes]:
    """Open for appending; one line is written, because a full disk is only met by writing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = open(path, "ab", buffering=0, opener=lambda name, flags: os.open(name, flags, 0o600))  # noqa: SIM115
        try:
            log.write(f"# {' '.join(command)}\n".encode())
        except BaseException:
            log.close()
            raise
    except OSError as error:
        raise CannotStart(
            f"the log {path} cannot be written: {error.strerror}; free some room or set KSERVEKIT_CACHE_DIR elsewhere"
        ) from None
    return log
