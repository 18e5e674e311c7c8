"""What a load test meets in a cluster: a real Envoy that splits between two of our servers, retries, and renames."""

import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from calls import eventually, http, kservekit, served
from envoy import cluster, envoy, listener
from test_loadtest import closed_port

from kservekit.local.triton import reserved_ports

HOST = "m.default.example.com"
WEIGHTS = {"stable": 80, "canary": 20}
RETRIED = "retried.default.example.com"


def split(kind):
    return {"weighted_clusters": {"clusters": [{"name": f"{arm}-{kind}", "weight": WEIGHTS[arm]} for arm in WEIGHTS]}}


def virtual_hosts():
    """One splits, by REST and by gRPC. One has a server that is not there among its two, and ids of its own."""
    routes = [
        {"match": {"prefix": "/", "grpc": {}}, "route": split("grpc")},
        {"match": {"prefix": "/"}, "route": split("rest")},
    ]
    named = {
        "header": {"key": "x-request-id", "value": "%REQ(X-REQUEST-ID)%"},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }
    renamed = {**named, "header": {**named["header"], "value": "edge-%REQ(X-REQUEST-ID)%"}}
    retry = {"retry_on": "connect-failure", "num_retries": 20}
    retried = {
        "include_attempt_count_in_response": True,
        "request_headers_to_add": [renamed],
        "response_headers_to_add": [named],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "retried", "retry_policy": retry}}],
    }
    return [
        {"name": "m", "domains": [HOST], "routes": routes},
        {"name": "retried", "domains": [RETRIED], **retried},
    ]


@pytest.fixture(scope="module")
def ingress(tmp_path_factory):
    """Four fifths go to `stable`, which keeps what it was asked in a file, and a fifth to `canary`, which is slow."""
    with reserved_ports({"ingress": None}) as ports:
        pass
    folder = tmp_path_factory.mktemp("ingress")
    noted = folder / "noted.txt"
    with (
        served("Noting", revision="stable", test_file=str(noted)) as stable,
        served("Late", revision="canary") as canary,
    ):
        arms = {"stable": stable, "canary": canary}
        clusters = [cluster(f"{arm}-rest", [server.http_url], http2=False) for arm, server in arms.items()]
        clusters += [cluster(f"{arm}-grpc", [server.grpc_url], http2=True) for arm, server in arms.items()]
        two = [f"127.0.0.1:{closed_port()}", stable.http_url]
        many = {"thresholds": [{"max_retries": 1000}]}  # at once; Envoy's default is 3
        clusters.append(cluster("retried", two, http2=False, circuit_breakers=many))
        config = {"listeners": [listener(ports["ingress"], virtual_hosts())], "clusters": clusters}
        with envoy(config, folder) as proxy:
            url = f"127.0.0.1:{ports['ingress']}"

            def serves():
                assert proxy.poll() is None, proxy.log_tail()
                try:
                    return http(url, "/v2/models/m/ready", host=HOST).status == 200
                except OSError:
                    return False

            assert eventually(serves), proxy.log_tail()
            yield SimpleNamespace(url=url, stable=stable, noted=noted)


def measured(folder, url, *lines, wire, starts):
    """As many requests as there are starts, at a pace that a busy machine keeps up with three times over."""
    folder.mkdir()
    np.savez(folder / "x.npz", x=np.ones((1, 3), np.float32))
    (folder / "starts.txt").write_text("".join(f"{at / 100}\n" for at in range(starts)))
    profile = folder / "profile.toml"
    head = (f"url = '{url}'", "model = 'm'", f"wire = '{wire}'", "payloads = ['x.npz']")
    shape = f"shape = 'replay:{folder / 'starts.txt'}'"
    profile.write_text("\n".join([*head, shape, *lines]))
    done = kservekit("loadtest", str(profile), "--quiet", f"--json={folder / 'run.json'}")
    assert (folder / "run.json").exists(), done.stderr
    return json.loads((folder / "run.json").read_text()), done


