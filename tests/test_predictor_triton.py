"""TritonPredictor, and a transformer before it, against the real Triton."""

import numpy as np
import pytest
from calls import MODELS, WIRES, ask, floats, http
from conftest import write_doubles

from kservekit import errors
from kservekit.local.server import LocalServer
from kservekit.local.triton import TritonServer, reserved_ports

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
    if wire == "v1" and through == "transformer":
        reply = http(server.http_url, "/v1/models/doubles:predict", {"instances": [{"x": [-1, 0, 0]}]})
        status, message = reply.status, reply.json["error"]
    else:
        with pytest.raises(errors.ModelError) as found:
            ask(server, wire, {"x": floats([-1, 0, 0])})
        status, message = found.value.http, str(found.value)
    assert status == 500
    assert "model 'doubles' failed in its backend" in message
    assert "secret" not in message
    assert "negative, in /secret/path/model.py" in predictor.process.log_tail(20)


@pytest.mark.parametrize("wire", WIRES[1:])
@pytest.mark.parametrize(
    ("tensors", "error", "reason"),
    [
        ({"x": np.zeros((1, 3))}, errors.InvalidInput, "input 'x' is FP64: this model takes FP32"),
        ({"x": floats([1, 2])}, errors.InvalidInput, "input 'x' has shape [1, 2]: this model takes [-1, 3]"),
        ({"z": floats([1, 2, 3])}, errors.InvalidInput, "unknown input 'z': this model takes 'x'"),
        ({"x": np.zeros((9, 3), np.float32)}, errors.InvalidInput, "batch-size must be <= 8"),
    ],
)
def test_what_does_not_fit_tritons_model_is_the_callers_fault(predictor, wire, tensors, error, reason):
    with pytest.raises(error) as found:
        ask(predictor, wire, tensors)
    assert reason in str(found.value)


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
