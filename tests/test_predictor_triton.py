"""TritonPredictor, and a transformer before it, against the real Triton."""

import asyncio

import numpy as np
import pytest
from calls import MODELS, WIRES, ask, floats, http
from conftest import write_doubles

from kservekit import errors
from kservekit.codec.message import Request
from kservekit.config import TritonSettings
from kservekit.local.server import LocalServer
from kservekit.local.triton import TritonServer, reserved_ports
from kservekit.predictors.repository import write_model
from kservekit.predictors.triton import SPEC_AGE_S, TritonPredictor
from kservekit.tensors import ModelSpec, TensorSpec

TARGET = "kservekit.predictors.triton:TritonPredictor"


def in_front_of(url, **settings):
    environment = {f"KSERVEKIT_TRITON_{key.upper()}": value for key, value in settings.items()}
    return LocalServer(TARGET, model_name="doubles", settings={"KSERVEKIT_TRITON_URL": url, **environment})


@pytest.fixture(scope="module")
def transformer(predictor):
    flags = (
        f"--predictor_host={predictor.grpc_url}",
        "--predictor_protocol=grpc-v2",
        "--enable_predictor_health_check",
    )
    with LocalServer(f"{MODELS}:Tenfold", *flags, model_name="doubles") as server:
        yield server


@pytest.mark.parametrize("wire", WIRES)
def test_triton_answers_through_the_predictor_over_every_wire(predictor, wire):
    answer = ask(predictor, wire, {"x": floats([1, 2, 3.5], [4, 5, 6])})
    assert [values.tolist() for values in answer.tensors.values()] == [[[2, 4, 7], [8, 10, 12]]]


@pytest.mark.parametrize("wire", WIRES)
def test_triton_answers_through_transformer_and_predictor_over_every_wire(transformer, wire):
    # v1 cannot say that x is FP32 where a transformer declares nothing, so the transformer makes it so.
    answer = ask(transformer, wire, {"x": floats([1, 2, 3.5])}) if wire != "v1" else None
    if answer is None:
        reply = http(transformer.http_url, "/v1/models/doubles:predict", {"instances": [{"x": [1, 2, 3.5]}]})
        assert reply.json == {"predictions": [[2.0, 4.0, 7.0]]}
    else:
        assert answer.tensors["tenfold"].tolist() == [[2, 4, 7]]


def test_the_predictors_metadata_is_tritons(predictor):
    assert http(predictor.http_url, "/v2/models/doubles").json == {
        "name": "doubles",
        "versions": ["1"],
        "platform": "python",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    }


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("through", ["predictor", "transformer"])
def test_what_triton_says_of_its_failure_stays_in_the_log(request, through, wire):
    server, predictor = request.getfixturevalue(through), request.getfixturevalue("predictor")
    id = f"{through}-{wire}-fails".replace(" ", "-")
    if wire == "v1" and through == "transformer":
        reply = http(server.http_url, "/v1/models/doubles:predict", {"instances": [{"x": [-1, 0, 0]}]}, x_request_id=id)
        status, message = reply.status, reply.json["error"]
    else:
        with pytest.raises(errors.ModelError) as found:
            ask(server, wire, {"x": floats([-1, 0, 0])}, id=id, headers={"x-request-id": id})
        status, message = found.value.http, str(found.value)
    assert status == 500
    assert f"model 'doubles' failed in its backend (request id {id})" in message
    assert "secret" not in message
    (line,) = (line for line in predictor.process.log_tail(20).splitlines() if f"id={id!r}: " in line)
    assert "negative, in /secret/path/model.py" in line


@pytest.mark.parametrize("wire", WIRES[1:])
@pytest.mark.parametrize(
    ("tensors", "error", "reason"),
    [
        ({"x": np.zeros((1, 3))}, errors.InvalidInput, "input 'x' is FP64: this model takes FP32"),
        ({"x": floats([1, 2])}, errors.InvalidInput, "input 'x' has shape [1, 2]: this model takes [-1, 3]"),
        ({"z": floats([1, 2, 3])}, errors.InvalidInput, "unknown input 'z': this model takes 'x'"),
        (
            {"x": np.zeros((9, 3), np.float32)},
            errors.InvalidInput,
            "a batch of 9 rows: model 'doubles' takes at most 8",
        ),
    ],
)
def test_what_does_not_fit_tritons_model_is_the_callers_fault(predictor, wire, tensors, error, reason):
    with pytest.raises(error) as found:
        ask(predictor, wire, tensors)
    assert str(found.value) == reason


@pytest.mark.parametrize("wire", WIRES[1:])
def test_no_rows_are_answered_with_none_as_by_an_engine_in_process(predictor, wire):
    answer = ask(predictor, wire, {"x": np.zeros((0, 3), np.float32)})
    assert (answer.tensors["y"].shape, answer.tensors["y"].dtype) == ((0, 3), np.float32)


