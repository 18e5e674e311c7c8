"""Whatever comes in, on whatever way through the server: an answer, or a refusal with its reason, and never a 500."""

import asyncio
import gc
import gzip
import json
import logging
from contextlib import asynccontextmanager

import kserve
import numpy as np
import pytest
from calls import served
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
from served_models import Echo, Passing

from kservekit.cache import MemoryStore, ResponseCache
from kservekit.codec import grpc as codec
from kservekit.codec import rest_v1, rest_v2
from kservekit.codec.json_values import loads
from kservekit.codec.message import Request
from kservekit.config import BackendSettings, ServerSettings
from kservekit.errors import InvalidInput, PayloadTooLarge, ServingError
from kservekit.oip import connect
from kservekit.serving.dataplane import DataPlane
from kservekit.serving.departure import SCOPE_KEY, Departure
from kservekit.serving.grpc import INFER, InferenceService
from kservekit.serving.grpc_http2 import Call
from kservekit.serving.kserve_types import keep_off_the_loop
from kservekit.serving.rest import RestApp

CLOUD_EVENT = "application/cloudevents+json"


class Reflecting(kserve.Model):
    """Written for KServe; gives back what it is given."""

    def __init__(self, name):
        super().__init__(name)
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        if not isinstance(payload, kserve.InferRequest):
            return {"predictions": payload}
        outputs = [kserve.InferOutput(each.name, each.shape, each.datatype) for each in payload.inputs]
        for output, each in zip(outputs, payload.inputs, strict=True):
            output.set_data_from_numpy(each.as_numpy())
        return kserve.InferResponse(payload.id or "1", self.name, outputs)

    explain = predict


class Hooked(Echo):
    """Ours, with one of KServe's own hooks overridden."""

    async def postprocess(self, result, headers=None, response_headers=None):
        return result


class Rooms:
    """The ways through a server, each as a model of one that listens nowhere: the model's name says which."""

    def __init__(self, backend, **settings):
        protocols = {"v1": backend.http_url, "v2": backend.http_url, "grpc-v2": backend.grpc_url}
        self.backends = {key: connect(host, key, settings=BackendSettings()) for key, host in protocols.items()}
        models = [Echo("predictor"), Echo("cached"), Hooked("hooked"), Reflecting("kserve")]
        models += [Passing(key, backend=found, predictor_model="m") for key, found in self.backends.items()]
        registry = kserve.ModelRepository()
        for model in models:
            keep_off_the_loop(model) if isinstance(model, Reflecting) else None
            model.ready = True
            registry.update(model)
        cache = ResponseCache(MemoryStore(2**20), ttl_s=60)
        self.settings = ServerSettings(**settings)
        self.planes = {
            model.name: DataPlane(registry, self.settings, cache=cache if model.name == "cached" else None)
            for model in models
        }

    async def post(self, way, verb, body, **headers):
        """Status, headers and body of a POST."""
        path = f"/v2/models/{way}/infer" if verb == "infer" else f"/v1/models/{way}:{verb}"
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "headers": [(key.encode(), value.encode()) for key, value in named.items()],
            SCOPE_KEY: Departure(),
        }
        received = [{"type": "http.request", "body": body}]
        sent = []

        async def receive():
            return received.pop()

        async def send(message):
            sent.append(message)

        await RestApp(self.planes[way], self.settings, "")(scope, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"]), b"".join(each["body"] for each in sent[1:])

    async def ask(self, message):
        """The answer to a gRPC message, or the error."""
        call = Call([], None)
        found = messages.ModelInferRequest.FromString(message)
        service = InferenceService(self.planes[found.model_name])
        with service.admit(INFER, call):
            return await service.infer(message, call)


WAYS = ["predictor", "cached", "hooked", "kserve", "v1", "v2", "grpc-v2"]


@pytest.fixture(scope="module")
def backend():
    with served("Echo") as server:
        yield server


@asynccontextmanager
async def rooms(backend, **settings):
    found = Rooms(backend, **settings)
    try:
        yield found
    finally:
        for each in found.backends.values():
            await each.close()


GOOD = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}


