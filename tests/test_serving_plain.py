"""A kserve.Model that knows nothing of us, under KServe's own server and under ours: the same requests to both."""

import asyncio
import http.client
import json
import re
import sys
import time
from pathlib import Path

import grpc
import httpx
import kserve
import numpy as np
import pytest
from calls import ask
from calls import http as call
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

from kservekit import errors
from kservekit.codec.message import Request
from kservekit.config import ServerSettings
from kservekit.local.server import LocalServer
from kservekit.serving.dataplane import DataPlane
from kservekit.serving.departure import SCOPE_KEY, Departure
from kservekit.serving.kserve_errors import our_errors
from kservekit.serving.rest import RestApp

PLAIN = str(Path(__file__).with_name("served_plain.py"))


@pytest.fixture(scope="module")
def ours():
    with LocalServer(f"{PLAIN}:models") as server:
        yield server


@pytest.fixture(scope="module")
def stock():
    with LocalServer(PLAIN, program=(sys.executable,)) as server:
        yield server


def v2(model, datatype, data, *, shape=(2,), json_length=None, **more):
    item = {"name": "x", "datatype": datatype, "shape": list(shape), "data": data, "parameters": {"scale": 3}}
    return f"/v2/models/{model}/infer", json.dumps({"inputs": [item], **more}).encode(), {}


