"""Several processes on the same ports (--workers): each builds its models itself, and a dead one is replaced.

A worker is this program run once more, with the same command line; the kernel spreads connections over them
(SO_REUSEPORT). Nothing is pickled, and nothing of a model is shared.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kservekit.errors import CannotStart

log = logging.getLogger(__name__)

_VARIABLE = "_KSERVEKIT_WORKER"
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
STEADY_AFTER_S = 60.0
"""A worker that lived so long is replaced without a wait."""


@dataclass
class Worker:
    """What a worker process has of its supervisor: a pipe to say that it is ready, and one that ends with it."""

    ready_fd: int
    lifeline_fd: int

    def ready(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self.ready_fd, b"1")

    def watch_supervisor(self, loop: asyncio.AbstractEventLoop, gone: Callable[[], None]) -> None:
        """Calls `gone` once when the supervisor has ended, however it ended."""

        def end() -> None:
            loop.remove_reader(self.lifeline_fd)
            gone()

        loop.add_reader(self.lifeline_fd, end)


def this_worker() -> Worker | None:
    """None in a process that is nobody's worker."""
    value = os.environ.pop(_VARIABLE, "")  # not for the processes that a model may start
    if not value:
        return None
    ready_fd, lifeline_fd = map(int, value.split(","))
    return Worker(ready_fd, lifeline_fd)


def listen(host: str, port: int, *, shared: bool, flag: str = "--http_port") -> socket.socket:
    """A TCP socket bound to the port, with other workers of this server where `shared`; CannotStart if it is taken."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            way_out = f"choose another with {flag}"
        elif error.errno == errno.EACCES:
            way_out = f"ports below 1024 are for root; choose another with {flag}"
        else:
            way_out = f"KSERVEKIT_HOST is {host!r}: expected an address of this machine, such as 127.0.0.1"
        what = "gRPC" if flag == "--grpc_port" else "HTTP"
        raise CannotStart(f"{what} port {port} on {host} cannot be bound ({error.strerror}); {way_out}") from None
    listener.set_inheritable(True)
    return listener


def supervise(count: int, host: str, ports: Mapping[str, int]) -> int:
    """Runs `count` workers until SIGTERM, SIGINT or SIGQUIT; the exit code. CannotStart where a port is taken.
    `ports` by the flag that names them.

    A worker that ends before it was ever ready ends all, with its code: what kept it will keep the next one. Later a
    dead worker is replaced, after a wait that doubles from half a second to 30.
    """
    for flag, port in ports.items():
        listen(host, port, shared=False, flag=flag).close()
    # Held without listening, so that the ports stay ours while every worker is down.
    held = [listen(host, port, shared=True) for port in ports.values()]
    with tempfile.TemporaryDirectory(prefix="kservekit-metrics-") as metrics:
        try:
            return _Supervisor(count, metrics).run()
        finally:
            for listener in held:
                listener.close()


class _Supervisor:
    def __init__(self, count: int, metrics: str) -> None:
        self.environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": metrics}
        self.slots = [_Slot(number) for number in range(count)]
        self.lifeline, self._held_end = os.pipe()
        self.selector = selectors.DefaultSelector()
        self.stopping = False
        self.code = 0

    def run(self) -> int:
        woken, waker = socket.socketpair()
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno())
        # SIGCHLD's handler does nothing: that it is there makes the wake-up come.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD):
            signal.signal(number, self._signalled if number != signal.SIGCHLD else lambda *_: None)
        self.selector.register(woken, selectors.EVENT_READ)
        try:
            for slot in self.slots:
                self._start(slot)
            while any(slot.process for slot in self.slots) or not self.stopping:
                self._wait(woken)
                for slot in self.slots:
                    self._look_after(slot)
            return self.code
        finally:
            for slot in self.slots:
                if slot.process is not None:
                    slot.process.kill()
                    slot.process.wait()

    def _wait(self, woken: socket.socket) -> None:
        moments = [slot.start_at for slot in self.slots if slot.process is None and not self.stopping]
        timeout = max(0.0, min(moments) - time.monotonic()) if moments else None
        for key, _ in self.selector.select(timeout):
            if key.fileobj is woken:
                woken.recv(4096)
            else:
                key.data.was_ready = os.read(key.fd, 1) == b"1" or key.data.was_ready
                self.selector.unregister(key.fileobj)
                os.close(key.fd)

    def _look_after(self, slot: _Slot) -> None:
        if slot.process is None:
            if not self.stopping and time.monotonic() >= slot.start_at:
                self._start(slot)
            return
        code = slot.process.poll()
        if code is None:
            return
        slot.process = None
        if self.stopping:
            self.code = self.code or max(code, 0)
            return
        if not slot.was_ready and slot.starts == 1:
            log.error("worker %s ended with code %s before it was ready", slot.number, code)
            self.code = code if code > 0 else 1
            self._stop(signal.SIGTERM)
            return
        lived = time.monotonic() - slot.started
        slot.backoff = FIRST_BACKOFF_S if lived > STEADY_AFTER_S else min(LONGEST_BACKOFF_S, slot.backoff * 2)
        slot.start_at = time.monotonic() + slot.backoff
        log.error("worker %s ended with code %s; another starts in %.1f s", slot.number, code, slot.backoff)

    def _start(self, slot: _Slot) -> None:
        ready, told = os.pipe()
        slot.process = subprocess.Popen(  # noqa: S603 - this program itself
            [sys.executable, *sys.orig_argv[1:]],
            env={**self.environment, _VARIABLE: f"{told},{self.lifeline}"},
            pass_fds=(told, self.lifeline),
            start_new_session=True,  # a terminal's Ctrl-C comes to us, and from us to them, once
        )
        os.close(told)
        self.selector.register(ready, selectors.EVENT_READ, slot)
        slot.started, slot.starts = time.monotonic(), slot.starts + 1

    def _signalled(self, number: int, _frame: object) -> None:
        if self.stopping:
            for slot in self.slots:
                if slot.process is not None:
                    slot.process.kill()
            return
        self._stop(number)

    def _stop(self, number: int) -> None:
        self.stopping = True
        for slot in self.slots:
            if slot.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    slot.process.send_signal(number)


@dataclass
class _Slot:
    number: int
    process: subprocess.Popen[bytes] | None = None
    was_ready: bool = False
    starts: int = 0
    started: float = 0.0
    start_at: float = 0.0
    backoff: float = FIRST_BACKOFF_S / 2
