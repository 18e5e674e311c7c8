"""A predictor and a transformer of one's own, served as processes, over every wire."""

import asyncio
import base64
import gzip
import json
import os
import signal
import socket
import sys
import zlib
from pathlib import Path

import grpc
import numpy as np
import pytest
from calls import MODELS, WIRES, ask, floats, http, kservekit, served

from kservekit import __version__, errors
from kservekit.local.process import GuardedProcess
from kservekit.local.server import LocalServer
from kservekit.oip.grpc import GrpcBackend
from kservekit.oip.grpc_channel import GrpcFailure
from kservekit.oip.triton_messages import messages, stubs


@pytest.fixture(scope="module")
def doubler():
    with served("Doubler", server_timing="true", max_body_bytes="100000") as server:
        yield server


@pytest.fixture(scope="module")
def declared():
    with served("Declared") as server:
        yield server


@pytest.fixture(scope="module")
def failing():
    with served("Failing") as server:
        yield server


@pytest.mark.parametrize("wire", WIRES)
def test_a_predictor_answers_over_every_wire(doubler, wire):
    answer = ask(doubler, wire, {"x": floats([1, 2, 3.5])}, id="7")
    assert [array.tolist() for array in answer.tensors.values()] == [[[2, 4, 7]]]
    if wire != "v1":
        assert (answer.model, answer.version, answer.id) == ("m", "1", "7")
        assert answer.tensors["x"].dtype == np.float32


@pytest.mark.parametrize("wire", WIRES)
def test_bytes_that_are_no_text_cross_every_wire(declared, wire):
    tensors = {"age": np.array([7, 255], np.uint8), "name": np.array([b"Eva", "Zo\u00eb".encode()], object)}
    answer = ask(declared, wire, tensors)
    assert answer.tensors["greeting"].tolist() == [b"Eva is 7", "Zo\u00eb is 255".encode()]
    expected = b"/w==" if wire == "v1" else b"\xff"  # v1 cannot say of a string that it is base64; the declaration does
    assert answer.tensors["raw"].tolist() == [expected] * 2


def test_v1_values_are_cast_to_the_declared_datatypes_and_checked(declared):
    good = http(declared.http_url, "/v1/models/m:predict", {"instances": [{"age": 7, "name": "Eva"}]})
    assert good.json == {"predictions": [{"greeting": "Eva is 7", "raw": base64.b64encode(b"\xff").decode()}]}
    bad = http(
        declared.http_url, "/v1/models/m:predict", {"instances": [{"age": 7, "name": "Eva"}, {"age": 300, "name": "x"}]}
    )
    assert (bad.status, bad.json) == (400, {"error": "input 'age'[1] is 300: expected 0 to 255 for UINT8"})


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"age": np.zeros(1, np.uint8)}, "missing input 'name'"),
        ({"age": np.zeros(1, np.int8), "name": np.array([b""], object)}, "input 'age' is INT8: this model takes UINT8"),
        ({"age": np.zeros((1, 1), np.uint8), "name": np.array([b""], object)}, "input 'age' has shape [1, 1]"),
        ({"age": np.zeros(1, np.uint8), "name": np.array([b""], object), "z": np.zeros(1)}, "unknown input 'z'"),
    ],
)
@pytest.mark.parametrize("wire", WIRES[1:])
def test_what_is_not_as_declared_is_refused_on_every_wire(declared, wire, tensors, reason):
    with pytest.raises(errors.InvalidInput) as found:
        ask(declared, wire, tensors)
    assert reason in str(found.value)


@pytest.mark.parametrize("wire", WIRES[1:])
@pytest.mark.parametrize(
    ("how", "error", "reason"),
    [
        ("limit", errors.TooManyRequests, "slow down"),
        ("input", errors.InvalidInput, "x is too red"),
        ("bug", errors.ModelError, "model 'm' failed"),
        ("none", errors.ModelError, "failed"),
    ],
)
def test_an_error_in_a_handler_has_its_status_on_every_wire(failing, wire, how, error, reason):
    with pytest.raises(error) as found:
        ask(failing, wire, {"x": np.zeros(1)}, parameters={"how": how})
    assert reason in str(found.value)
    assert "secret" not in str(found.value)
    if how == "limit":
        assert found.value.retry_after == 7


