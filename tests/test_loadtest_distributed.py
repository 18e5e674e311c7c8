"""A run over several processes: locust's real master and workers, one schedule, one verdict."""

import argparse
import contextlib
import io
import itertools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import msgpack
import numpy as np
from hdrh.histogram import HdrHistogram
from PIL import Image
from rendered_manifests import MANIFESTS, rendered
from test_loadtest import closed_port, stub

from kservekit.codec import rest_v2
from kservekit.loadtest import options, payload, shapes
from kservekit.loadtest.recorder import Outcome, Recorder
from kservekit.loadtest.request_id import RequestId
from kservekit.local.triton import reserved_ports
from kservekit.manifests.check import read_documents
from kservekit.manifests.lint.rules_security import short_of_restricted
from kservekit.manifests.pods import of_kind
from kservekit.tensors import ModelSpec
from kservekit.transformers.image import ImageTransformer


def counted(requests, width_s=1):
    recorder = Recorder(good_ms=15)
    for at, latency in requests:
        failed = "HTTP 503" if at % 7 == 0 else ""
        outcome = Outcome(failed, f"r{at % 2}", 10, f"total;dur={at % 5}", attempts=2)
        named = RequestId(f"{at:032x}", f"00-{at:032x}-0000000000000001-01" if at % 3 else "")
        due = at * width_s
        recorder.ask(due)
        recorder.send(due + 0.001, 20)
        recorder.end("w", "n", outcome, named, due_s=due, sent_s=due + 0.001, end_s=due + latency)
    return recorder


def test_what_several_generators_counted_is_exactly_what_one_would_have():
    """Also where one of them had to widen its series, and over the wire."""
    latencies = np.random.default_rng(1).lognormal(-4, 1, 900)
    requests = list(enumerate(latencies.tolist()))
    for width_s in (1, 3):
        whole = counted(requests, width_s)
        early, late = (counted(part, width_s) for part in (requests[:300], requests[300:]))
        together = Recorder()
        for part in (early, late):
            together.add(Recorder.from_data(msgpack.loads(msgpack.dumps(part.as_data()), strict_map_key=False)))
        assert together.total() == whole.total()
        assert together.parts() == whole.parts()
        assert together.series() == whole.series()
        assert together.stages_ms() == whole.stages_ms()
        assert together.slowest() == whole.slowest()
        assert together.retries == whole.retries == 900
        for name in ("asked", "sent", "answers", "errors", "good", "sent_bytes", "received_bytes", "errors_by"):
            assert getattr(together, name) == getattr(whole, name), name
        assert HdrHistogram.decode(together.total().hdr).get_total_count() == whole.answers


