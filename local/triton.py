"""A real Triton on this machine, for as long as a `with` block lasts."""

from __future__ import annotations

import errno
import http.client
import itertools
import json
import os
import secrets
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from kservekit.errors import CannotStart
from kservekit.local.cache import new_log
from kservekit.local.loopback import without_proxy
from kservekit.local.process import GuardedProcess
from kservekit.local.triton_install import TritonInstallation, find_triton
from kservekit.local.triton_log import hangs, readable, reasons, taken_port

HOST = "127.0.0.1"
GRACE_S = 10.0
PORT_TRIES = 3
POLL_S = 0.025

_numbers = itertools.count(1)


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


class TritonServer:
    """Serves `repository` on loopback ports of its own choice; started means that all models are ready.

    `arguments` go to tritonserver as they are, after ours. Whatever keeps it from starting is a CannotStart.
    """

    http_url: str
    """host:port, as tritonclient wants it; like all of these, there once it is started."""
    grpc_url: str
    metrics_url: str
    where: str
    """Which Triton this is."""
    log: Path

    def __init__(
        self,
        repository: str | os.PathLike[str],
        *,
        http_port: int | None = None,
        grpc_port: int | None = None,
        metrics_port: int | None = None,
        arguments: Sequence[str] = (),
        start_timeout_s: float = 60.0,
        progress: Callable[[str], None] = say,
    ) -> None:
        self._repository = Path(repository).absolute()
        self._asked = {"http_port": http_port, "grpc_port": grpc_port, "metrics_port": metrics_port}
        self._arguments = list(arguments)
        self._start_timeout_s = start_timeout_s
        self._progress = progress
        self._process: GuardedProcess | None = None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("Triton has no pid: it was not started")
        return self._process.pid

    def start(self) -> Self:
        """Return once /v2/health/ready says so."""
        if self._process is not None:
            raise RuntimeError("this TritonServer was started before: make another one")
        check_repository(self._repository, may_be_empty=_given(self._arguments, "--model-control-mode"))
        with reserved_ports(self._asked):
            pass  # a port that was asked for and is taken is said before anything is installed
        triton = find_triton(progress=self._progress)
        self.where = triton.where
        for last_try in (False,) * (PORT_TRIES - 1) + (True,):
            with reserved_ports(self._asked) as ports:
                pass
            if self._started(triton, ports, last_try):
                break
        return self

    def _started(self, triton: TritonInstallation, ports: Mapping[str, int], last_try: bool) -> bool:
        """False: somebody took a port of our choice in the meantime."""
        number = next(_numbers)
        token = f"kservekit-{os.getpid()}-{secrets.token_hex(4)}"
        self.log = new_log("triton", number)
        self._process = process = GuardedProcess(
            [*triton.command, *self._options(triton, ports, token), *self._arguments],
            env={**without_proxy(os.environ), **triton.env},
            log=self.log,
            # With its last dash no server's prefix is the beginning of another's.
            shm_prefix=f"{token}-",
            grace_s=GRACE_S,
        )
        try:
            process.start()
            if self._ready(process, ports, token):
                self.http_url, self.grpc_url, self.metrics_url = (f"{HOST}:{port}" for port in ports.values())
                return True
        except BaseException:
            process.kill()  # while it loads, it does not hear SIGTERM; and it has served nobody
            raise
        code = process.poll()
        process.kill()
        text = _text(self.log)
        if code is not None and not last_try and taken_port(text) in set(ports.values()) - set(self._asked.values()):
            return False
        ended = f"it was not ready within {self._start_timeout_s:g} s" if code is None else f"it ended with code {code}"
        raise CannotStart(
            f"Triton did not start on {self._repository}: {'; '.join(reasons(text)) or ended}\n"
            f"The last lines of {self.log}:\n{readable(text)}"
        )

    def _options(self, triton: TritonInstallation, ports: Mapping[str, int], token: str) -> Iterator[str]:
        yield f"--model-repository={self._repository}"
        yield f"--id={token}"
        for option, port in ports.items():
            service = option.removesuffix("_port")
            yield f"--{service}-address={HOST}"
            yield f"--{service}-port={port}"
        if triton.backend_directory:
            yield f"--backend-directory={triton.backend_directory}"
        if triton.cache_directory:
            yield f"--cache-directory={triton.cache_directory}"
        if triton.python_models:
            yield f"--backend-config=python,shm-region-prefix-name={token}-"
        yield "--exit-on-error=true"
        yield f"--exit-timeout-secs={int(GRACE_S) - 2}"  # so that its own end comes before our SIGKILL
        yield "--log-verbose=0"

    def _ready(self, process: GuardedProcess, ports: Mapping[str, int], token: str) -> bool:
        """False: it ended, it hangs, or time is up."""
        deadline = time.monotonic() + self._start_timeout_s
        while process.poll() is None and time.monotonic() < deadline and not hangs(process.log_tail(100)):
            if self._answers(ports, token) and process.poll() is None:
                return True
            time.sleep(POLL_S)
        return False

    def _answers(self, ports: Mapping[str, int], token: str) -> bool:
        if _get(ports["http_port"], "/v2/health/ready") is None:
            return False
        # It could be another Triton that was faster on this port; ours knows its id.
        metadata = _get(ports["http_port"], "/v2")
        if not _given(self._arguments, "--id") and (metadata is None or json.loads(metadata).get("name") != token):
            return False
        # Metrics come last, some 50 ms after HTTP.
        return _given(self._arguments, "--allow-metrics") or _get(ports["metrics_port"], "/metrics") is not None

    def check_alive(self) -> None:
        """CannotStart, with the log's last lines, once Triton has ended by itself."""
        code = self._process.poll() if self._process else None
        if code is not None:
            raise CannotStart(
                f"Triton on {self._repository} ended with code {code}; the last lines of {self.log}:\n"
                f"{readable(_text(self.log))}"
            )

    def stop(self) -> None:
        """Return once Triton and its Python processes are gone, and their shared memory with them."""
        if self._process is not None:
            self._process.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def check_repository(folder: Path, *, may_be_empty: bool) -> None:
    """CannotStart if there is nothing that Triton could load: it would start, ready to serve nothing."""
    try:
        models = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    except OSError as error:
        raise CannotStart(
            f"the model repository {folder} cannot be read: {error.strerror}; "
            "expected a folder with one folder per model, such as <model>/1/model.py"
        ) from None
    if not models and not may_be_empty:
        raise CannotStart(
            f"the model repository {folder} has no model; expected one folder per model, such as <model>/1/model.py"
        )
    for model in folder.glob("*/*/model.py"):
        if shlex.quote(str(model)) != str(model):
            raise CannotStart(
                f"the model {str(model)!r} has a path that Triton's Python backend cannot open, as it goes through a "
                "shell unquoted; use a path of letters, digits and ._- only"
            )


