"""How a server comes up and goes down: workers, draining, signals."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from calls import MODELS, WIRES, ask, eventually, http, kservekit, processes_with, served
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kserve.protocol.grpc import grpc_predict_v2_pb2, grpc_predict_v2_pb2_grpc

from kservekit.local.server import LocalServer

ZERO = {"x": np.zeros(1, np.float32)}


def body(seconds):
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [seconds]}]}


def pid(server, wire="v2 binary"):
    return int(next(iter(ask(server, wire, ZERO).tensors.values()))[0])


def pids(server, count, wire="v2 binary"):
    """Those of `count` workers, each asked on a connection of its own."""
    found = set()
    assert eventually(lambda: len(found.add(pid(server, wire)) or found) >= count), found
    return found


async def _health(url, service=""):
    async with grpc.aio.insecure_channel(url) as channel:
        return (await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))).status


def test_after_sigterm_it_serves_on_unready_then_finishes_what_is_in_flight_and_ends():
    with served("Slow", lame_duck_ms="2000") as server:
        replies = []
        last = threading.Thread(target=lambda: replies.append(http(server.http_url, "/v2/models/m/infer", body(3))))
        last.start()
        assert eventually(lambda: "started" in server.process.log_tail())
        assert asyncio.run(_health(server.grpc_url)) == health_pb2.HealthCheckResponse.SERVING
        os.kill(server.process.pid, signal.SIGTERM)
        assert eventually(lambda: server.get("/v2/health/ready") == 503)
        assert server.get("/v2/models/m/ready") == 503
        assert server.get("/v2/health/live") == 200
        assert asyncio.run(_health(server.grpc_url)) == health_pb2.HealthCheckResponse.NOT_SERVING
        for wire in WIRES:
            assert ask(server, wire, ZERO)
        assert http(server.http_url, "/v2/models/m/infer", body(0)).headers["connection"] == "close"
        last.join()
        assert replies[0].status == 200
        assert eventually(lambda: server.process.poll() is not None)
        assert server.process.poll() == 0


@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
def test_a_second_signal_ends_at_once(numbers):
    with served("Slow", lame_duck_ms="600000") as server:
        os.kill(server.process.pid, numbers[0])
        assert eventually(lambda: server.get("/v2/health/ready") == 503)
        os.kill(server.process.pid, numbers[1])
        assert eventually(lambda: server.process.poll() is not None)
        assert server.process.poll() == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_ctrl_c_does_not_wait_for_callers_to_notice(number):
    with served("Slow", lame_duck_ms="600000") as server:
        os.kill(server.process.pid, number)
        assert eventually(lambda: server.process.poll() is not None)
        assert server.process.poll() == 0


@pytest.fixture(scope="module")
def workers():
    with served("Process", "--workers=2") as server:
        yield server


@pytest.mark.parametrize("wire", WIRES)
def test_workers_are_processes_that_answer_on_the_same_ports(workers, wire):
    found = pids(workers, 2, wire)
    assert len(found) == 2
    assert workers.process.pid not in found


def test_metrics_are_those_of_all_workers(workers):
    def counted():
        page = http(workers.http_url, "/metrics").body.decode()
        lines = [line for line in page.splitlines() if line.startswith('request_predict_seconds_count{model_name="m"}')]
        return float(lines[0].split()[-1]) if lines else 0.0

    pids(workers, 2)
    before = counted()
    for _ in range(20):
        pid(workers)
    assert {counted() for _ in range(10)} == {before + 20}


def test_a_dead_worker_is_replaced_and_the_other_one_answers_meanwhile(workers):
    first, second = pids(workers, 2)
    os.kill(first, signal.SIGKILL)

    def replaced():
        try:
            return pid(workers) not in (first, second)
        except Exception:  # a connection that the dead one had not accepted yet
            return False

    assert eventually(replaced)
    assert "ended with code -9; another starts in 0.5 s" in workers.process.log_tail(50)


def test_workers_end_with_their_supervisor():
    with served("Process", "--workers=2") as server:
        found = pids(server, 2)
        os.kill(server.process.pid, signal.SIGKILL)
        assert eventually(lambda: not any(os.path.exists(f"/proc/{number}") for number in found))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_workers_in_order(number):
    with served("Process", "--workers=2") as server:
        found = pids(server, 2)
        os.kill(server.process.pid, number)
        assert eventually(lambda: server.process.poll() is not None)
        assert server.process.poll() == 0, server.process.log_tail()
        assert not any(os.path.exists(f"/proc/{number}") for number in found)


def test_a_transformer_has_workers_too():
    with served("Doubler") as predictor:
        flags = (f"--predictor_host={predictor.grpc_url}", "--predictor_protocol=grpc-v2", "--workers=2")
        with LocalServer(f"{MODELS}:Passing", *flags, model_name="m") as server:
            for wire in WIRES[1:]:
                assert ask(server, wire, {"x": np.ones(1)}).tensors["x"].tolist() == [2]


def test_what_keeps_one_worker_from_starting_ends_all_with_its_code():
    token = f"KSERVEKIT_TEST={os.getpid()}"
    env = {**os.environ, "KSERVEKIT_HOST": "127.0.0.1", "KSERVEKIT_TEST": str(os.getpid())}
    ports = LocalServer("")
    flags = [f"--http_port={ports.http_url.split(':')[1]}", f"--grpc_port={ports.grpc_url.split(':')[1]}"]
    done = kservekit("serve", f"{MODELS}:Loading", "--workers=2", *flags, env=env)
    assert done.returncode == 1
    assert "model 'model' does not load: OSError: no weights in /mnt/models" in done.stderr
    assert "Traceback" not in done.stderr
    assert processes_with(token) == {}


def test_a_model_that_is_made_already_cannot_have_several_workers(tmp_path):
    script = tmp_path / "made.py"
    script.write_text("from kservekit.serving import Predictor, serve\nserve(Predictor('m'))\n")
    command = [sys.executable, str(script), "--workers=2"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "KSERVEKIT_HOST": "127.0.0.1"})
    assert done.returncode == 1
    assert "--workers is 2, and this model is made already: expected 1, or a class or factory" in done.stderr


def test_health_by_grpc_knows_the_server_its_models_and_nobody_else():
    with served("Process") as server:

        async def check():
            async with grpc.aio.insecure_channel(server.grpc_url) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                for service in ("", "inference.GRPCInferenceService", "m"):
                    status = (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status
                    assert status == health_pb2.HealthCheckResponse.SERVING
                watch = stub.Watch(health_pb2.HealthCheckRequest(service="nix"))
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
                watch.cancel()

        asyncio.run(check())


@pytest.fixture(scope="module")
def process_server():
    with served("Process") as server:
        yield server


@pytest.mark.parametrize("sent", [[], [b"\xff"]], ids=["nothing", "no protobuf"])
@pytest.mark.parametrize(
    "method",
    [
        "grpc.health.v1.Health/Watch",
        "grpc.health.v1.Health/Check",
        "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ],
)
def test_what_is_no_message_is_the_callers_fault_beside_inference_too(process_server, method, sent):
    with grpc.insecure_channel(process_server.grpc_url) as channel:
        call = channel.stream_stream(f"/{method}")(iter(sent))
        if not sent and method.endswith("Info"):
            assert list(call) == []
            return
        with pytest.raises(grpc.RpcError) as found:
            list(call)
        assert found.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_reflection_lists_the_inference_service():
    from google.protobuf import descriptor_pool
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    with served("Process") as server, grpc.insecure_channel(server.grpc_url) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "inference.GRPCInferenceService" in database.get_services()
        pool = descriptor_pool.DescriptorPool(database)
        service = pool.FindServiceByName("inference.GRPCInferenceService")
        assert "ModelInfer" in service.methods_by_name


def test_the_repository_is_listed_and_its_models_unloaded_and_loaded_where_that_is_switched_on():
    with served("Process", repository_api="true") as server:
        url = server.http_url

        def index():
            return http(url, "/v2/repository/index", {}).json

        assert index() == [{"name": "m", "state": "READY", "reason": ""}]
        assert http(url, "/v2/repository/models/m/unload", {}).json == {"name": "m", "unload": True}
        assert index()[0]["state"] == "UNAVAILABLE"
        assert http(url, "/v2/repository/index", {"ready": True}).json == []
        assert http(url, "/v2").json["extensions"] == ["binary_tensor_data", "model_repository"]
        assert server.get("/v2/models/m/ready") == 503
        assert server.get("/v2/health/ready") == 200  # or the pod with its other models would be taken out of service
        assert http(url, "/v2/models/m/infer", body(0)).status == 503
        assert http(url, "/v2/repository/models/nix/load", {}).status == 404

        # KServe's message, which is not Triton's: there field 1 is the repository's name.
        with grpc.insecure_channel(server.grpc_url) as channel:
            stub = grpc_predict_v2_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert stub.RepositoryModelLoad(grpc_predict_v2_pb2.RepositoryModelLoadRequest(model_name="m")).isLoaded
        assert server.get("/v2/health/ready") == 200
        assert pid(server)


def test_a_model_is_loaded_anew_beside_the_one_that_serves(tmp_path):
    weights = tmp_path / "weights"
    weights.write_text("1")
    with served("Weights", repository_api="true", response_cache_ttl_s="60", test_file=str(weights)) as server:

        def load(text):
            weights.write_text(text)
            return http(server.http_url, "/v2/repository/models/m/load", {})

        def answer():
            return next(iter(ask(server, "v2 JSON", ZERO).tensors.values())).tolist()

        assert answer() == [1]
        assert load("2").json == {"name": "m", "load": True}
        assert answer() == [2]  # and not what was kept of the first
        refused = load("damaged")
        assert (refused.status, "the server's log has the reason" in refused.json["error"]) == (500, True)
        assert answer() == [2]
        assert http(server.http_url, "/v2/models/m/infer", body(7)).json["outputs"][0]["data"] == [2]
        http(server.http_url, "/v2/repository/models/m/unload", {})
        assert load("3").status == 200
        assert answer() == [3]
        assert "could not convert string to float: 'damaged'" in server.process.log_tail(50)


def test_a_cloud_event_is_answered_with_a_cloud_event():
    with served("Doubler") as server:
        binary = {
            "ce_specversion": "1.0",
            "ce_id": "1",
            "ce_source": "test",
            "ce_type": "t",
            "content_type": "application/json",
        }
        reply = http(server.http_url, "/v1/models/m:predict", {"instances": [1]}, **binary)
        assert reply.json == {"predictions": [2]}
        assert reply.headers["ce-type"] == "io.kserve.inference.response"
        assert reply.headers["ce-source"] == "io.kserve.inference.m"
        event = {"specversion": "1.0", "id": "1", "source": "test", "type": "t", "data": {"instances": [1]}}
        kind = "application/cloudevents+json"
        reply = http(server.http_url, "/v1/models/m:predict", event, content_type=kind)
        assert reply.headers["content-type"] == kind
        assert (reply.json["data"], reply.json["type"]) == ({"predictions": [2]}, "io.kserve.inference.response")
        del binary["ce_id"], event["id"]
        assert http(server.http_url, "/v1/models/m:predict", {"instances": [1]}, **binary).status == 400
        assert http(server.http_url, "/v1/models/m:predict", event, content_type=kind).status == 400


def test_a_model_without_an_explain_hook_says_that_it_does_not_explain():
    with served("Doubler") as server:
        reply = http(server.http_url, "/v1/models/m:explain", {"instances": [1]}, authorization="Bearer secret")
        assert (reply.status, reply.json) == (501, {"error": "model 'm' does not explain: it has no explain hook"})
        assert "secret" not in str(reply.headers)


def test_a_model_is_unloaded_once_its_requests_are_answered(tmp_path):
    def post(path, sent):
        return pool.submit(http, server.http_url, path, sent)

    with served("Gated", repository_api="true", test_file=str(tmp_path)) as server, ThreadPoolExecutor() as pool:
        answer = post("/v2/models/m/infer", body(1))
        assert eventually((tmp_path / "entered").exists)
        unloaded = post("/v2/repository/models/m/unload", {})
        assert eventually(lambda: http(server.http_url, "/v2/models/m/ready").status == 503)
        assert not (tmp_path / "stopped").exists()
        (tmp_path / "open").touch()
        assert (answer.result().status, unloaded.result().status) == (200, 200)
        assert (tmp_path / "stopped").exists()