def lists(levels):
    return "[" * levels + "1" + "]" * levels


def objects(levels):
    return '{"a":' * levels + "1" + "}" * levels


def v2(*, parameters="{}", outputs="[]", **changed):
    item = json.dumps(GOOD | changed).replace('"deep"', lists(300))
    return f'{{"inputs": [{item}], "parameters": {parameters}, "outputs": {outputs}}}'


def v1(rows="[[1, 2, 3]]", parameters="{}"):
    return f'{{"instances": {rows}, "parameters": {parameters}}}'


def event(data='{"instances": [[1]]}', more="", version='"1.0"', id='"1"'):
    return f'{{"specversion": {version}, "id": {id}, "source": "s", "type": "t", "data": {data} {more}}}'


BODIES = {
    "infer": [
        v2(),
        *(v2(parameters=f'{{"a": {found}}}') for found in (lists(300), objects(300), "[1]", "null", "1e308", "9" * 50)),
        v2(parameters=objects(1000)),
        v2(outputs=f'[{{"name": "x", "parameters": {{"a": {lists(300)}}}}}]'),
        v2(parameters={"a": "deep"}).replace("'", '"'),
        v2(data="deep"),
        v2(data=[1, 2]),
        v2(data=None),
        v2(datatype="FP64", data=[1e308, 2, 3]),
        v2(datatype="INT64", data=[2**64, 2, 3]),
        v2(datatype="BYTES", data=["a", "é", "\ud83d\ude00"]),
        v2(shape=[], data=1),
        v2(shape=[0, 3], data=[]),
        v2(name="n" * 100_000),
        v2(parameters=json.dumps({"p" * 100_000: 1})),
        v2(outputs=json.dumps([{"name": "o" * 100_000}])),
        v2()[:-1] + f', "id": "{"i" * 100_000}"}}',
        v2()[:-1] + ', "id": "a\\u0000\\r\\nb"}',
        *(
            v2(parameters=json.dumps({name: value}))
            for name, values in {
                "timeout": (-5, "abc", 1.5, 2**63),
                "priority": (-1, "x", None),
                "sequence_id": (-1, 1.5, None, [1], "s" * 1000),
                "sequence_start": (5, "true"),
                "sequence_end": (5,),
            }.items()
            for value in values
        ),
        '{"inputs": []}',
        "{}",
        "[]",
        "",
    ],
    "predict": [
        v1(),
        *(v1(parameters=f'{{"a": {found}}}') for found in (lists(300), objects(300), "[1]", "null", "1e308", "9" * 50)),
        v1(rows=lists(500)),
        v1(rows=f"[{objects(500)}]"),
        *(v1(rows=found) for found in ("5", "[]", "[null]", "[[1], [2, 3]]", '[1, "a"]', f"[{2**64}]", f"[{9**400}]")),
        v1(rows=json.dumps([{"k" * 100_000: 1}])),
        v1(rows='[{"b64": "@@"}]'),
        '{"inputs": {"x": 5}}',
        "{}",
        "[]",
        "",
    ],
    "events": [
        event(),
        *(event(found) for found in (lists(300), objects(300), v1(parameters=objects(300)), "1e400", str(9**60), "[]")),
        event(more=f', "a": {objects(300)}'),
        event(more=', "a": [1], "b": {"c": 1}, "d": null'),
        *(event(version=found) for found in ('"9.0"', "9.0", "[1]", "null", "{}")),
        *(event(id=found) for found in ("5", "null", '""', "{}", lists(300))),
        event(more=', "data_base64": "e30="'),
        event().replace('"data": {"instances": [[1]]}', '"data_base64": "@@"'),
        event().replace('"data": {"instances": [[1]]}', '"data_base64": 5'),
        "[]",
        "",
    ],
}


