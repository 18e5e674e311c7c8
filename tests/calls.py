"""How the tests call what they started: HTTP without a client of ours, our clients, and the command line."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kservekit.codec.message import Answer, Request
from kservekit.local.server import LocalServer
from kservekit.oip import connect
from kservekit.oip.http import HttpBackend

MODELS = str(Path(__file__).with_name("served_models.py"))

WIRES = ["v1", "v2 JSON", "v2 binary", "v2 gRPC"]


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)


def http(address: str, path: str, body: bytes | dict | None = None, **headers: str) -> Reply:
    """A GET, or a POST where there is a body."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    sent = {"content-type": "application/json"} | {key.replace("_", "-"): value for key, value in headers.items()}
    request = urllib.request.Request(f"http://{address}{path}", data, sent)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return Reply(reply.status, reply.headers, reply.read())
    except urllib.error.HTTPError as error:
        return Reply(error.code, error.headers, error.read())


def kservekit(*arguments: str, timeout: float = 120, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kservekit.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)


def ask(server: LocalServer, wire: str, tensors: dict[str, np.ndarray], *, model: str = "", **fields) -> Answer:
    """The answer, or the error that our own client makes of it."""

    async def once():
        backend = {
            "v1": lambda: connect(server.http_url, "v1"),
            "v2 JSON": lambda: HttpBackend(f"http://{server.http_url}", binary=False),
            "v2 binary": lambda: connect(server.http_url, "v2"),
            "v2 gRPC": lambda: connect(server.grpc_url, "grpc-v2"),
        }[wire]()
        try:
            return await backend.infer(Request(tensors, model=model or server.model_name, **fields))
        finally:
            await backend.close()

    return asyncio.run(once())


def served(name: str, *flags: str, **settings: str) -> LocalServer:
    """A model of served_models.py as `m`; `settings` without their KSERVEKIT_."""
    environment = {f"KSERVEKIT_{key.upper()}": value for key, value in settings.items()}
    return LocalServer(f"{MODELS}:{name}", *flags, model_name="m", settings=environment)


def eventually(holds: Callable[[], object], seconds: float = 60.0) -> bool:
    """Whether it holds by then."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def processes_with(variable: str) -> dict[int, str]:
    """Of all processes whose environment has `NAME=value`, the id and the command line; not this one."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (folder / "environ").read_bytes().split(b"\0") and int(folder.name) != os.getpid():
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            pass  # it ended while we looked, or is somebody else's
    return found


def floats(*rows):
    return np.array(rows, dtype=np.float32)