def test_a_split_is_held_to_its_weight_and_each_arm_has_its_own_figures(tmp_path, ingress):
    cases = {
        "rest": ("http", "v2-binary", 0.2),
        "grpc": ("grpc", "v2-grpc", 0.2),
        "wrong": ("http", "v2-binary", 0.4),
    }

    def by(name):
        scheme, wire, share = cases[name]
        slo = f"canary = {{revision = 'canary', share = {share}, confidence = 0.99999}}"
        lines = (f"host_header = '{HOST}'", "[slo]", "achieved_rate = 0", slo)
        return measured(tmp_path / name, f"{scheme}://{ingress.url}", *lines, wire=wire, starts=500)

    with ThreadPoolExecutor() as pool:
        found = dict(zip(cases, pool.map(by, cases), strict=True))
    for name, (run, done) in found.items():
        assert run["errors"] == 0, run["errors_by"]
        stable, canary = sorted(run["parts"], key=lambda part: part["revision"], reverse=True)
        assert (stable["revision"], canary["revision"]) == ("stable", "canary")
        assert stable["answers"] + canary["answers"] == run["answers"] == run["sent"]
        assert canary["latency_ms"]["p50"] >= 250
        assert canary["latency_ms"]["p50"] > stable["latency_ms"]["p50"]
        (split,) = (one for one in run["verdict"]["objectives"] if one["name"] == "canary")
        assert split["measured"] == canary["answers"] / run["answers"]
        as_set = name != "wrong"
        assert (split["held"], done.returncode) == (as_set, 0 if as_set else 1), done.stdout
        assert ("fail: canary 'canary' had " in done.stdout) is not as_set


def test_a_host_that_the_ingress_does_not_know_is_no_target(ingress):
    flags = ("--model=m", "--rate=5", "--duration=1", "--host-header=nix.default.example.com")
    done = kservekit("loadtest", f"--url=http://{ingress.url}", *flags)
    assert done.returncode == 4, done.stdout
    assert "has no model 'm' by v2-json" in done.stderr


def test_the_slowest_requests_have_the_ids_that_the_server_knows_and_a_proxys_retries_are_counted(tmp_path, ingress):
    """Through a proxy that gives requests ids of its own, and without one."""
    lines = ("trace_share = 0.5", "[slo]", "achieved_rate = 0")

    def by(wire):
        if wire == "v2-grpc":
            return measured(tmp_path / wire, f"grpc://{ingress.stable.grpc_url}", *lines, wire=wire, starts=100)
        host = f"host_header = '{RETRIED}'"
        return measured(tmp_path / wire, f"http://{ingress.url}", host, *lines, wire=wire, starts=100)

    ingress.noted.write_text("")
    with ThreadPoolExecutor() as pool:
        (rest, _), (grpc, _) = pool.map(by, ("v2-json", "v2-grpc"))
    noted = dict(line.split(" ") for line in ingress.noted.read_text().splitlines())
    assert len(noted) == rest["answers"] + grpc["answers"] == rest["sent"] + grpc["sent"]
    for run in (rest, grpc):
        slowest = run["slowest"]
        assert [slow["latency_ms"] for slow in slowest] == sorted((s["latency_ms"] for s in slowest), reverse=True)
        assert slowest[0]["latency_ms"] == pytest.approx(run["total"]["latency_ms"]["max"], rel=0.01)
        assert sum(bool(slow["trace_id"]) for slow in slowest) == sum(not slow["trace_id"] for slow in slowest) == 10
        for slow in slowest:
            traceparent = noted[slow["request_id"]]
            assert traceparent[3:35] == slow["trace_id"]
            assert traceparent[-3:] == ("-01" if slow["trace_id"] else "")
    assert {slow["request_id"][:5] for slow in rest["slowest"]} == {"edge-"}
    assert rest["answers"] / 4 < rest["retries"] <= rest["answers"]
    assert grpc["retries"] is None