def test_a_faults_original_is_in_the_log_and_not_in_the_answer(failing):
    body = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}],
        "parameters": {"how": "bug"},
        "id": "r-17",
    }
    reply = http(failing.http_url, "/v2/models/m/infer", body)
    assert reply.status == 500
    assert reply.json == {"error": "model 'm' failed (request id r-17); the server's log has the reason"}
    assert "a secret in /home/me/model.py" in failing.process.log_tail(60)


def test_nan_is_a_model_error_in_json_and_a_value_in_binary(failing):
    parameters = {"how": "nan"}
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}], "parameters": parameters}
    reply = http(failing.http_url, "/v2/models/m/infer", body)
    assert (reply.status, reply.json["error"][:33]) == (500, "output 'y' holds NaN or Inf, whic")
    assert np.isnan(ask(failing, "v2 binary", {"x": np.zeros(1)}, parameters=parameters).tensors["y"][0])


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("/v1/models/nix:predict", {"instances": [1]}, 404, "unknown model 'nix': this server has 'm'"),
        ("/v2/models/nix/infer", {"inputs": []}, 404, "unknown model 'nix'"),
        ("/v2/models/nix", None, 404, "unknown model 'nix'"),
        ("/v2/models/nix/ready", None, 404, "unknown model 'nix'"),
        ("/v1/models/nix", None, 404, "unknown model 'nix'"),
        ("/v2/models/m/versions/9/infer", {"inputs": []}, 404, "no version '9': it has 1"),
        ("/v2/models/m/infer", None, 405, "GET is not for /v2/models/m/infer: expected POST"),
        ("/v2/health/live", {}, 405, "expected GET"),
        ("/nowhere", None, 404, "no such path: /nowhere"),
        ("/v2/models/m/infer", b"{", 400, "malformed JSON"),
        ("/v1/models/m:predict", b"\xff", 400, "malformed JSON"),
        ("/v1/models/m:predict", b" " * 100_001, 413, "the body is over 100000 bytes"),
        ("/v2/repository/models/m/load", {}, 403, "this server does not load or unload models on request"),
    ],
)
def test_a_bad_request_gets_its_status_and_one_sentence(doubler, path, body, status, reason):
    reply = http(doubler.http_url, path, body)
    assert reply.status == status
    assert reason in reply.json["error"]
    assert http(doubler.http_url, "/v1/models/m:predict", {"instances": [1]}).json == {"predictions": [2]}


def test_a_body_that_grows_over_the_limit_while_it_is_read_is_refused(doubler):
    host, port = doubler.http_url.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(20):
                connection.sendall(b"2710\r\n" + b" " * 10_000 + b"\r\n")
        except ConnectionError:
            pass  # it need not read to the end of what it refuses
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda body: zlib.compress(body)[2:-4]),
        ("GZIP", gzip.compress),
        ("identity", bytes),
    ],
)
@pytest.mark.parametrize("size", [10, 90_000])
def test_packed_bodies_are_unpacked(doubler, encoding, pack, size):
    body = pack(json.dumps({"instances": [3], "parameters": {"noise": "x" * size}}).encode())
    reply = http(doubler.http_url, "/v1/models/m:predict", body, content_encoding=encoding)
    assert reply.json == {"predictions": [6]}


@pytest.mark.parametrize(
    ("encoding", "body", "status", "reason"),
    [
        ("br", b"x", 415, "the body is encoded as 'br': expected gzip, deflate or none"),
        ("gzip", b"\x1f\x8b", 400, "the gzip body ends too soon"),
        ("gzip", b"no", 400, "the body is not gzip"),
        ("gzip", gzip.compress(b"{}", mtime=0) * 2, 400, "bytes follow the end of the gzip body"),
        ("gzip", gzip.compress(b" " * 10**8, mtime=0), 413, "the body unpacks to over 100000 bytes"),
        ("deflate", zlib.compress(b" " * 10**7), 413, "the body unpacks to over 100000 bytes"),
    ],
)
def test_a_packed_body_that_is_wrong_or_a_bomb_is_refused(doubler, encoding, body, status, reason):
    reply = http(doubler.http_url, "/v1/models/m:predict", body, content_encoding=encoding)
    assert (reply.status, reason in reply.json["error"]) == (status, True), reply.json