def binary(model, datatype, raw, *, shape=(2,), **more):
    item = {"name": "x", "datatype": datatype, "shape": list(shape), "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [item], **more}).encode()
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    return f"/v2/models/{model}/infer", head + raw, headers


def v1(model, *instances, verb="predict", **headers):
    body = json.dumps({"instances": list(instances)}).encode()
    return f"/v1/models/{model}:{verb}", body, {key.replace("_", "-"): value for key, value in headers.items()}


def raw_v1(model, body, content_type, **headers):
    _, _, headers = v1(model, **headers)
    return f"/v1/models/{model}:predict", body, headers | {"content-type": content_type}


EVENT = {"ce_specversion": "1.0", "ce_id": "7", "ce_source": "here", "ce_type": "t"}

SAME = {
    "v2 JSON": v2("given", "FP32", [1, 2.5], id="i-1", parameters={"p": 5}, outputs=[{"name": "said"}]),
    "v2 JSON, nested": v2("given", "INT32", [[1], [2]], shape=(2, 1)),
    "v2 JSON, text": v2("given", "BYTES", ["a", "\u00eb"]),
    "v2 binary": binary("given", "FP32", np.array([1, 2.5], np.float32).tobytes(), id="i-1"),
    "v2 binary, text": binary("given", "BYTES", b"\1\0\0\0a\2\0\0\0bc"),
    "KServe's helpers": v2("utils", "FP32", [1, 2], id="i-1"),
    "KServe's helpers, text": v2("utils", "BYTES", ["a", "b"], id="i-1"),
    "KServe's helpers, pandas": v2("utils", "FP32", [1, 2], id="i-1", parameters={"content_type": "pd"}),
    "KServe's helpers, binary": binary("utils", "FP64", bytes(16), id="i-1", parameters={"binary_data_output": True}),
    "what it says beside": v2("beside", "FP32", [1, 2]),
    "v1: what it says beside": v1("beside", 1),
    "v1": v1("body", 1, {"a": "b"}),
    "v1: explain": v1("body", 1, verb="explain"),
    "v1: a picture": raw_v1("body", b"\xff\xd8", "image/jpeg"),
    "v1: text that would be JSON": raw_v1("body", b"5", "text/plain"),
    "v1: form": raw_v1("body", b"a=1", "application/x-www-form-urlencoded"),
    "v1: an event of bytes": raw_v1("body", b"\xff\xd8", "image/jpeg", **EVENT),
    "v1: an event": v1("body", 1, **EVENT),
    "v1: a stream": v1("streams", 3),
    "v1: a stream of nothing": v1("streams", 0),
    "v1: input": v1("raises", "input"),
    "v1: inference": v1("raises", "inference"),
    **{f"v1: {what}": v1("returns", what) for what in ("text", "bytes", "list", "none", "keys", "numpy", "null")},
}


def asked(server, path, body, headers):
    return call(server.http_url, path, body, **headers)


def comparable(reply):
    """Without what each server says of itself, and without the fields of JSON that say nothing."""
    names = {"x-own", "ce-type", "ce-source", "inference-header-content-length"}
    if reply.headers["content-type"] == "application/json":
        names |= {"content-type"}  # KServe has none for the rest
    headers = {name: reply.headers[name] for name in names if reply.headers[name]}
    body = reply.body
    if body.startswith(b"{"):
        length = int(headers.pop("inference-header-content-length", len(body)))
        found = {key: value for key, value in json.loads(body[:length]).items() if value not in (None, "")}
        for item in found.get("outputs", []):
            if not item.get("parameters"):
                item.pop("parameters", None)
        body = found, body[length:]
    return reply.status, headers, body


@pytest.mark.parametrize("what", SAME)
def test_rest_answers_as_under_kserves_own_server(stock, ours, what):
    assert comparable(asked(ours, *SAME[what])) == comparable(asked(stock, *SAME[what]))


OTHERWISE = {
    # KServe's 500s quote the exception, whatever it holds.
    "v1: bug": (
        v1("raises", "bug"),
        500,
        500,
        r"model 'raises' failed \(request id \w+-\w+\); the server's log has the re",
    ),
    "v1: bug, by its id": (v1("raises", "bug", x_request_id="r-7"), 500, 500, r"failed \(request id r-7\)"),
    # FastAPI's own errors are {"detail": ...} there, and {"error": ...} here as all others are.
    "v1: 422": (v1("raises", "422"), 422, 422, "^too odd$"),
    "v1: 429": (v1("raises", "429"), 429, 429, "^slow down$"),
    # NaN is no JSON; KServe answers null, which nobody can tell from a value that is missing.
    "v1: nan": (
        v1("returns", "nan"),
        200,
        500,
        r"model 'returns' returned NaN or Inf.*: look at predictions\[0\]\.a\[1\]",
    ),
    # Both fail, and ours says whose fault it is.
    "v1: set": (v1("returns", "set"), 500, 500, "model 'returns' returned what JSON has no form for: .* set"),
    # There the line break is sent as it is.
    "v1: a header that is two": (
        v1("splits", "a\r\nset-cookie: b"),
        None,
        500,
        "model 'splits' set the header 'x-own'",
    ),
    # There a charset makes JSON bytes, and a JPEG in a binary tensor has to be UTF-8.
    "v1: charset": (raw_v1("body", b"{", "application/json; charset=utf-8"), 200, 400, "malformed JSON"),
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_rest_answers_otherwise_where_there_is_a_reason(stock, ours, what):
    request, theirs, status, reason = OTHERWISE[what]
    if theirs is not None:
        assert asked(stock, *request).status == theirs
    reply = asked(ours, *request)
    assert reply.status == status
    assert re.search(reason, reply.json["error"])
    assert "secret" not in reply.json["error"]


def test_bytes_that_are_no_text_arrive_in_a_binary_tensor(ours):
    said = asked(ours, *binary("given", "BYTES", b"\1\0\0\0\xff\0\0\0\0")).json["outputs"][0]["data"]
    assert said[:2] == ["[b'\\xff', b'']", "[b'\\xff', b'']"]


def test_a_stream_that_breaks_off_is_not_taken_for_a_whole_one(ours):
    with pytest.raises(http.client.IncompleteRead) as found:
        asked(ours, *v1("streams", 14))
    assert found.value.partial.endswith(b"data 11\ndata 0\n")


def infer(server, model, datatype="FP32", raw=b"", **contents):
    message = pb.ModelInferRequest(model_name=model, id="i-1", model_version="")
    message.parameters["p"].int64_param = 5
    item = message.inputs.add(name="x", datatype=datatype, shape=[1 if datatype == "BYTES" else 2])
    item.parameters["scale"].int64_param = 3
    for name, values in contents.items():
        getattr(item.contents, name).extend(values)
    if raw:
        message.raw_input_contents.append(raw)
    with grpc.insecure_channel(server.grpc_url) as channel:
        found = stubs.GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=30)
    for output in found.outputs:
        output.parameters.pop("binary_data_size", None)  # which REST has use for
    return found


@pytest.mark.parametrize(
    ("model", "sent"),
    [
        ("given", {"fp32_contents": [1, 2.5]}),
        ("given", {"raw": bytes(8)}),
        ("given", {"datatype": "BYTES", "bytes_contents": [b"\xff"]}),
        ("sample", {"datatype": "BYTES", "bytes_contents": [b"\xff\xd8"]}),
        ("message", {"fp32_contents": [1, 2]}),
        ("utils", {"fp32_contents": [1, 2]}),
        ("utils", {"raw": bytes(8)}),
        ("beside", {"fp32_contents": [1, 2]}),
    ],
)
def test_grpc_answers_as_under_kserves_own_server(stock, ours, model, sent):
    assert infer(ours, model, **sent) == infer(stock, model, **sent)


@pytest.fixture(scope="module", params=["v2", "grpc-v2"])
def transformer(request, ours):
    host = ours.http_url if request.param == "v2" else ours.grpc_url
    flags = (f"--predictor_host={host}", f"--predictor_protocol={request.param}")
    with LocalServer(f"{PLAIN}:transformers", *flags) as server:
        yield server


def test_a_transformer_written_for_kserve_reaches_its_predictor(transformer):
    assert call(transformer.http_url, *v1("utils", 1, 2)[:2]).json == {"predictions": [2]}


def test_raw_bytes_go_through_a_transformer_as_they_are(transformer):
    reply = asked(transformer, *binary("given", "BYTES", b"\1\0\0\0\xff\0\0\0\0"))
    assert reply.json["outputs"][0]["data"][1] == "[b'\\xff', b'']"


@pytest.mark.parametrize(
    ("model", "how", "error", "reason"),
    [
        ("raises", "input", errors.InvalidInput, "^you are wrong$"),
        ("raises", "422", errors.InvalidInput, "^too odd$"),
        ("raises", "429", errors.TooManyRequests, "^slow down$"),
        (
            "raises",
            "bug",
            errors.ModelError,
            "^model 'raises' failed .*request id r-1.; the server's log has the reason$",
        ),
        ("nix", "input", errors.ModelNotFound, "^unknown model 'nix': this server has "),
    ],
)
@pytest.mark.parametrize("wire", ["v2 binary", "v2 gRPC"])
def test_a_predictors_error_passes_through_a_transformer_written_for_kserve(
    transformer, wire, model, how, error, reason
):
    with pytest.raises(error, match=reason) as found:
        ask(transformer, wire, {"x": np.array([how.encode()], object)}, model=model, id="r-1")
    assert type(found.value) is error
    if how == "429":
        assert found.value.retry_after == 7


def status_error(url, status, **answer):
    request = httpx.Request("POST", url)
    return httpx.HTTPStatusError(f"{url} said so", request=request, response=httpx.Response(status, **answer))


def rpc_error(code, details=""):
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


PREDICTOR = "http://10.0.0.1/v2/models/m/infer"


@pytest.mark.parametrize(
    ("raised", "error", "reason"),
    [
        (
            status_error(PREDICTOR, 503, json={"error": "busy"}, headers={"retry-after": "3"}),
            errors.Unavailable,
            "busy",
        ),
        (
            status_error(PREDICTOR, 404, text="10.0.0.1"),
            errors.ModelNotFound,
            "the predictor .* answered with status 404",
        ),
        (status_error(PREDICTOR, 499), errors.ModelError, "model 'm' failed"),
        (status_error("http://10.0.0.1/features/7", 404, json={"error": "nix"}), errors.ModelError, "model 'm' failed"),
        (
            httpx.ReadTimeout("10.0.0.1"),
            errors.DeadlineExceeded,
            "the server that model 'm' calls gave no answer in time",
        ),
        (httpx.ConnectError("10.0.0.1"), errors.Unavailable, "the server that model 'm' calls cannot be reached"),
        (rpc_error(grpc.StatusCode.UNAVAILABLE, "10.0.0.1"), errors.Unavailable, "cannot be reached"),
        (rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED), errors.DeadlineExceeded, "gave no answer in time"),
        (rpc_error(grpc.StatusCode.INVALID_ARGUMENT, "x is odd"), errors.InvalidInput, "^x is odd$"),
        (rpc_error(grpc.StatusCode.CANCELLED), errors.ModelError, "model 'm' failed"),
        (rpc_error(grpc.StatusCode.UNKNOWN, "10.0.0.1"), errors.ModelError, r"model 'm' failed \(request id r-1\)"),
    ],
)
def test_what_kserves_clients_raise_has_its_place_and_says_no_address(raised, error, reason):
    with pytest.raises(error, match=reason) as found, our_errors("m", "r-1"):
        raise raised
    assert type(found.value) is error
    assert "10.0.0.1" not in str(found.value)