@pytest.mark.parametrize("way", WAYS)
def test_rest_never_answers_500(backend, way, caplog):
    async def main():
        async with rooms(backend) as found:
            for kind, bodies in BODIES.items():
                verb = "infer" if kind == "infer" else "predict"
                content_type = CLOUD_EVENT if kind == "events" else "application/json"
                for number, body in enumerate(bodies):
                    status, _, reply = await found.post(way, verb, body.encode(), content_type=content_type)
                    if status not in ((200, 400, 413, 415) if number else (200,)):
                        faults.append(f"{kind} {body[:150]}: {status} {reply[:200]}")
                    assert status == 200 or 10 < len(json.loads(reply)["error"]) < 1100

    faults = []
    asyncio.run(main())
    assert faults == []
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


TENSORS = [
    {"x": np.ones((1, 3), np.float32)},
    {"x": np.array([np.nan, -np.inf])},
    {"x": np.array(5.0)},
    {"x": np.ones((0, 3), np.float32)},
    {"x": np.ones(2), "y": np.ones(3)},
    {"x": np.array(["é".encode(), b""], object)},
    {"n" * 100_000: np.ones(2)},
    {"\U0001f600" * 300: np.ones(2)},
    {},
]


@pytest.mark.parametrize("way", WAYS)
def test_grpc_never_answers_internal(backend, way, caplog):
    async def main():
        async with rooms(backend) as found:
            for number, tensors in enumerate(TENSORS):
                request = Request(tensors, model=way)
                try:
                    await found.ask(codec.encode_request(request, messages))
                except InvalidInput:
                    assert number > 0
                except ServingError as error:
                    faults.append(f"{tensors}: {error!r}")

    faults = []
    asyncio.run(main())
    assert faults == []
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"x": np.array([np.nan])}, "input 'x' holds NaN or Inf, which JSON has no form for"),
        ({"x": np.array(5.0)}, "these inputs share no first dimension: 'x' []"),
        ({"x": np.ones(2), "y": np.ones(3)}, "these inputs share no first dimension: 'x' [2], 'y' [3]"),
        ({}, "these inputs share no first dimension: none"),
    ],
)
def test_what_a_v1_predictor_cannot_be_asked_is_the_callers_fault(tensors, reason):
    with pytest.raises(InvalidInput) as found:
        rest_v1.encode_request(tensors)
    assert reason in str(found.value)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("timeout", -5, "is -5: expected whole microseconds from 0 up"),
        ("timeout", "abc", "is 'abc': expected whole microseconds"),
        ("timeout", True, "is true: expected whole microseconds"),
        ("priority", "high", "is 'high': expected a whole number from 0 up"),
        ("priority", None, "is null: expected a whole number"),
        ("sequence_id", -1, "is -1: expected a whole number from 0 up, or at most 128 characters"),
        ("sequence_id", "s" * 129, "expected a whole number from 0 up, or at most 128 characters"),
        ("sequence_start", 5, "is 5: expected true or false"),
        ("sequence_end", "true", "is 'true': expected true or false"),
    ],
)
def test_what_triton_answers_with_500_is_refused_before_with_the_same_words_on_each_wire(name, value, reason):
    request = Request({"x": np.ones(1)}, parameters={name: value})
    for encode in (rest_v2.encode_request, lambda request: codec.encode_request(request, messages)):
        with pytest.raises(InvalidInput) as found:
            encode(request)
        assert str(found.value).startswith(f"parameter {name!r} is ")
        assert reason in str(found.value)


def test_what_triton_takes_is_let_through():
    for each in ({"sequence_id": "s", "sequence_start": True, "sequence_end": False}, {"timeout": 0, "priority": 3}):
        rest_v2.encode_request(Request({"x": np.ones(1)}, parameters=each))
        codec.encode_request(Request({"x": np.ones(1)}, parameters=each), messages)


LONG = "n" * 1025


