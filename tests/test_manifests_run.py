"""What manifests start, started for real: flags, settings, probes and metrics are those of the servers themselves."""

import contextlib
import re
import socket
import subprocess

import pytest
from calls import http
from conftest import write_doubles
from rendered_manifests import MANIFESTS, SCENARIOS, WHOLE, label, rendered

from kservekit import config
from kservekit.local.server import LocalServer
from kservekit.manifests.lint.reading import read_documents
from kservekit.manifests.pods import is_ours, of_kind, pods
from kservekit.serving.flags import flags_parser
from kservekit.target import load_target

TRACED, SEPARATE = SCENARIOS / "collocated-mig", SCENARIOS / "triton-on-cpu"
FROM_THE_MANIFEST_ONLY = ("--model-repository", "--http-port", "--grpc-port", "--metrics-port", "--trace-config=opent")


def container(folder, container_name, component="predictor"):
    found = [pod for pod in pods(read_documents(rendered(folder))) if pod.component == component]
    return next(item for pod in found for item in pod.containers if item["name"] == container_name)


def probes(item):
    return {item[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}


@pytest.fixture(scope="module")
def triton_as_in_the_manifest(local_triton, tmp_path_factory):
    """The real Triton with the runtime's own arguments, but for ports, the repository and where spans go."""
    folder = tmp_path_factory.mktemp("manifest")
    write_doubles(folder / "repository", folder)
    command, *arguments = container(TRACED, "kserve-container")["args"]
    assert command == "tritonserver"
    arguments = [word for word in arguments if not word.startswith(FROM_THE_MANIFEST_ONLY)]
    arguments.append("--trace-config=opentelemetry,url=127.0.0.1:1/v1/traces")
    return local_triton(folder / "repository", arguments=arguments)


def test_triton_takes_every_argument_of_the_runtime_and_answers_its_probes(triton_as_in_the_manifest):
    for path in probes(container(SEPARATE, "kserve-container")):
        assert http(triton_as_in_the_manifest.http_url, path).status == 200


def test_every_metric_that_keda_asks_for_is_tritons(triton_as_in_the_manifest):
    text = http(triton_as_in_the_manifest.metrics_url, "/metrics").body.decode()
    queries = rendered(MANIFESTS / "overlays/production-standard")
    asked = set(re.findall(r"nv_[a-z_]+", queries))
    assert {"nv_gpu_utilization"} < asked
    for metric in asked - {"nv_gpu_utilization"}:  # it has no GPU here
        assert f"# TYPE {metric} " in text


def test_our_server_takes_the_transformers_arguments_and_settings_and_answers_its_probes(triton_as_in_the_manifest):
    item = container(TRACED, "transformer-container")
    target, *flags = item["args"]
    own = ("--http_port", "--grpc_port", "--predictor_host", "--model_name")
    flags = [flag for flag in flags if not flag.startswith(own)]
    settings = {"KSERVEKIT_PREDICTOR_MODEL": "doubles"}
    for document in of_kind(read_documents(rendered(TRACED)), "ConfigMap"):
        settings |= document["data"]
    settings["KSERVEKIT_LAME_DUCK_MS"] = "0"
    flags.append(f"--predictor_host={triton_as_in_the_manifest.grpc_url}")
    with LocalServer(target, *flags, model_name="photo", settings=settings) as server:
        for path in probes(item):
            assert http(server.http_url, path).status == 200
        assert b"request_predict_seconds" in http(server.http_url, "/metrics").body
        log = server.process.log_tail()
    assert "nothing reads it" not in log
    assert "no effect here" not in log
    assert "KServe has no flag" not in log


def test_the_flags_for_tls_are_the_servers():
    flags = container(SCENARIOS / "onnx-behind-hpa", "kserve-container", "transformer")["args"]
    parsed = flags_parser().parse_args(flags[1:])
    assert parsed.ssl_certfile == "/etc/tls/tls.crt"
    assert parsed.ssl_keyfile == "/etc/tls/tls.key"
    assert parsed.enable_grpc is False


@pytest.mark.parametrize("folder", WHOLE, ids=label)
def test_every_setting_is_one_that_our_server_reads(folder):
    documents = read_documents(rendered(folder))
    settings = {}
    for document in of_kind(documents, "ConfigMap"):
        settings |= {key: value for key, value in document["data"].items() if key.startswith("KSERVEKIT_")}
    for document in of_kind(documents, "Secret"):
        settings |= dict.fromkeys(document["data"], "redis://localhost")
    for pod in pods(documents):
        for item in filter(is_ours, pod.containers):
            settings |= {entry["name"]: entry.get("value", "1") for entry in item.get("env", ())}
    assert config.check(settings) == []


def test_everything_that_is_served_can_be():
    targets = {
        item["args"][0]
        for folder in WHOLE
        for pod in pods(read_documents(rendered(folder)))
        for item in pod.containers
        if is_ours(item)
    }
    assert "kservekit.transformers.image:ImageTransformer" in targets
    assert "kservekit.predictors.triton:models" in targets
    for target in targets:
        assert load_target(target), target


def test_triton_ends_after_the_transformer_beside_it():
    """The preStop hook, with a port of this machine: it goes on while somebody listens there, and ends then."""
    command = container(TRACED, "kserve-container")["lifecycle"]["preStop"]["exec"]["command"]
    with socket.create_server(("127.0.0.1", 0)) as transformer:
        command = [word.replace("8080", str(transformer.getsockname()[1])) for word in command]
        transformer.settimeout(0.1)
        with subprocess.Popen(command) as hook:
            asked = 0
            while asked < 2:  # it has asked, waited, and asked again
                assert hook.poll() is None, "it ended while somebody listens there"
                with contextlib.suppress(TimeoutError):
                    transformer.accept()[0].close()
                    asked += 1
            transformer.close()
    assert hook.returncode == 0
