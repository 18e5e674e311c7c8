"""Real servers for pytest: `pytest_plugins = ["kservekit.local.fixtures"]`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
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
    with ExitStack() as servers:

        def start(repository: str | os.PathLike[str], **options: Any) -> TritonServer:
            return servers.enter_context(TritonServer(repository, **options))

        yield start