@pytest.mark.parametrize(
    "decode",
    [
        lambda name: rest_v1.decode_request(json.dumps({"instances": [{name: 1}]}).encode()),
        lambda name: rest_v1.decode_request(json.dumps({"inputs": {name: [1]}}).encode()),
        lambda name: rest_v1.decode_request(v1(parameters=json.dumps({name: 1})).encode()),
        lambda name: rest_v2.decode_request(v2(name=name).encode()),
        lambda name: rest_v2.decode_request(v2(parameters=json.dumps({name: 1})).encode()),
        lambda name: rest_v2.decode_request(v2(outputs=json.dumps([{"name": name}])).encode()),
        lambda name: rest_v2.decode_request((v2()[:-1] + f', "id": "{name}"}}').encode()),
        lambda name: over_grpc(Request({name: np.ones(1)})),
        lambda name: over_grpc(Request({}, parameters={name: 1})),
        lambda name: over_grpc(Request({}, outputs={name: {}})),
        lambda name: over_grpc(Request({}, outputs={"y": {name: 1}})),
        lambda name: over_grpc(Request({}, id=name)),
        lambda name: over_grpc(Request({}, model=name)),
        lambda name: over_grpc(Request({}, version=name)),
    ],
)
def test_a_name_is_at_most_a_kibibyte_on_every_wire(decode):
    decode("n" * 1024)
    for name in (LONG, "\N{EURO SIGN}" * 342):
        with pytest.raises(InvalidInput, match=f"is {len(name.encode())} bytes long: expected at most 1024"):
            decode(name)


def over_grpc(request):
    return codec.decode_request(codec.encode_request(request, messages), messages)


EVENT = {"specversion": "1.0", "id": "1", "source": "s", "type": "t"}


@pytest.mark.parametrize(
    ("event", "status", "answer"),
    [
        ({"data": {"instances": [1]}}, 200, [1]),
        ({"data": {"instances": [1]}, "specversion": "0.3"}, 200, [1]),
        ({"data_base64": "eyJpbnN0YW5jZXMiOiBbMV19"}, 200, [1]),
        ({"data_base64": "eyJpbnN0YW5jZXMiOiBbMV19", "datacontenttype": "application/x+JSON; a=b"}, 200, [1]),
        ({"data_base64": "eyJpbnN0YW5jZXMiOiBbMV19", "datacontenttype": "image/png"}, 415, "is 'image/png': expected"),
        ({"data_base64": "@@"}, 400, "data_base64 is '@@': expected base64"),
        ({"data_base64": "W1tb"}, 400, "malformed JSON"),
        ({"data_base64": "e30=", "data": {}}, 400, "either data or data_base64"),
        ({}, 400, "either data or data_base64"),
        ({"data": {"instances": [1]}, "specversion": "9.0"}, 400, "specversion '9.0': expected '1.0' or '0.3'"),
        ({"data": {"instances": [1]}, "specversion": 1.0}, 400, "specversion 1.0: expected"),
    ],
)
@pytest.mark.parametrize("merge", ["true", "false"])
def test_what_a_structured_event_may_be(backend, monkeypatch, merge, event, status, answer):
    async def main():
        async with rooms(backend) as found:
            return await found.post(
                "predictor", "predict", json.dumps(EVENT | event).encode(), content_type=CLOUD_EVENT
            )

    monkeypatch.setenv("CE_MERGE", merge)
    found, _, body = asyncio.run(main())
    assert found == status
    if status == 200:
        assert json.loads(body)["data"] == {"predictions": answer}
    else:
        assert answer in json.loads(body)["error"]


def test_an_event_in_headers_says_a_version_that_there_is(backend):
    async def main(version):
        named = {"ce_specversion": version, "ce_id": "1", "ce_source": "s", "ce_type": "t"}
        async with rooms(backend) as found:
            return (await found.post("predictor", "predict", v1().encode(), **named))[0]

    assert [asyncio.run(main(version)) for version in ("1.0", "9.0")] == [200, 400]


BINARY, JSON_LENGTH = rest_v2.encode_request(Request({"x": np.zeros(500)}))
FEW = {"max_json_bytes": 1000, "max_body_bytes": 5000}