@pytest.mark.parametrize(("width", "parameters"), [(-1, {}), (3, {"sequence_id": 7, "sequence_start": True})])
def test_no_rows_are_refused_where_nobody_knows_the_answer_and_where_triton_has_to_see_them(width, parameters):
    predictor = TritonPredictor("m", settings=TritonSettings(url="127.0.0.1:1"))
    predictor._spec = ModelSpec((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, width)),))
    predictor._asked_at, predictor._max_batch_size = float("inf"), 8
    with pytest.raises(errors.InvalidInput, match="a batch of 0 rows: model 'm' takes at least 1"):
        asyncio.run(predictor.answer(Request({"x": np.zeros((0, 3), np.float32)}, parameters=parameters)))


@pytest.mark.parametrize("wire", WIRES[1:])
def test_the_parameters_of_an_output_are_tritons_to_see(predictor, wire):
    answer = ask(predictor, wire, {"x": floats([1, 2, 3.5])}, outputs={"y": {"classification": 2}})
    assert answer.tensors["y"].tolist() == [[b"7.000000:2", b"4.000000:1"]]
    with pytest.raises(
        errors.InvalidInput, match=r"output 'y' has the parameter 'shared_memory_region': .* leave it out"
    ):
        ask(predictor, wire, {"x": floats([1, 2, 3.5])}, outputs={"y": {"shared_memory_region": "mine"}})


VERSION_IN_TRITON = """
import triton_python_backend_utils as triton

class TritonPythonModel:
    def execute(self, requests):
        inputs = [triton.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [triton.InferenceResponse([triton.Tensor("y", x * VERSION)]) for x in inputs]
"""


def write_version(folder, version, width, name="times"):
    """y = version * x, for rows of that width."""
    script = folder / "model.py"
    script.write_text(VERSION_IN_TRITON.replace("VERSION", str(version)))
    spec = ModelSpec((TensorSpec("x", "FP32", (-1, width)),), (TensorSpec("y", "FP32", (-1, width)),))
    write_model(folder / "repository", name, spec, {"model.py": script}, max_batch_size=8, version=version)


@pytest.fixture
def times(tmp_path):
    """A Triton with version 10 of a model, and a function that has it load another one instead."""
    write_version(tmp_path, 10, width=3)
    explicit = ("--model-control-mode=explicit", "--load-model=times")
    with TritonServer(tmp_path / "repository", arguments=explicit) as triton:

        def load(version, width):
            write_version(tmp_path, version, width)
            assert http(triton.http_url, "/v2/repository/models/times/load", {}).status == 200

        yield triton, load


def test_what_triton_loads_meanwhile_is_answered_with_its_own_version_and_shape(times):
    triton, load = times
    with in_front_of(triton.grpc_url, model="times") as server:
        path = "/v2/models/doubles/versions/11"
        for wire in WIRES:
            assert ask(server, wire, {"x": floats([1, 2, 3])}).tensors.popitem()[1].tolist() == [[10, 20, 30]]
        assert http(server.http_url, path).status == 404

        load(11, width=3)
        for wire in WIRES[1:]:
            answer = ask(server, wire, {"x": floats([1, 2, 3])})
            assert (answer.version, answer.tensors["y"].tolist()) == ("11", [[11, 22, 33]])
            assert ask(server, wire, {"x": floats([1, 2, 3])}, version="11").version == "11"
        assert http(server.http_url, path).json["versions"] == ["11"]
        with pytest.raises(errors.ModelNotFound, match="no version '10': it has 11"):
            ask(server, "v2 gRPC", {"x": floats([1, 2, 3])}, version="10")

        load(12, width=2)
        assert ask(server, "v2 gRPC", {"x": floats([1, 2])}, version="12").tensors["y"].tolist() == [[12, 24]]
        load(13, width=4)
        answer = ask(server, "v2 binary", {"x": floats([1, 2, 3, 4])})
        assert (answer.version, answer.tensors["y"].tolist()) == ("13", [[13, 26, 39, 52]])
        with pytest.raises(errors.InvalidInput, match=r"has shape \[1, 2\]: this model takes \[-1, 4\]"):
            ask(server, "v2 binary", {"x": floats([1, 2])})


