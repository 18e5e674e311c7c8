"""What a caller may count on, whatever the wire, and what must not get through: secrets, other callers' things."""

import asyncio
import hashlib
import os
import signal
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import numpy as np
import pytest
from calls import MODELS, WIRES, ask, eventually, http, kservekit, served
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kservekit import errors
from kservekit.codec.message import Request
from kservekit.errors import Forbidden, InvalidInput, ModelError, PayloadTooLarge, Unauthenticated, Unavailable
from kservekit.local.server import LocalServer
from kservekit.oip import connect
from kservekit.oip.triton_messages import messages, stubs

ONE = {"x": np.ones(1, np.float32)}


@pytest.mark.parametrize("wire", WIRES[1:])
@pytest.mark.parametrize(
    ("how", "error", "retry_after"),
    [("limit", errors.TooManyRequests, 7), ("down", Unavailable, 3), ("input", InvalidInput, None)],
)
def test_an_overridden_hook_does_not_cost_an_error_its_status(hooked_errors, wire, how, error, retry_after):
    with pytest.raises(error) as found:
        ask(hooked_errors, wire, ONE, parameters={"how": how})
    assert found.value.retry_after == retry_after


@pytest.fixture(scope="module")
def hooked_errors():
    with served("HookedErrors") as server:
        yield server


def test_what_a_caller_got_wrong_is_not_in_the_log(hooked_errors):
    with pytest.raises(InvalidInput):
        ask(hooked_errors, "v2 JSON", ONE, parameters={"how": "input"})
    assert "too red" not in hooked_errors.process.log_tail(100)


def test_an_id_cannot_forge_a_line_of_the_log(hooked_errors):
    with pytest.raises(ModelError):
        ask(hooked_errors, "v2 JSON", ONE, parameters={"how": "bug"}, id="x\nCRITICAL forged")
    assert not any(line.startswith("CRITICAL") for line in hooked_errors.process.log_tail(200).splitlines())
    assert "CRITICAL forged" in hooked_errors.process.log_tail(200)


@pytest.mark.parametrize("wire", WIRES[1:])
def test_a_message_has_an_end(hooked_errors, wire):
    with pytest.raises(InvalidInput) as found:
        ask(hooked_errors, wire, ONE, outputs={"n" * 20_000: {}}, parameters={"how": "nan"})
    assert len(str(found.value)) < 1100