@pytest.mark.parametrize(
    ("verb", "body", "headers", "status", "reason"),
    [
        (
            "infer",
            v2() + " " * 1000,
            {},
            413,
            "the body is over 1000 bytes of JSON, the limit of this server (KSERVEKIT",
        ),
        ("predict", v1() + " " * 1000, {}, 413, "send tensors by v2 as binary data, or by gRPC"),
        ("predict", v1(), {"content_length": "1001"}, 413, "over 1000 bytes of JSON"),
        ("predict", v1() + " " * 1000, {rest_v2.JSON_LENGTH_HEADER: "5"}, 413, "over 1000 bytes of JSON"),
        (
            "infer",
            v2() + " " * 1000,
            {rest_v2.JSON_LENGTH_HEADER: "1001"},
            413,
            "the request's JSON is over 1000 bytes",
        ),
        (
            "infer",
            v2() + " " * 5000,
            {rest_v2.JSON_LENGTH_HEADER: "5"},
            413,
            "5000 bytes, the limit of this server (KSERV",
        ),
        (
            "infer",
            gzip.compress(b" " * 1001, mtime=0),
            {"content_encoding": "gzip"},
            413,
            "unpacks to over 1000 bytes of JSON",
        ),
        ("infer", b"".join(BINARY), {rest_v2.JSON_LENGTH_HEADER: str(JSON_LENGTH)}, 200, ""),
        ("infer", v2() + " " * 500, {}, 200, ""),
    ],
)
def test_json_has_a_limit_of_its_own(backend, verb, body, headers, status, reason):
    async def main():
        async with rooms(backend, **FEW) as found:
            return await found.post("predictor", verb, body if isinstance(body, bytes) else body.encode(), **headers)

    found, _, reply = asyncio.run(main())
    assert found == status
    assert reason in reply.decode("latin-1")


def test_so_have_typed_contents_of_grpc(backend):
    async def main(message):
        async with rooms(backend, **FEW) as found:
            await found.ask(message.SerializeToString() if hasattr(message, "inputs") else message)

    typed = messages.ModelInferRequest(model_name="predictor")
    typed.inputs.add(name="x", datatype="FP32", shape=[300]).contents.fp32_contents.extend([0.5] * 300)
    with pytest.raises(PayloadTooLarge, match=r"over 1000 bytes.*KSERVEKIT_MAX_JSON_BYTES.*raw contents"):
        asyncio.run(main(typed))
    asyncio.run(main(codec.encode_request(Request({"x": np.zeros(300)}, model="predictor"), messages)))


@pytest.mark.parametrize(
    ("counts", "fits"), [((250,), True), ((251,), False), ((100, 0, 150), True), ((100, 151), False)]
)
def test_so_have_the_lengths_of_raw_bytes_elements(backend, counts, fits):
    strings = {f"x{n}": np.array([b"ab"] * count, object) for n, count in enumerate(counts)}
    request = Request({**strings, "numbers": np.zeros(300)}, model="predictor")
    parts, json_length = rest_v2.encode_request(request)

    async def main():
        async with rooms(backend, **FEW) as found:
            status, _, reply = await found.post(
                "predictor", "infer", b"".join(parts), **{rest_v2.JSON_LENGTH_HEADER: str(json_length)}
            )
            assert status == (200 if fits else 413), reply
            assert (b"BYTES elements are over 1000 bytes" in reply) is not fits
            if fits:
                await found.ask(codec.encode_request(request, messages))
                return
            with pytest.raises(PayloadTooLarge, match=r"BYTES elements are over 1000 bytes.*send fewer elements"):
                await found.ask(codec.encode_request(request, messages))

    asyncio.run(main())


def test_large_json_is_read_without_the_garbage_collector_which_goes_on_after_it():
    collected = gc.get_stats()[0]["collections"]
    loads(b"[" + b"[1]," * 50_000 + b"[1]]")
    assert gc.get_stats()[0]["collections"] - collected < 10  # and not one for each 700 lists
    with pytest.raises(InvalidInput):
        loads(b"[" * 100_000)
    assert gc.isenabled()