def test_metadata_ages_and_callers_who_are_wrong_together_ask_triton_once(times):
    triton, load = times
    now, asked = 1000.0, []

    async def story():
        nonlocal now
        predictor = TritonPredictor("times", settings=TritonSettings(url=triton.grpc_url), clock=lambda: now)
        spec = predictor.backend.spec
        predictor.backend.spec = lambda *of: asked.append(of) or spec(*of)
        try:
            assert (await predictor.spec()).versions == ("10",)
            await asyncio.to_thread(load, 11, 3)
            now += SPEC_AGE_S - 1
            assert (await predictor.spec()).versions == ("10",)
            assert len(asked) == 1
            now += 2
            assert (await predictor.spec()).versions == ("11",)
            assert len(asked) == 2
            now += 2
            wrong = [predictor.answer(Request({"x": floats([1])}, model="times")) for _ in range(20)]
            found = await asyncio.gather(*wrong, return_exceptions=True)
            assert {type(error) for error in found} == {errors.InvalidInput}
        finally:
            await predictor.close()

    asyncio.run(story())
    assert len(asked) <= 4


def test_tritons_optional_inputs_may_be_left_out_and_its_others_may_not(tmp_path):
    script = """
import triton_python_backend_utils as triton

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x, bias = (triton.get_input_tensor_by_name(request, name) for name in ("x", "bias"))
            y = x.as_numpy() + (bias.as_numpy() if bias is not None else 0)
            answers.append(triton.InferenceResponse([triton.Tensor("y", y)]))
        return answers
"""
    (tmp_path / "model.py").write_text(script)
    inputs = (TensorSpec("x", "FP32", (-1,)), TensorSpec("bias", "FP32", (1,)))
    spec = ModelSpec(inputs, (TensorSpec("y", "FP32", (-1,)),))
    folder = write_model(tmp_path / "repository", "doubles", spec, {"model.py": tmp_path / "model.py"})
    text = (folder / "config.pbtxt").read_text()
    assert text.count('name: "bias"\n') == 1
    (folder / "config.pbtxt").write_text(text.replace('name: "bias"\n', 'name: "bias"\n  optional: true\n'))
    with TritonServer(tmp_path / "repository") as triton, in_front_of(triton.grpc_url) as server:
        for wire in WIRES[1:]:
            assert ask(server, wire, {"x": floats(1, 2)}).tensors["y"].tolist() == [1, 2]
            assert ask(server, wire, {"x": floats(1, 2), "bias": floats(5)}).tensors["y"].tolist() == [6, 7]
            with pytest.raises(errors.InvalidInput, match="missing input 'x'"):
                ask(server, wire, {"bias": floats(5)})
        reply = http(server.http_url, "/v1/models/doubles:predict", {"instances": [{"x": 1}, {"x": 2}]})
        assert reply.json == {"predictions": [1.0, 2.0]}


def test_an_unknown_version_is_not_found(predictor):
    with pytest.raises(errors.ModelNotFound, match="no version '9': it has 1"):
        ask(predictor, "v2 gRPC", {"x": floats([1, 2, 3])}, version="9")


def test_a_call_over_its_budget_is_504(triton, predictor):
    with in_front_of(triton.grpc_url, timeout_s="0.2") as server, pytest.raises(errors.DeadlineExceeded):
        ask(server, "v2 binary", {"x": floats([99, 0, 0])})
    assert ask(predictor, "v2 binary", {"x": floats([1, 0, 0])}).tensors["y"][0, 0] == 2


def test_a_model_that_triton_does_not_have_is_never_ready_and_says_so(triton):
    server = in_front_of(triton.grpc_url, model="nix")
    server.start()
    try:
        server.wait_until_ready("/v2/health/live")
        assert http(server.http_url, "/v2/health/ready").status == 503
        reply = http(server.http_url, "/v2/models/doubles/infer", {"inputs": []})
        assert (reply.status, "unknown model: 'nix'" in reply.json["error"]) == (404, True)
    finally:
        server.stop()


def test_the_predictor_comes_before_triton_outlives_it_and_finds_it_again(tmp_path):
    write_doubles(tmp_path / "repository", tmp_path)
    with reserved_ports({"grpc_port": None}) as ports:
        pass
    url = f"127.0.0.1:{ports['grpc_port']}"
    server = in_front_of(url)
    server.start()
    try:
        server.wait_until_ready("/v2/health/live")
        for _ in range(2):
            reply = http(server.http_url, "/v2/health/ready")
            assert (reply.status, reply.headers["retry-after"]) == (503, "1")
            assert server.get("/v2/models/doubles/ready") == 503
            for wire in WIRES:
                with pytest.raises(errors.Unavailable) as found:
                    ask(server, wire, {"x": floats([1, 2, 3])})
                assert url not in str(found.value)
            with TritonServer(tmp_path / "repository", grpc_port=ports["grpc_port"]):
                server.wait_until_ready()
                assert ask(server, "v2 gRPC", {"x": floats([1, 2, 3])}).tensors["y"].tolist() == [[2, 4, 6]]
    finally:
        server.stop()
