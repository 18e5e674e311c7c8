"""Deadlines, callers that go away, and limits, on processes of their own."""

import asyncio
import contextlib
import socket
import threading

import grpc
import numpy as np
import pytest
from calls import WIRES, ask, eventually, http, served

from kservekit.errors import DeadlineExceeded, TooManyRequests
from kservekit.oip.triton_messages import messages, stubs


def body(seconds):
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [seconds]}]}


@pytest.fixture(scope="module")
def slow():
    with served("Slow") as server:
        yield server


def cancelled(server):
    return http(server.http_url, "/v2/models/m/infer", body(0)).json["outputs"][0]["data"][0]


class Background:
    """Requests that run while the test goes on."""

    def __init__(self, server, seconds, count=1, **headers):
        self.replies = []
        self.threads = [
            threading.Thread(
                target=lambda: self.replies.append(
                    http(server.http_url, "/v2/models/m/infer", body(seconds), **headers)
                )
            )
            for _ in range(count)
        ]
        for thread in self.threads:
            thread.start()

    def join(self):
        for thread in self.threads:
            thread.join()
        return sorted(reply.status for reply in self.replies)


def test_a_callers_time_over_rest_ends_in_504_and_ends_the_work(slow):
    before = cancelled(slow)
    reply = http(slow.http_url, "/v2/models/m/infer", body(30), kservekit_timeout_ms="100")
    assert (reply.status, "before the request's deadline" in reply.json["error"]) == (504, True)
    assert cancelled(slow) == before + 1


def test_a_callers_time_over_grpc_may_come_as_over_rest(slow):
    request = messages.ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype="FP32", shape=[1]).contents.fp32_contents.append(30)
    with grpc.insecure_channel(slow.grpc_url) as channel, pytest.raises(grpc.RpcError) as found:
        stubs.GRPCInferenceServiceStub(channel).ModelInfer(request, metadata=[("kservekit-timeout-ms", "100")])
    assert found.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_callers_time_over_grpc_ends_the_work(slow):
    before = cancelled(slow)

    async def impatient():
        request = messages.ModelInferRequest(model_name="m")
        request.inputs.add(name="x", datatype="FP32", shape=[1]).contents.fp32_contents.append(30)
        async with grpc.aio.insecure_channel(slow.grpc_url) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as found:
                await stubs.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=0.1)
        return found.value.code()

    assert asyncio.run(impatient()) is grpc.StatusCode.DEADLINE_EXCEEDED
    assert eventually(lambda: cancelled(slow) == before + 1)


@pytest.mark.parametrize("value", ["soon", "-1", "1.5", "", "9" * 20])
def test_a_callers_time_that_is_none_is_refused(slow, value):
    reply = http(slow.http_url, "/v2/models/m/infer", body(0), kservekit_timeout_ms=value)
    assert (reply.status, "expected whole milliseconds" in reply.json["error"]) == (400, True)


def test_without_a_callers_time_the_servers_holds_on_every_wire():
    with served("Slow", timeout_s="0.2") as server:
        for wire in WIRES:
            with pytest.raises(DeadlineExceeded):
                ask(server, wire, {"x": np.array([30.0])})


def test_the_deadline_travels_through_a_transformer():
    with served("Slow") as predictor:
        for host, protocol in ((predictor.grpc_url, "grpc-v2"), (predictor.http_url, "v2")):
            flags = (f"--predictor_host={host}", f"--predictor_protocol={protocol}")
            with served("Passing", *flags) as transformer:
                before = cancelled(predictor)
                reply = http(transformer.http_url, "/v2/models/m/infer", body(30), kservekit_timeout_ms="200")
                assert reply.status == 504
                assert eventually(lambda before=before: cancelled(predictor) == before + 1)


def test_when_a_rest_caller_goes_away_its_work_ends(slow):
    started = slow.process.log_tail(100).count("started")
    before = cancelled(slow)
    host, port = slow.http_url.split(":")
    with socket.create_connection((host, int(port))) as connection:
        payload = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [30]}]}'
        head = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(payload)
        connection.sendall(head + payload)
        assert eventually(lambda: slow.process.log_tail(100).count("started") > started)
    assert eventually(lambda: cancelled(slow) == before + 1)