class Dripping(kserve.Model):
    ended = 0

    async def predict(self, payload, headers=None):
        async def drops():
            try:
                while True:
                    yield "drop\n"
                    await asyncio.sleep(0)
            finally:
                self.ended += 1

        return drops()


def dripping(**settings):
    model = Dripping("m")
    model.load()
    models = kserve.ModelRepository()
    models.update(model)
    return model, DataPlane(models, ServerSettings(**settings))


def test_a_stream_ends_with_its_caller_and_at_its_deadline():
    async def main():
        model, plane = dripping()
        _, drops = await plane.predict_v1({}, Request({}, model="m"))
        assert await anext(drops) == b"drop\n"
        await drops.aclose()
        assert model.ended == 1
        _, drops = await plane.predict_v1({}, Request({}, model="m", deadline=time.monotonic() + 0.2))
        with pytest.raises(errors.DeadlineExceeded, match="gave no answer before the request's deadline"):
            async for _ in drops:
                pass
        assert model.ended == 2

    asyncio.run(main())


def test_a_stream_takes_a_place_until_it_ends():
    async def main():
        _, plane = dripping(max_concurrency=1)
        app = RestApp(plane, ServerSettings(), "")
        dropped, statuses = asyncio.Event(), []

        async def post():
            async def receive():
                return {"type": "http.request", "body": b"{}", "more_body": False}

            async def send(message):
                statuses.append(message.get("status", 0))
                if message.get("body") == b"drop\n":
                    dropped.set()

            departure = Departure()
            path = "/v1/models/m:predict"
            scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": []}
            await app({**scope, SCOPE_KEY: departure}, receive, send)

        first = asyncio.create_task(post())
        await dropped.wait()
        await post()
        assert 429 in statuses
        first.cancel()
        await asyncio.wait({first})
        statuses.clear()
        second = asyncio.create_task(post())
        dropped.clear()
        await dropped.wait()
        assert 200 in statuses
        second.cancel()
        await asyncio.wait({second})

    asyncio.run(main())
