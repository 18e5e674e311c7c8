"""`kservekit serve` as a local process."""

from pathlib import Path

import pytest
from calls import served

from kservekit.local.loopback import without_proxy


@pytest.mark.parametrize(
    ("environ", "changed"),
    [
        ({}, {"no_proxy": "127.0.0.1,localhost", "NO_PROXY": "127.0.0.1,localhost"}),
        ({"no_proxy": ".corp"}, {"no_proxy": ".corp,127.0.0.1,localhost", "NO_PROXY": "127.0.0.1,localhost"}),
        ({"no_proxy": "*", "NO_PROXY": "localhost"}, {"no_proxy": "*", "NO_PROXY": "localhost,127.0.0.1"}),
        ({"no_grpc_proxy": "a"}, {"no_grpc_proxy": "a,127.0.0.1,localhost"}),
    ],
)
def test_loopback_is_added_to_what_proxies_are_not_for(environ, changed):
    assert without_proxy(environ | {"A": "b"}).items() >= (environ | changed | {"A": "b"}).items()


def test_a_server_is_not_sent_through_a_proxy_to_loopback(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "example.com")
    with served("Doubler") as server:
        environment = Path(f"/proc/{server.process.pid}/environ").read_text().split("\0")
    assert "NO_PROXY=example.com,127.0.0.1,localhost" in environment
    assert {"http_proxy=http://127.0.0.1:1", "no_proxy=127.0.0.1,localhost"} <= set(environment)