def test_plain_handlers_queue_up_to_a_limit_and_probes_do_not_wait():
    with served("SlowPlain", "--max_asyncio_workers=2", handler_queue="1") as server:
        running = Background(server, 1.5, count=5)
        # Two run, one waits, the others are refused, all while the rest is under way.
        assert eventually(lambda: len(running.replies) == 2)
        assert http(server.http_url, "/v2/health/live").status == 200
        refused = running.replies[0]
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert "requests wait for this server's handlers" in refused.json["error"]
        assert running.join() == [200, 200, 200, 429, 429]
        assert http(server.http_url, "/v2/models/m/infer", body(0)).status == 200


def test_hooks_of_a_kserve_model_do_not_block_the_loop_either():
    with served("Explaining", "--max_asyncio_workers=4") as server:
        replies = []

        def explain():
            replies.append(http(server.http_url, "/v1/models/m:explain", {"instances": [1]}))

        threads = [threading.Thread(target=explain) for _ in range(4)]
        for thread in threads:
            thread.start()
        while not replies:
            assert http(server.http_url, "/v2/health/live").status == 200
        for thread in threads:
            thread.join()
        assert [reply.json for reply in replies] == [{"explanations": [1]}] * 4


@pytest.mark.parametrize("wire", WIRES[1:])
def test_over_the_servers_limit_callers_are_told_to_come_back(wire):
    with served("Slow", max_concurrency="1") as server:
        running = Background(server, 1.5)
        assert eventually(lambda: "started" in server.process.log_tail())
        with pytest.raises(TooManyRequests, match="the limit of this server") as found:
            ask(server, wire, {"x": np.array([0.0])})
        assert found.value.retry_after == 1
        assert running.join() == [200]
        assert ask(server, wire, {"x": np.array([0.0])})
        if wire == "v2 JSON":
            _an_upload_that_is_not_whole_counts(server)


def _an_upload_that_is_not_whole_counts(server):
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % 2**20
    with (
        socket.create_connection(("127.0.0.1", int(server.http_url.split(":")[1])), timeout=30) as first,
        socket.create_connection(first.getpeername(), timeout=30) as second,
    ):
        first.sendall(head + bytes(1000))
        assert eventually(lambda: http(server.http_url, "/v2/models/m/infer", body(0)).status == 429)
        second.sendall(head)
        assert second.recv(100).startswith(b"HTTP/1.1 429 ")
    assert eventually(lambda: http(server.http_url, "/v2/models/m/infer", body(0)).status == 200)


def test_a_tenant_over_its_limit_does_not_hold_up_another():
    with served("Slow", tenant_header="X-Tenant", tenant_max_concurrency="1") as server:
        running = Background(server, 1.5, x_tenant="acme")
        assert eventually(lambda: "started" in server.process.log_tail())

        def status(tenant):
            return http(server.http_url, "/v2/models/m/infer", body(0), x_tenant=tenant).status

        assert status("acme") == 429
        assert status("other") == 200
        assert running.join() == [200]
        assert status("acme") == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 400_000, 431),
        (b"GET / HTTP/1.1\r\nhost: x\r\n" + b"x: y\r\n" * 60_000, 431),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\n", 408),
        (b"POST /v1/models/m:predict HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{", 408),
        (b"POST /v1/models/m:predict HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000000\r\n\r\n", 413),
        (b"POST /v1/models/m:predict HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST /v1/models/m:predict HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
    ],
)
def test_heads_and_bodies_that_are_too_large_or_too_slow_are_cut_off(sent, status, cut_off):
    with socket.create_connection(("127.0.0.1", int(cut_off.http_url.split(":")[1])), timeout=30) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        reply = b""
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                reply += part
    assert reply.startswith(b"HTTP/1.1 %d " % status), reply[:200]
    assert b'{"error":"' in reply
    assert http(cut_off.http_url, "/v2/health/live").status == 200


@pytest.fixture(scope="module")
def cut_off():
    with served("Slow", header_timeout_s="0.5", body_timeout_s="0.5") as server:
        yield server


def test_more_inputs_than_a_request_may_have_are_refused():
    with served("Slow", max_tensors="2") as server:
        item = {"datatype": "FP32", "shape": [1], "data": [0]}
        reply = http(server.http_url, "/v2/models/m/infer", {"inputs": [item | {"name": n} for n in "xyz"]})
        assert (reply.status, "3 inputs: expected at most 2" in reply.json["error"]) == (400, True)