def test_a_content_type_with_a_charset_is_ordinary(doubler):
    reply = http(
        doubler.http_url, "/v1/models/m:predict", {"instances": [3]}, content_type="application/json; charset=utf-8"
    )
    assert reply.json == {"predictions": [6]}


def test_only_the_requested_outputs_come_back(doubler):
    item = {"datatype": "INT8", "shape": [1], "data": [1]}
    body = {"inputs": [item | {"name": "a"}, item | {"name": "b"}], "outputs": [{"name": "b"}]}
    assert [output["name"] for output in http(doubler.http_url, "/v2/models/m/infer", body).json["outputs"]] == ["b"]
    reply = http(doubler.http_url, "/v2/models/m/infer", body | {"outputs": [{"name": "c"}]})
    assert (reply.status, reply.json) == (400, {"error": "unknown output 'c': this model gives 'a', 'b'"})


def test_an_answer_says_its_revision_and_where_its_time_went(doubler):
    reply = http(doubler.http_url, "/v1/models/m:predict", {"instances": [3]}, x_secret="echo?")
    assert reply.headers["kservekit-revision"] == "unknown"
    assert [part.strip().split(";")[0] for part in reply.headers["server-timing"].split(",")] == [
        "read",
        "infer",
        "write",
        "total",
    ]
    assert "echo?" not in str(reply.headers)


def test_a_handler_knows_its_request():
    with served("Whoami") as server:
        body = {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}],
            "id": "r-1",
            "parameters": {"a": 1},
        }
        reply = http(server.http_url, "/v2/models/m/infer", body, x_tenant="acme")
        assert reply.json["outputs"][0]["data"] == ["r-1", "acme", "{'a': 1}"]
        channel = grpc.insecure_channel(server.grpc_url)
        request = messages.ModelInferRequest(model_name="m", id="r-2")
        reply, call = stubs.GRPCInferenceServiceStub(channel).ModelInfer.with_call(
            request, metadata=(("x-tenant", "acme"),), timeout=30
        )
        assert b"acme" in reply.raw_output_contents[0]
        assert dict(call.trailing_metadata())["kservekit-revision"] == "unknown"
        channel.close()


def test_server_and_model_metadata_and_readiness(declared):
    assert http(declared.http_url, "/v2").json == {
        "name": "kservekit",
        "version": __version__,
        "extensions": ["binary_tensor_data"],
    }
    assert http(declared.http_url, "/v2/models/m/versions/9").status == 404
    assert http(declared.http_url, "/v2/models/m").json["inputs"] == [
        {"name": "age", "datatype": "UINT8", "shape": [-1]},
        {"name": "name", "datatype": "BYTES", "shape": [-1]},
    ]
    for path, expected in {
        "/": {"status": "alive"},
        "/v2/health/live": {"live": True},
        "/v2/health/ready": {"ready": True},
        "/v1/models": {"models": ["m"]},
        "/v2/models/m/ready": {"name": "m", "ready": True},
        "/v1/models/m": {"name": "m", "ready": True},
    }.items():
        assert http(declared.http_url, path).json == expected
    ask(declared, "v2 gRPC", {"age": np.zeros(1, np.uint8), "name": np.array([b""], object)})
    assert b'request_predict_seconds_count{model_name="m"}' in http(declared.http_url, "/metrics").body

    async def over_grpc():
        backend = GrpcBackend(declared.grpc_url)
        try:
            stub = backend.stub()
            assert (await stub.ServerMetadata(messages.ServerMetadataRequest())).version == __version__
            assert (await stub.ServerLive(messages.ServerLiveRequest())).live
            assert (await stub.ServerReady(messages.ServerReadyRequest())).ready
            assert (await backend.spec("m")).inputs[0].datatype == "UINT8"
            assert await backend.ready("m")
            assert not await backend.ready("nix")
            with pytest.raises(GrpcFailure) as found:
                await stub.RepositoryModelUnload(messages.RepositoryModelUnloadRequest(model_name="m"))
            assert found.value.code == "PERMISSION_DENIED"
        finally:
            await backend.close()

    asyncio.run(over_grpc())