def test_kserves_start_hook_is_called():
    with served("Starting") as server:
        assert ask(server, "v2 gRPC", ONE).tensors["x"].tolist() == [2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_a_long_load_ends_the_server(number, monkeypatch):
    monkeypatch.setenv("LOAD_S", "600")
    server = served("Starting")
    server.start()
    try:
        assert eventually(lambda: "loading" in server.process.log_tail())
        assert server.get("/v2/health/live") == 200
        os.kill(server.process.pid, number)
        assert eventually(lambda: server.process.poll() is not None)
        assert server.process.poll() == 0
    finally:
        server.stop()


def test_a_health_check_that_fails_says_nothing_of_why():
    server = served("Unhealthy")
    server.start()
    try:
        server.wait_until_ready("/v2/health/live")
        assert b"secret" not in http(server.http_url, "/v2/health/ready").body

        async def check():
            async with grpc.aio.insecure_channel(server.grpc_url) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as found:
                    await stubs.GRPCInferenceServiceStub(channel).ServerReady(messages.ServerReadyRequest())
                answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
                return found.value.details(), answer.status

        details, status = asyncio.run(check())
        assert "secret" not in details
        assert status == health_pb2.HealthCheckResponse.NOT_SERVING
    finally:
        server.stop()


def test_a_health_watcher_does_not_hold_up_the_end():
    with served("Doubler") as server, grpc.insecure_channel(server.grpc_url) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        os.kill(server.process.pid, signal.SIGTERM)
        assert eventually(lambda: server.process.poll() is not None, seconds=15)
        assert server.process.poll() == 0


def test_a_body_that_is_too_large_is_heard_by_a_client_that_sends_it_all():
    with served("Doubler", max_body_bytes="1000000") as server:
        reply = http(server.http_url, "/v1/models/m:predict", b" " * 1_900_000)
        assert (reply.status, "the body is over 1000000 bytes" in reply.json["error"]) == (413, True)


def test_a_grpc_message_may_be_as_large_as_a_rest_body():
    large = {"x": np.ones(5_000_000, np.float32)}
    with served("Doubler", max_body_bytes="30000000") as server:
        assert ask(server, "v2 gRPC", large).tensors["x"].nbytes == 20_000_000
        flags = (f"--predictor_host={server.grpc_url}", "--predictor_protocol=grpc-v2")
        with served("Passing", *flags) as transformer, pytest.raises(PayloadTooLarge):
            ask(transformer, "v2 binary", {"x": np.ones(10_000_000, np.float32)})


def test_two_ports_that_are_one_and_two_models_of_one_name_are_said():
    environment = {**os.environ, "KSERVEKIT_HOST": "127.0.0.1"}
    done = kservekit("serve", f"{MODELS}:Doubler", "--http_port=8091", "--grpc_port=8091", env=environment)
    assert (done.returncode, "--http_port and --grpc_port are both 8091" in done.stderr) == (1, True)


@pytest.mark.parametrize("host", ["::1", "localhost"])
def test_other_addresses_of_this_machine_can_be_listened_on(host):
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6 loopback")
    server = served("Doubler", host=host)
    port = server.http_url.split(":")[1]
    with server.process:
        server.http_url = f"[::1]:{port}" if host == "::1" else server.http_url
        assert eventually(lambda: http_status(host, port) == 200)


def http_status(host, port):
    try:
        return http(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", "/v2/health/ready").status
    except OSError:
        return None


def test_a_host_that_is_none_of_this_machine_is_named_with_its_setting():
    environment = {**os.environ, "KSERVEKIT_HOST": "192.0.2.1"}
    done = kservekit("serve", f"{MODELS}:Doubler", "--enable_grpc=false", env=environment)
    assert done.returncode == 1
    assert "KSERVEKIT_HOST is '192.0.2.1': expected an address of this machine" in done.stderr


# --- Who asks.


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "api_keys"
    lines = [
        f"{hashlib.sha256(key).hexdigest()} {name} {roles}"
        for key, name, roles in ((b"k1", "eva", "admin"), (b"k2", "tom", ""))
    ]
    keys.write_text("\n".join(lines))
    with served("Asker", identity_api_keys=str(keys), identity_required="true", repository_api="true") as server:
        yield server


def ask_as(server, wire, key):
    return ask(server, wire, ONE, headers={"authorization": f"Bearer {key}"} if key else {})


@pytest.mark.parametrize("wire", WIRES)
def test_a_handler_knows_who_asks_and_nobody_else_is_let_in(guarded, wire):
    assert ask_as(guarded, wire, "k2").tensors.popitem()[1].tolist() == [b"tom"]
    for key in ("", "wrong"):
        with pytest.raises(Unauthenticated) as found:
            ask_as(guarded, wire, key)
        assert "wrong" not in str(found.value)


def test_a_401_says_which_scheme(guarded):
    reply = http(guarded.http_url, "/v2/models/m/infer", {"inputs": []})
    assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")


def test_probes_and_metrics_ask_nobody(guarded):
    for path in ("/v2/health/live", "/v2/health/ready", "/metrics", "/v2/models/m"):
        assert guarded.get(path) == 200


def test_admin_endpoints_ask_for_the_admin_role_on_both_wires(guarded):
    def by_rest(key):
        return http(guarded.http_url, "/v2/repository/models/m/load", {}, x_api_key=key).status

    async def by_grpc(key):
        async with grpc.aio.insecure_channel(guarded.grpc_url) as channel:
            unload = stubs.GRPCInferenceServiceStub(channel).RepositoryModelUnload
            with pytest.raises(grpc.aio.AioRpcError) as found:
                await unload(messages.RepositoryModelUnloadRequest(), metadata=(("x-api-key", key),))
            return found.value.code()

    assert [by_rest(key) for key in ("k1", "k2", "k3")] == [200, 403, 401]
    assert asyncio.run(by_grpc("k2")) is grpc.StatusCode.PERMISSION_DENIED
    assert asyncio.run(by_grpc("k1")) is grpc.StatusCode.NOT_FOUND  # let in, and its message names no model


def test_a_credential_that_is_there_twice_is_refused(guarded):
    host, port = guarded.http_url.split(":")
    with socket.create_connection((host, int(port))) as connection:
        twice = b"x-api-key: k1\r\nx-api-key: k2\r\n"
        connection.sendall(b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\n%bcontent-length: 2\r\n\r\n{}" % twice)
        assert connection.recv(20).startswith(b"HTTP/1.1 400 ")


def test_forbidden_is_an_error_of_ours_on_the_way_back():
    assert errors.from_http(403, "no").__class__ is Forbidden


# --- What a backend does must not reach other callers.


class Foreign(BaseHTTPRequestHandler):
    """A backend that is not ours: gives cookies, redirects, and proxies' pages."""

    seen: list

    def do_POST(self):
        length = int(self.headers["content-length"])
        self.rfile.read(length)
        self.seen.append(dict(self.headers))
        status, headers, body = self.script(self.path)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

    def script(self, path):
        model = path.split("/")[3]
        if model == "redirect":
            return 307, {"location": "http://127.0.0.1:9/elsewhere"}, b""
        if model == "proxy":
            return 503, {}, b"upstream connect error: 10.96.13.7:8080 /var/run/envoy.sock"
        return 200, {"set-cookie": "session=user-1"}, b'{"outputs": []}'


@pytest.fixture
def foreign():
    Foreign.seen = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Foreign) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"localhost:{server.server_port}"
        server.shutdown()


def call(host, model, times=1, **fields):
    async def calls():
        backend = connect(host, "v2")
        try:
            for _ in range(times):
                await backend.infer(Request({}, model=model, **fields))
        finally:
            await backend.close()

    asyncio.run(calls())


def test_a_backends_cookie_does_not_travel_with_the_next_caller(foreign):
    call(foreign, "cookie", times=2)
    assert len(Foreign.seen) == 2
    assert not any("cookie" in map(str.lower, headers) for headers in Foreign.seen)


def test_a_redirect_is_not_followed_with_the_callers_request(foreign):
    with pytest.raises(ModelError):
        call(foreign, "redirect")


def test_a_proxys_page_is_for_the_log(foreign, caplog):
    with pytest.raises(Unavailable) as found:
        call(foreign, "proxy")
    assert str(found.value) == "the backend of model 'proxy' answered with status 503"
    assert "10.96.13.7" in caplog.text


def test_headers_that_grpc_cannot_carry_are_left_behind():
    with served("Whoami") as predictor:
        flags = (f"--predictor_host={predictor.grpc_url}", "--predictor_protocol=grpc-v2")
        with LocalServer(f"{MODELS}:Passing", *flags, model_name="m") as transformer:
            answer = ask(transformer, "v2 JSON", ONE, id="7", headers={"baggage": "caf\u00e9"})
            assert answer.tensors["known"][0] == b"7"