@contextmanager
def reserved_ports(asked: Mapping[str, int | None]) -> Iterator[dict[str, int]]:
    """A free loopback port for each name, nobody else's inside the block; CannotStart names one that is taken."""
    ports: dict[str, int] = {}
    with ExitStack() as sockets:
        # Those asked for come first, lest one of them be drawn for another.
        for name in sorted(asked, key=lambda name: asked[name] is None):
            listener = sockets.enter_context(socket.socket())
            # As Triton does: a connection that has just ended does not count as taken.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(asked[name] is not None))
            if asked[name] in ports.values():
                raise CannotStart(f"{name}={asked[name]}: this port is given twice; give each service its own, or none")
            try:
                listener.bind((HOST, asked[name] or 0))
                listener.listen()
            except (OSError, OverflowError) as error:
                why = "is taken" if getattr(error, "errno", None) == errno.EADDRINUSE else f"cannot be used ({error})"
                raise CannotStart(
                    f"{name}={asked[name]}: this port {why} on {HOST}; give another, or leave it out to get a free one"
                ) from None
            ports[name] = listener.getsockname()[1]
        yield {name: ports[name] for name in asked}


def _given(arguments: Sequence[str], option: str) -> bool:
    return any(argument.split("=")[0] == option for argument in arguments)


def _get(port: int, path: str) -> bytes | None:
    """The body of a 200, else None."""
    connection = http.client.HTTPConnection(HOST, port, timeout=1)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        return body if answer.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _text(log: Path) -> str:
    try:
        return log.read_text(errors="replace")
    except OSError:
        return ""
