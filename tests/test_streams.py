"""Several answers to one request: from a handler, from Triton's decoupled models, and through a transformer."""

import asyncio
import http.client
import json
import queue
import time
from contextlib import aclosing

import numpy as np
import pytest
import tritonclient.grpc as tritonclient
from calls import ask, eventually, floats, served
from calls import http as call
from hypothesis import given
from hypothesis import strategies as some

from kservekit import errors
from kservekit.codec import events
from kservekit.codec.message import Request
from kservekit.local.server import LocalServer
from kservekit.oip import connect
from kservekit.predictors.repository import declared, write
from kservekit.tensors import ModelSpec, TensorSpec

REPEATS = ModelSpec((TensorSpec("n", "INT32", (1,)),), (TensorSpec("i", "INT32", (1,)),))

REPEATS_IN_TRITON = """
import time
import triton_python_backend_utils as triton
import numpy as np

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            n = int(triton.get_input_tensor_by_name(request, "n").as_numpy()[0])
            sender = request.get_response_sender()
            for i in range(abs(n)):
                if request.is_cancelled():
                    break
                if n < 0 and i == 2:
                    error = triton.TritonError("negative, in /secret/path/model.py")
                    sender.send(triton.InferenceResponse([], error))
                    break
                sender.send(triton.InferenceResponse([triton.Tensor("i", np.array([i], np.int32))]))
                time.sleep(0.001 if n < 10000 else 0.01)
            sender.send(flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

PROTOCOLS = ["grpc-v2", "v2"]


def number(n):
    return {"n": np.array([n], np.int32)}


def stream(server, protocol, tensors, **fields):
    """What came, and the error that ended it."""

    async def main():
        backend = connect(server.grpc_url if protocol == "grpc-v2" else server.http_url, protocol)
        found, error = [], None
        try:
            async with aclosing(backend.stream(Request(tensors, model=server.model_name, **fields))) as answers:
                async for answer in answers:
                    found.append(answer)
        except errors.ServingError as raised:
            error = raised
        finally:
            await backend.close()
        return found, error

    return asyncio.run(main())


def values(found, name="i"):
    return [answer.tensors[name].item() for answer in found]


@pytest.fixture(scope="module")
def counter():
    with served("Counter") as server:
        yield server


@pytest.fixture(scope="module")
def decoupled(local_triton, tmp_path_factory):
    """The real Triton with a decoupled model, TritonPredictor in front of it."""
    folder = tmp_path_factory.mktemp("decoupled")
    (folder / "model.py").write_text(REPEATS_IN_TRITON)
    config = declared("repeats", REPEATS, backend="python")
    config.model_transaction_policy.decoupled = True
    write(folder / "repository", config, {"model.py": folder / "model.py"})
    triton = local_triton(folder / "repository")
    target = "kservekit.predictors.triton:TritonPredictor"
    settings = {"KSERVEKIT_TRITON_URL": triton.grpc_url, "KSERVEKIT_TRITON_MODEL": "repeats"}
    with LocalServer(target, model_name="m", settings=settings) as server:
        yield server


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_answer_has_the_requests_id_and_comes_in_its_turn(counter, protocol):
    found, error = stream(counter, protocol, number(5), id="seven")
    assert error is None
    assert values(found) == [0, 1, 2, 3, 4]
    assert {(answer.id, answer.model, answer.version) for answer in found} == {("seven", "m", "1")}
    assert set(values(found, "asked")) == {b"seven"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_answer_at_all_is_an_answer(counter, protocol):
    assert stream(counter, protocol, number(0)) == ([], None)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_wrong_before_the_first_answer_has_its_own_status(counter, protocol):
    found, error = stream(counter, protocol, number(-1))
    assert (found, type(error), str(error)) == ([], errors.InvalidInput, "n is below 0: expected how many answers")
    found, error = stream(counter, protocol, {"n": np.array([1.0])})
    assert (found, type(error)) == ([], errors.InvalidInput)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_error_on_the_way_keeps_what_came_and_says_what_it_is(counter, protocol):
    found, error = stream(counter, protocol, number(13))
    assert values(found) == [0, 1]
    assert (type(error), str(error), error.retry_after) == (errors.Unavailable, "tired after two", 4)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_handlers_own_fault_stays_in_the_log(protocol):
    with served("Broken") as server:
        found, error = stream(server, protocol, number(1))
        assert values(found) == [0]
        assert isinstance(error, errors.ModelError)
        assert "secret" not in str(error)
        assert "a secret in /home/me/model.py" in server.process.log.read_text()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_requested_outputs_alone_come(counter, protocol):
    found, error = stream(counter, protocol, number(2), outputs={"i": {}})
    assert error is None
    assert [list(answer.tensors) for answer in found] == [["i"], ["i"]]
    _, error = stream(counter, protocol, number(2), outputs={"nix": {}})
    assert "unknown output 'nix'" in str(error)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_deadline_ends_a_stream(counter, protocol):
    found, error = stream(counter, protocol, number(10_000), deadline=time.monotonic() + 0.7)
    assert 0 < len(found) < 10_000
    assert isinstance(error, errors.DeadlineExceeded)


def test_a_plain_generator_runs_in_the_pool_while_probes_are_answered():
    with served("PlainCounter") as server:
        connection = http.client.HTTPConnection(server.http_url)
        body = {"inputs": [{"name": "n", "datatype": "INT32", "shape": [1], "data": [20]}]}
        connection.request("POST", "/v2/models/m/infer", json.dumps(body), {"accept": "text/event-stream"})
        reply = connection.getresponse()
        reply.readline()
        assert server.get("/v2/health/live") == 200
        assert reply.read().count(b"data: ") == 19  # they were not all there before the probe's answer
        connection.close()


def test_who_goes_away_ends_the_handler(tmp_path):
    ended = tmp_path / "ended"

    async def leave(server, protocol):
        backend = connect(server.grpc_url if protocol == "grpc-v2" else server.http_url, protocol)
        async with aclosing(backend.stream(Request(number(100_000), model="m"))) as answers:
            await anext(answers)
        await backend.close()

    with served("Counter", test_file=str(ended)) as server:
        for count, protocol in enumerate(PROTOCOLS, 1):
            asyncio.run(leave(server, protocol))
            assert eventually(lambda count=count: ended.exists() and len(ended.read_text().split("\n")) == count + 1)


def test_one_answer_only_is_refused_with_the_way_to_have_them_all(counter, decoupled):
    for server in (counter, decoupled):
        for wire in ("v2 JSON", "v2 binary", "v2 gRPC"):
            with pytest.raises(
                errors.NotSupported, match=r"ask by ModelStreamInfer \(gRPC\), or by v2 REST with Accept"
            ):
                ask(server, wire, number(3))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_model_with_one_answer_gives_it_as_a_stream_too(protocol):
    with served("Doubler") as server:
        found, error = stream(server, protocol, {"x": floats([1, 2])})
    assert error is None
    assert [answer.tensors["x"].tolist() for answer in found] == [[[2, 4]]]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tritons_decoupled_models_pass_through(decoupled, protocol):
    found, error = stream(decoupled, protocol, number(5), id="a")
    assert (values(found), error) == ([0, 1, 2, 3, 4], None)
    found, error = stream(decoupled, protocol, number(-5))
    assert values(found) == [0, 1]
    assert isinstance(error, errors.ModelError)
    assert "secret" not in str(error)
    assert stream(decoupled, protocol, number(0)) == ([], None)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_transformer_answers_each_of_its_predictors_answers(decoupled, protocol):
    host = decoupled.grpc_url if protocol == "grpc-v2" else decoupled.http_url
    with served("TenfoldAnswers", f"--predictor_host={host}", f"--predictor_protocol={protocol}") as server:
        found, error = stream(server, protocol, number(3))
        assert (values(found), error) == ([0, 10, 20], None)
        found, error = stream(server, protocol, number(-3))
        assert values(found) == [0, 10]
        assert isinstance(error, errors.ModelError)
        found, error = stream(server, protocol, {"x": floats(1)})
        assert (found, type(error)) == ([], errors.InvalidInput)


def test_tritons_own_rest_has_no_streams_and_the_error_says_so(triton):
    triton.model_name = "doubles"
    found, error = stream(triton, "v2", {"x": floats([1, 2, 3])})
    assert (found, type(error)) == ([], errors.NotSupported)
    assert "reach it by gRPC" in str(error)


def test_a_model_that_triton_has_not_is_not_found(triton):
    triton.model_name = "nix"
    found, error = stream(triton, "grpc-v2", {"x": floats([1, 2, 3])})
    assert (found, type(error)) == ([], errors.ModelNotFound)


def test_nvidias_client_streams_through_our_server(decoupled):
    came = queue.Queue()
    with tritonclient.InferenceServerClient(decoupled.grpc_url) as client:
        client.start_stream(lambda result, error: came.put((result, error)))
        for id, n in (("a", 2), ("b", -9), ("c", 1)):
            given = tritonclient.InferInput("n", [1], "INT32")
            given.set_data_from_numpy(np.array([n], np.int32))
            client.async_stream_infer("m", [given], request_id=id, enable_empty_final_response=True)
        found = [came.get(timeout=60) for _ in range(8)]
        client.stop_stream()
    responses = [(result.get_response() if result else None, error) for result, error in found]
    ids = [response.id for response, _ in responses if response is not None]
    assert ids == ["a", "a", "a", "b", "b", "c", "c"]
    lasts = [response.parameters["triton_final_response"].bool_param for response, _ in responses if response]
    assert lasts == [False, False, True, False, False, False, True]
    (failed,) = [str(error) for _, error in responses if error]
    assert "failed in its backend (request id b); the server's log has the reason" in failed


def test_binary_outputs_do_not_go_with_events(counter):
    body = {
        "inputs": [{"name": "n", "datatype": "INT32", "shape": [1], "data": [1]}],
        "outputs": [{"name": "i", "parameters": {"binary_data": True}}],
    }
    reply = call(counter.http_url, "/v2/models/m/infer", body, accept="text/event-stream")
    assert (reply.status, "text/event-stream, which is text" in reply.json["error"]) == (400, True)


def test_events_are_what_a_browser_reads(counter):
    body = {"inputs": [{"name": "n", "datatype": "INT32", "shape": [1], "data": [13]}]}
    reply = call(counter.http_url, "/v2/models/m/infer", body, accept="text/event-stream")
    assert reply.headers["content-type"] == "text/event-stream"
    assert reply.headers["kservekit-revision"] is not None
    *answers, error, rest = reply.body.split(b"\n\n")
    assert [json.loads(answer.removeprefix(b"data: "))["outputs"][0]["data"] for answer in answers] == [[0], [1]]
    kind, data = error.split(b"\n")
    assert (kind, rest) == (b"event: error", b"")
    expected = {"error": "tired after two", "status": 503, "retry_after": 4}
    assert json.loads(data.removeprefix(b"data: ")) == expected


@given(some.lists(some.binary(min_size=1).filter(lambda data: not set(data) & set(b"\r\n"))), some.data())
def test_events_come_whole_however_they_are_cut(found, data):
    text = b"".join(events.encode(events.Event(item)) for item in found)
    cuts = sorted(data.draw(some.lists(some.integers(0, len(text)))))
    reader = events.Reader()
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert [event for piece in pieces for event in reader.feed(piece)] == [events.Event(item) for item in found]
