"""Real servers for pytest: `pytest_plugins = ["kservekit.local.fixtures"]`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kservekit.local.triton import TritonServer, say
from kservekit.local.triton_install import TritonUnavailable, find_triton


@pytest.fixture(scope="session")
def local_triton() -> Iterator[Callable[..., TritonServer]]:
    """`local_triton(repository, **options)` gives a started TritonServer, stopped at the session's end.

    Without a Triton the test is skipped; with KSERVEKIT_REQUIRE_SERVERS=1, as in CI, it fails.
    """
    try:
        find_triton(progress=say)
    except TritonUnavailable as unavailable:
        if os.environ.get("KSERVEKIT_REQUIRE_SERVERS") == "1":
            pytest.fail(str(unavailable))
        pytest.skip(str(unavailable))
    servers: list[TritonServer] = []

    def start(repository: str | os.PathLike[str], **options: Any) -> TritonServer:
        servers.append(TritonServer(repository, **options).start())
        return servers[-1]

    try:
        yield start
    finally:
        with ThreadPoolExecutor() as pool:  # each takes seconds to end
            list(pool.map(TritonServer.stop, servers))
