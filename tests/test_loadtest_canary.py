"""A canary as it is met in a cluster: a real Envoy splits by weight between two of our servers."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from calls import eventually, http, kservekit, served
from envoy import cluster, envoy, listener

from kservekit.local.triton import reserved_ports

HOST = "m.default.example.com"
WEIGHTS = {"stable": 80, "canary": 20}
REQUESTS = 500


def split(kind):
    return {"weighted_clusters": {"clusters": [{"name": f"{arm}-{kind}", "weight": WEIGHTS[arm]} for arm in WEIGHTS]}}


@pytest.fixture(scope="module")
def ingress(tmp_path_factory):
    """Its port: of REST and of gRPC, four fifths to `stable` and a fifth to `canary`, which is slow."""
    with reserved_ports({"ingress": None}) as ports:
        pass
    routes = [
        {"match": {"prefix": "/", "grpc": {}}, "route": split("grpc")},
        {"match": {"prefix": "/"}, "route": split("rest")},
    ]
    with served("Echo", revision="stable") as stable, served("Late", revision="canary") as canary:
        arms = {"stable": stable, "canary": canary}
        clusters = [cluster(f"{arm}-rest", [server.http_url], http2=False) for arm, server in arms.items()]
        clusters += [cluster(f"{arm}-grpc", [server.grpc_url], http2=True) for arm, server in arms.items()]
        hosts = [{"name": "m", "domains": [HOST], "routes": routes}]
        config = {"listeners": [listener(ports["ingress"], hosts)], "clusters": clusters}
        with envoy(config, tmp_path_factory.mktemp("envoy")) as proxy:

            def serves():
                assert proxy.poll() is None, proxy.log_tail()
                try:
                    return http(f"127.0.0.1:{ports['ingress']}", "/v2/models/m/ready", host=HOST).status == 200
                except OSError:
                    return False

            assert eventually(serves), proxy.log_tail()
            yield ports["ingress"]


def measured(folder, port, scheme, wire, share):
    """As many requests as there are, so that the split does not depend on the machine's pace."""
    np.savez(folder / "x.npz", x=np.ones((1, 3), np.float32))
    (folder / "starts.txt").write_text("".join(f"{at / 250}\n" for at in range(REQUESTS)))
    profile = folder / "profile.toml"
    profile.write_text(
        f"url = '{scheme}://127.0.0.1:{port}'\nmodel = 'm'\nwire = '{wire}'\nhost_header = '{HOST}'\n"
        f"shape = 'replay:{folder / 'starts.txt'}'\npayloads = ['x.npz']\n[slo]\nachieved_rate = 0\n"
        f"canary = {{revision = 'canary', share = {share}, confidence = 0.99999}}\n"
    )
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
        (tmp_path / name).mkdir()
        return measured(tmp_path / name, ingress, *cases[name])

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
    done = kservekit("loadtest", f"--url=http://127.0.0.1:{ingress}", *flags)
    assert done.returncode == 4, done.stdout
    assert "has no model 'm' by v2-json" in done.stderr
