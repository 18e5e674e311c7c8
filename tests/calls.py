"""How the tests call what they started: HTTP without a client of ours, and the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np


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


def floats(*rows):
    return np.array(rows, dtype=np.float32)