@pytest.mark.parametrize("protocol", ["v1", "v2", "grpc-v2"])
def test_a_transformer_reaches_its_predictor_in_each_of_kserves_protocols(predictor, protocol):
    host = predictor.grpc_url if protocol == "grpc-v2" else predictor.http_url
    flags = (f"--predictor_host={host}", f"--predictor_protocol={protocol}", "--enable_predictor_health_check")
    if protocol == "v1":
        # v1 names no outputs: the transformer is given `output-0`, so it cannot be Tenfold.
        with LocalServer("kservekit.serving:Transformer", *flags, model_name="doubles") as server:
            reply = http(server.http_url, "/v1/models/doubles:predict", {"instances": [[1, 2, 3]]})
            assert reply.json == {"predictions": [[2.0, 4.0, 6.0]]}
        return
    with LocalServer(f"{MODELS}:Tenfold", *flags, model_name="doubles") as server:
        reply = http(server.http_url, "/v1/models/doubles:predict", {"instances": [{"x": [1, 2, 3]}]})
        assert reply.json == {"predictions": [[2.0, 4.0, 6.0]]}


def test_a_transformer_may_name_the_predictors_model_apart_from_its_own(predictor):
    flags = (
        f"--predictor_host={predictor.grpc_url}",
        "--predictor_protocol=grpc-v2",
        "--enable_predictor_health_check",
    )
    with served("Tenfold", *flags, predictor_model="doubles") as server:
        assert ask(server, "v2 binary", {"x": floats([1, 2, 3])}).tensors["tenfold"].tolist() == [[2, 4, 6]]


def test_a_transformer_without_a_predictor_says_so_and_exits():
    done = kservekit("serve", f"{MODELS}:Tenfold", env={**os.environ, "KSERVEKIT_HOST": "127.0.0.1"})
    assert done.returncode == 1
    assert "transformer 'model' has no predictor: give --predictor_host" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("wire", WIRES[1:])
def test_a_model_with_one_of_kserves_hooks_overridden_is_served_through_it(wire):
    with served("Hooked") as server:
        assert ask(server, wire, {"x": floats([1, 2])}).tensors["x"].tolist() == [[3, 5]]
        v1 = http(server.http_url, "/v1/models/m:predict", {"instances": [1, 2]})
        assert v1.json == {"predictions": [["hooked", 2], ["hooked", 4]]}


def test_a_model_written_for_kserve_is_served_unchanged():
    with served("Plain") as server:
        assert http(server.http_url, "/v1/models/m:predict", {"instances": [1, 2]}).json == {"predictions": [3, 6]}
        for wire in WIRES[1:]:
            assert ask(server, wire, {"x": floats([1, 2])}).tensors["y"].tolist() == [[3, 6]]
        assert http(server.http_url, "/v1/models/m:predict", {"nix": 1}).status == 500


STOCK = """
import sys
sys.path.insert(0, {folder!r})
from served_models import Declared, Doubler
import kserve
models = [Declared("m"), Doubler("d")]
for model in models:
    model.load()
kserve.ModelServer(http_port={http_port}, grpc_port={grpc_port}).start(models)
"""


def test_our_models_run_under_a_stock_kserve_server(tmp_path):
    address = LocalServer("", model_name="m")  # for its free ports
    http_port, grpc_port = (url.split(":")[1] for url in (address.http_url, address.grpc_url))
    code = STOCK.format(folder=str(Path(MODELS).parent), http_port=http_port, grpc_port=grpc_port)
    with GuardedProcess([sys.executable, "-c", code], env=dict(os.environ), log=tmp_path / "stock.log") as process:
        address.process = process
        address.wait_until_ready("/v2/models/m/ready")
        reply = http(address.http_url, "/v1/models/m:predict", {"instances": [{"age": 7, "name": "Eva"}]})
        assert reply.json == {"predictions": [{"greeting": "Eva is 7", "raw": "/w=="}]}
        reply = http(address.http_url, "/v1/models/m:predict", {"instances": [{"age": 300, "name": "x"}]})
        assert (reply.status, reply.json["error"]) == (400, "input 'age'[0] is 300: expected 0 to 255 for UINT8")
        for wire in WIRES[1:]:
            answer = ask(address, wire, {"x": floats([1, 2])}, model="d")
            assert answer.tensors["x"].tolist() == [[2, 4]]
            tensors = {"age": np.array([7], np.uint8), "name": np.array(["Zo\u00eb".encode()], object)}
            if wire != "v2 gRPC":  # where stock KServe gives bytes that are not UTF-8 no way out
                answer = ask(address, "v2 JSON", tensors, outputs={"greeting": {}})
                assert answer.tensors["greeting"].tolist() == ["Zo\u00eb is 7".encode()]
        item = {"name": "age", "datatype": "UINT8", "shape": [1], "data": [300]}
        named = {"name": "name", "datatype": "BYTES", "shape": [1], "data": ["x"]}
        reply = http(address.http_url, "/v2/models/m/infer", {"inputs": [item, named]})
        assert (reply.status, reply.json["error"]) == (400, "input 'age'[0] is 300: expected 0 to 255 for UINT8")


