"""A run's own figures while it goes on: a real scrape, and a real receiver of OTLP."""

import json
from concurrent import futures

import grpc
import pytest
from calls import eventually, http
from google.protobuf.json_format import MessageToDict
from hdrh.histogram import HdrHistogram
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)
from prometheus_client.parser import text_string_to_metric_families
from test_loadtest import closed_port, loadtest, stub

from kservekit.loadtest import command, options
from kservekit.local.triton import reserved_ports


class Receiver(MetricsServiceServicer):
    def __init__(self):
        self.requests = []

    def Export(self, request, context):
        self.requests.append(request)
        return ExportMetricsServiceResponse()


@pytest.fixture
def receiver():
    server = grpc.server(futures.ThreadPoolExecutor(2))
    found = Receiver()
    add_MetricsServiceServicer_to_server(found, server)
    found.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield found
    server.stop(None)


def scraped(port):
    """By name, the labels and the values; empty where nobody listens yet."""
    try:
        text = http(f"127.0.0.1:{port}", "/metrics").body.decode()
    except OSError:
        return {}
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {}
    for sample in samples:
        assert (sample.labels.pop("model"), sample.labels.pop("wire")) == ("m", "v2-json")
        found.setdefault(sample.name.removeprefix("kservekit_loadtest_"), []).append((sample.labels, sample.value))
    return found


def total(samples):
    return sum(value for _, value in samples)


def test_prometheus_finds_the_run_under_way_and_otlp_is_told_its_end_exactly(tmp_path, receiver):
    slo, file = tmp_path / "slo.toml", tmp_path / "run.json"
    slo.write_text("achieved_rate = 0\nerror_rate = 1\n")
    with reserved_ports({"metrics": None}) as ports:
        pass
    flags = (f"--metrics-port={ports['metrics']}", f"--otlp={receiver.url}", f"--slo={slo}", f"--json={file}")
    seen = []

    def has_answers():
        seen.append(scraped(ports["metrics"]))
        return total(seen[-1].get("answers_total", [])) > 20

    with stub("--canary", 0.5, "--fail", 0.2) as port, futures.ThreadPoolExecutor() as pool:
        run = pool.submit(loadtest, port, "--rate=50", "--duration=2", *flags)
        assert eventually(has_answers)
        assert run.result().returncode == 0, run.result().stderr

    during = seen[-1]
    assert total(during["asked_total"]) >= total(during["sent_total"])
    assert total(during["sent_total"]) >= total(during["answers_total"]) + total(during["errors_total"])
    assert [labels for labels, _ in during["errors_total"]] == [{"kind": "HTTP 503"}]
    assert {labels["revision"] for labels, _ in during["answers_total"]} == {"new", "old"}
    assert total(during["latency_seconds_count"]) == total(during["answers_total"])
    in_all = [value for labels, value in during["latency_seconds_bucket"] if labels["le"] == "+Inf"]
    assert sum(in_all) == total(during["answers_total"])
    assert {labels["quantile"] for labels, _ in during["recent_latency_seconds"]} == {"0.5", "0.9", "0.99", "0.999"}
    assert during["in_flight"][0][1] >= 0
    assert 0 <= during["busy_ratio"][0][1] <= 1

    found = json.loads(file.read_text())
    (resource,) = receiver.requests[-1].resource_metrics
    assert {"service.name": "kservekit-loadtest"}.items() <= attributes(resource.resource).items()
    metrics = {one.name.removeprefix("kservekit_loadtest_"): one for one in resource.scope_metrics[0].metrics}
    for name in ("asked", "sent", "answers", "errors"):
        assert metrics[name].sum.is_monotonic
        assert sum(point.as_int for point in metrics[name].sum.data_points) == found[name], name
    for point in metrics["latency"].histogram.data_points:
        (part,) = (one for one in found["parts"] if one["revision"] == attributes(point)["revision"])
        histogram = HdrHistogram.decode(part["hdr"])
        assert point.count == sum(point.bucket_counts) == histogram.get_total_count() == part["answers"]
        assert point.max == pytest.approx(part["latency_ms"]["max"] / 1000, rel=0.01)
        assert point.sum / point.count == pytest.approx(part["latency_ms"]["mean"] / 1000, rel=0.01)


def attributes(message):
    found = MessageToDict(message)["attributes"]
    return {one["key"]: one["value"].get("stringValue") for one in found}


def test_a_receiver_that_is_not_there_costs_the_run_nothing(tmp_path):
    slo = tmp_path / "slo.toml"
    slo.write_text("achieved_rate = 0\n")
    with stub() as port:
        done = loadtest(port, "--rate=50", "--duration=0.2", f"--slo={slo}", f"--otlp=http://127.0.0.1:{closed_port()}")
    assert done.returncode == 0, done.stderr
    assert "Failed to export metrics" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--otlp=localhost:4317",), "otlp is 'localhost:4317': expected such as http://localhost:4317"),
        (("--metrics-port=-1",), "metrics_port is -1: expected a whole number"),
        (("--trace-share=2",), "trace_share is 2: expected a share from 0 to 1"),
    ],
)
def test_what_cannot_be_told_or_asked_is_one_line(flags, sentence):
    said = []
    given = ["--url=http://127.0.0.1:1", "--model=m", "--rate=5", "--duration=1", *flags]
    assert command.run(given, said.append, said.append) == 2
    assert sentence in said[0]


def test_an_exporter_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr(options.importlib.util, "find_spec", lambda name: None if "otlp" in name else name)
    said = []
    given = ["--url=http://127.0.0.1:1", "--model=m", "--rate=5", "--duration=1", "--otlp=http://127.0.0.1:1"]
    assert command.run(given, said.append, said.append) == 2
    assert said[0].endswith("its exporter is not installed: pip install 'kservekit[otlp]'")


def test_a_port_that_is_taken_is_one_line():
    with stub() as port:
        done = loadtest(port, "--rate=5", "--duration=1", f"--metrics-port={port}")
    assert done.returncode == 2
    assert f"--metrics-port is {port}: " in done.stderr