@contextlib.contextmanager
def locust(*flags):
    command = [sys.executable, "-m", "kservekit.cli", "loadtest", "locust", *map(str, flags)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def as_in_the_manifests(name):
    """The flags of a Job's container."""
    (job,) = (
        one
        for one in of_kind(read_documents(rendered(MANIFESTS / "loadtest")), "Job")
        if one["metadata"]["name"] == name
    )
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["kservekit", "loadtest", "locust"]
    return container["args"]


def distributed(folder, url, *settings, workers=2, kill=False):
    """What the master said and how it ended, and how each worker did; all of them are started as in the manifests."""
    folder.mkdir()
    (folder / "profile.toml").write_text("\n".join([f"url = '{url}'", "model = 'm'", "inputs = {}", *settings]))
    with reserved_ports({"master": None}) as ports:
        pass

    def here(flag):
        for there, mine in (("/etc/loadtest", folder), ("/results/$(POD_NAME)", folder / "run")):
            flag = flag.replace(there, str(mine))
        return flag.replace("workers=2", f"workers={workers}").replace("host=photo-loadtest", "host=127.0.0.1")

    flags = [here(flag) for flag in as_in_the_manifests("photo-loadtest")]
    flags += ["--master-bind-host=127.0.0.1", f"--master-bind-port={ports['master']}"]
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(locust(*flags))
        worker = [here(flag) for flag in as_in_the_manifests("photo-loadtest-workers")]
        worker.append(f"--master-port={ports['master']}")
        processes = [stack.enter_context(locust(*worker)) for _ in range(workers)]
        if kill:
            while " begins" not in (line := processes[0].stderr.readline()):
                assert line
            processes[0].kill()
        out, err = master.communicate(timeout=90)
        codes = [process.wait(timeout=30) for process in processes]
    file = folder / "run.json"
    return out, err, master.returncode, codes, json.loads(file.read_text()) if file.exists() else None


def test_a_master_and_its_workers_are_one_run_with_one_verdict(tmp_path):
    open_loop = ("rate = 100", "seed = 5", "duration_s = 2")
    slow = ("[slo]", "achieved_rate = 0", "p50_ms = 20")
    # More at once, on two cores, starve each other until a master misses a worker's heartbeat.
    with stub("--delay-ms", 40) as port, ThreadPoolExecutor(2) as pool:
        url = f"http://127.0.0.1:{port}"
        whole = pool.submit(distributed, tmp_path / "whole", url, *open_loop, *slow)
        less = pool.submit(distributed, tmp_path / "less", url, *open_loop, *slow, kill=True)
        # A second may be over before workers that get little of two cores have begun.
        closed = pool.submit(distributed, tmp_path / "closed", url, "users = 4", "duration_s = 5")
        nowhere = f"http://127.0.0.1:{closed_port()}"
        refused = pool.submit(distributed, tmp_path / "refused", nowhere, *open_loop, workers=1)

    out, err, code, workers, run = whole.result()
    assert (code, workers) == (1, [0, 0]), out + err
    assert out.count("fail: p50_ms ") == 1
    starts = list(itertools.takewhile(lambda at: at < 2, shapes.load("constant", 100, 2, seed=5).starts()))
    assert run["asked"] == len(starts)
    assert run["sent"] == run["answers"]
    by_worker = [text for name, text in run["environment"].items() if name.startswith("generator ")]
    for part, text in zip((starts[::2], starts[1::2]), by_worker, strict=True):
        assert f" of {len(part)} requests sent" in text
    assert HdrHistogram.decode(run["total"]["hdr"]).get_total_count() == run["answers"]
    assert "<b>fail</b>" in (tmp_path / "whole/run.html").read_text()

    out, err, code, _, run = less.result()
    assert code == 3, out + err
    assert len(run["lost"]) == 1
    assert "no data: 1 of the load's generators lost, with what they counted: " in out

    out, err, code, workers, run = closed.result()
    assert (code, workers) == (0, [0, 0]), out + err
    assert run["load"] == {"loop": "closed", "users": 4, "think_s": 0.0, "max_in_flight": 1000}
    assert run["asked"] == run["sent"] == run["answers"] > 4

    out, err, code, _, run = refused.result()
    assert (code, run) == (4, None), out + err
    assert f"{nowhere} does not answer: connection refused" in err


def test_the_profile_of_the_manifests_is_one_and_its_payload_is_a_picture(tmp_path):
    (config,) = of_kind(read_documents(rendered(MANIFESTS / "loadtest")), "ConfigMap")
    for name, text in config["data"].items():
        (tmp_path / name).write_text(text)
    given = flags_of("profile.toml")
    found = options.resolve(given, url=None, users=None, duration_s=None, profile=tmp_path / "profile.toml")
    assert (found.target.model, found.open_loop) == ("photo", True)
    (one,) = payload.from_files(found.payloads, ModelSpec(ImageTransformer.inputs), found.target)
    request = rest_v2.decode_request(one.body, one.headers["inference-header-content-length"])
    assert Image.open(io.BytesIO(request.tensors["image"][0])).size == (224, 224)


def flags_of(*arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("profile")
    options.add_flags(parser)
    return parser.parse_args(arguments)


def test_as_many_workers_are_started_as_the_master_waits_for():
    (workers,) = (
        job
        for job in of_kind(read_documents(rendered(MANIFESTS / "loadtest")), "Job")
        if "workers" in job["metadata"]["name"]
    )
    assert f"--expect-workers={workers['spec']['parallelism']}" in as_in_the_manifests("photo-loadtest")
    assert workers["spec"]["completions"] == workers["spec"]["parallelism"]


def test_every_pod_of_the_load_test_has_as_little_power_as_restricted_asks_for():
    documents = [
        *read_documents(rendered(MANIFESTS / "loadtest")),
        *read_documents(rendered(MANIFESTS / "loadtest/results")),
    ]
    pods = [one["spec"]["template"]["spec"] for one in of_kind(documents, "Job")]
    pods += [one["spec"] for one in of_kind(documents, "Pod")]
    assert len(pods) == 3
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert short_of_restricted(container["securityContext"], pod.get("securityContext", {})) == []
            assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_locust_that_is_not_installed_is_one_line(monkeypatch):
    from kservekit.loadtest import command

    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    said = []
    assert command.run(["locust", "--worker"], said.append, said.append) == 2
    assert said == ["kservekit loadtest: locust is not installed: pip install 'kservekit[loadtest]'"]