def test_a_model_that_does_not_load_stops_the_server_with_one_sentence():
    done = kservekit("serve", f"{MODELS}:Loading", *free_ports(), env={**os.environ, "KSERVEKIT_HOST": "127.0.0.1"})
    assert done.returncode == 1
    assert "kservekit: model 'model' does not load: OSError: no weights in /mnt/models" in done.stderr
    assert "Traceback" not in done.stderr


def free_ports():
    server = LocalServer("")
    return [f"--http_port={server.http_url.split(':')[1]}", f"--grpc_port={server.grpc_url.split(':')[1]}"]


@pytest.mark.parametrize("flag", ["--http_port", "--grpc_port"])
def test_a_taken_port_stops_the_server_with_one_sentence(flag):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = kservekit(
            "serve",
            f"{MODELS}:Doubler",
            *free_ports(),
            f"{flag}={port}",
            env={**os.environ, "KSERVEKIT_HOST": "127.0.0.1"},
        )
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1 cannot be bound" in done.stderr
    assert flag in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_in_order(number):
    with served("Doubler") as server:
        os.kill(server.process.pid, number)
        while server.process.poll() is None:
            signal.sigtimedwait([], 0.02)
        assert server.process.poll() == 0, server.process.log_tail()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("serve", "nix"), "'nix' is not a target: expected module:Class or path.py:Class"),
        (("serve", "no/such.py:Class"), "'no/such.py': no such file"),
        (("serve", "no_such_module:Class"), "no module 'no_such_module' here or installed"),
        (("serve", f"{MODELS}:Nix"), "has no 'Nix'; its classes: "),
        (
            ("serve", "kservekit.predictors.onnx:OnnxPredictor"),
            "KSERVEKIT_ONNX_MODEL_PATH is '/mnt/models/model.onnx': no such file",
        ),
    ],
)
def test_what_is_in_the_way_of_serving_is_one_sentence_and_exit_code_1(arguments, reason):
    done = kservekit(*arguments, *free_ports(), env={**os.environ, "KSERVEKIT_HOST": "127.0.0.1"})
    assert done.returncode == 1
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_variables_are_all_said_before_anything_is_served():
    environment = {**os.environ, "KSERVEKIT_SERVER_TIMING": "maybe", "KSERVEKIT_TRITON_TIMEOUT_S": "-1"}
    done = kservekit("serve", f"{MODELS}:Doubler", env=environment)
    assert done.returncode == 1
    assert "KSERVEKIT_SERVER_TIMING is 'maybe'" in done.stderr
    assert "KSERVEKIT_TRITON_TIMEOUT_S is '-1'" in done.stderr


@pytest.mark.parametrize("arguments", [("--help",), ("serve", "--help"), ("demo", "--help"), ("--version",)])
def test_help_has_examples_and_exit_code_0(arguments):
    done = kservekit(*arguments)
    assert done.returncode == 0
    if arguments != ("--version",):
        assert "kservekit serve" in done.stdout + done.stderr or "kservekit demo" in done.stdout


def test_serves_help_lists_kserves_own_flags():
    assert "--predictor_host" in kservekit("serve", "--help").stdout


def test_an_unknown_verb_is_exit_code_2():
    assert kservekit("nix").returncode == 2


def test_json_is_what_kserve_clients_expect(doubler):
    reply = http(
        doubler.http_url,
        "/v2/models/m/infer",
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}], "id": "5"},
    )
    assert json.loads(reply.body) == {
        "model_name": "m",
        "model_version": "1",
        "id": "5",
        "outputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [2.0, 4.0]}],
    }
