"""`kservekit serve` as a local process: a predictor or transformer of one's own, on loopback ports."""

from __future__ import annotations

import http.client
import itertools
import os
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from kservekit.errors import CannotStart
from kservekit.local.cache import new_log
from kservekit.local.loopback import without_proxy
from kservekit.local.process import GuardedProcess
from kservekit.local.triton import HOST, reserved_ports

POLL_S = 0.025

_numbers = itertools.count(1)


class LocalServer:
    """Serves `target` (module:Class or path.py:Class) with KServe's `flags` and KSERVEKIT_* `settings`.

    Another `program` than ours is given the target and the same flags, so that a stock server starts in the same way.
    As a context manager it is ready inside the block. Variables of the caller's own that begin with
    KSERVEKIT_ are not handed on, and its proxies are not for loopback. CannotStart has the log's last lines.
    """

    http_url: str
    """host:port."""
    grpc_url: str

    def __init__(
        self,
        target: str,
        *flags: str,
        model_name: str = "model",
        settings: Mapping[str, str] | None = None,
        start_timeout_s: float = 60.0,
        program: Sequence[str] = (sys.executable, "-m", "kservekit.cli", "serve"),
    ) -> None:
        with reserved_ports({"http_port": None, "grpc_port": None}) as ports:
            pass
        self.model_name = model_name
        self.http_url, self.grpc_url = (f"{HOST}:{port}" for port in ports.values())
        self._start_timeout_s = start_timeout_s
        self.target = target
        environ = without_proxy(os.environ)
        inherited = {key: value for key, value in environ.items() if not key.startswith("KSERVEKIT_")}
        ports_as_flags = [f"--{name}={port}" for name, port in ports.items()]
        self.command = [*program, target, f"--model_name={model_name}", *ports_as_flags, *flags]
        self.process = GuardedProcess(
            self.command,
            env={**inherited, "KSERVEKIT_HOST": HOST, "KSERVEKIT_LAME_DUCK_MS": "0", **(settings or {})},
            log=new_log("server", next(_numbers)),
        )

    def start(self) -> Self:
        self.process.start()
        return self

    def wait_until_ready(self, path: str = "/v2/health/ready") -> None:
        """Return once `path` is answered with 200; a readiness that includes the backend's waits for that, too."""
        deadline = time.monotonic() + self._start_timeout_s
        while self.get(path) != 200:
            self.check_alive()
            if time.monotonic() > deadline:
                raise CannotStart(
                    f"model {self.model_name!r} was not ready within {self._start_timeout_s:g} s; "
                    f"the last lines of {self.process.log}:\n{self.process.log_tail()}"
                )
            time.sleep(POLL_S)

    def check_alive(self) -> None:
        code = self.process.poll()
        if code is not None:
            raise CannotStart(
                f"the server of model {self.model_name!r} ({self.target}) ended with code {code}; "
                f"the last lines of {self.process.log}:\n{self.process.log_tail()}"
            )

    def get(self, path: str) -> int | None:
        """The status of a GET; None where nothing answers."""
        connection = http.client.HTTPConnection(self.http_url, timeout=10)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def stop(self) -> None:
        self.process.stop()

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
