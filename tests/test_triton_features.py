"""What Triton's protocol has beyond a plain request, through our predictor, on the real Triton: a test a feature."""

import asyncio
import json
import time

import pytest
from calls import WIRES, ask, eventually, floats, http
from conftest import write_doubles

from kservekit import errors
from kservekit.codec.message import Request
from kservekit.config import TritonSettings
from kservekit.local.server import LocalServer
from kservekit.oip import connect
from kservekit.oip.grpc import GrpcBackend
from kservekit.oip.triton_control import TritonControl
from kservekit.oip.triton_messages import messages, model_config
from kservekit.predictors.repository import declared, write
from kservekit.predictors.repository_build import Build, build
from kservekit.predictors.triton import TritonPredictor
from kservekit.tensors import ModelSpec, TensorSpec

SEEN_IN_TRITON = """
import json
import triton_python_backend_utils as triton
import numpy as np

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = triton.get_input_tensor_by_name(request, "x").as_numpy()
            seen = {
                "parameters": json.loads(request.parameters() or "{}"),
                "outputs": sorted(request.requested_output_names()),
                "timeout": request.timeout(),
            }
            values = {"y": x, "seen": np.array([[json.dumps(seen)]] * len(x), object)}
            wanted = request.requested_output_names()
            answers.append(triton.InferenceResponse([triton.Tensor(name, values[name]) for name in wanted]))
        return answers
"""

# The first run takes as long as its request says; each row's answer is the number of its run.
ORDER_IN_TRITON = """
import time
import triton_python_backend_utils as triton
import numpy as np

runs = 0

class TritonPythonModel:
    def execute(self, requests):
        global runs
        answers = []
        for request in requests:
            runs += 1
            x = triton.get_input_tensor_by_name(request, "x").as_numpy()
            print("at work for", x.max(), "s", flush=True)
            time.sleep(float(x.max()))
            answers.append(triton.InferenceResponse([triton.Tensor("y", np.full_like(x, runs))]))
        return answers
"""

# Adds up what each sequence has given since its start.
SUM_IN_TRITON = """
import triton_python_backend_utils as triton
import numpy as np

sums = {}

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            given = (triton.get_input_tensor_by_name(request, name) for name in ("x", "START", "ID"))
            x, start, whose = (tensor.as_numpy() for tensor in given)
            key = int(whose.ravel()[0])
            if start.any():
                sums[key] = np.zeros_like(x)
            sums[key] = sums[key] + x
            answers.append(triton.InferenceResponse([triton.Tensor("y", sums[key])]))
        return answers
"""

NUMBER = ModelSpec((TensorSpec("x", "FP32", (-1, 1)),), (TensorSpec("y", "FP32", (-1, 1)),))
SEEN = ModelSpec(NUMBER.inputs, (*NUMBER.outputs, TensorSpec("seen", "BYTES", (-1, 1))))


@pytest.fixture(scope="module")
def triton(local_triton, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    repository = folder / "repository"

    def model(config, source):
        script = folder / f"{config.name}.py"
        script.write_text(source)
        write(repository, config, {"model.py": script})

    seen = declared("seen", SEEN, backend="python", max_batch_size=8)
    seen.dynamic_batching.default_queue_policy.allow_timeout_override = True
    model(seen, SEEN_IN_TRITON)

    order = declared("order", NUMBER, backend="python", max_batch_size=1)
    order.dynamic_batching.priority_levels = 2
    order.dynamic_batching.default_priority_level = 2
    order.dynamic_batching.default_queue_policy.allow_timeout_override = True
    model(order, ORDER_IN_TRITON)

    summed = declared("sum", NUMBER, backend="python", max_batch_size=4)
    summed.sequence_batching.max_sequence_idle_microseconds = 60_000_000
    summed.sequence_batching.oldest.max_candidate_sequences = 8  # the other strategy fills empty slots up with zeros
    kinds = model_config.ModelSequenceBatching.Control
    start = summed.sequence_batching.control_input.add(name="START")
    start.control.add(kind=kinds.CONTROL_SEQUENCE_START, fp32_false_true=[0, 1])
    whose = summed.sequence_batching.control_input.add(name="ID")
    whose.control.add(kind=kinds.CONTROL_SEQUENCE_CORRID, data_type=model_config.TYPE_UINT64)
    model(summed, SUM_IN_TRITON)

    write_doubles(repository, folder)
    script = folder / "order.py"
    cached = Build(script, "cached", inputs=NUMBER.inputs, outputs=NUMBER.outputs, response_cache=True, warm_up=False)
    build(cached, repository)
    return local_triton(repository, arguments=["--cache-config=local,size=1048576"])


@pytest.fixture(scope="module")
def all_of_them(triton):
    """Several of Triton's models behind one predictor, one of them under another name."""
    settings = {
        "KSERVEKIT_TRITON_URL": triton.grpc_url,
        "KSERVEKIT_TRITON_MODELS": "seen,order,Twice=doubles,sum,cached",
    }
    with LocalServer("kservekit.predictors.triton:models", model_name="Twice", settings=settings) as server:
        yield server


def seen(answer):
    return json.loads(answer.tensors["seen"].ravel()[0])


@pytest.mark.parametrize("wire", WIRES[1:])
def test_several_models_each_answer_under_their_own_name(all_of_them, wire):
    assert ask(all_of_them, wire, {"x": floats([1, 2, 3])}, model="Twice").tensors["y"].tolist() == [[2, 4, 6]]
    assert ask(all_of_them, wire, {"x": floats([7])}, model="seen").tensors["y"].tolist() == [[7]]
    with pytest.raises(errors.ModelNotFound, match="this server has 'seen', 'order', 'Twice', 'sum', 'cached'"):
        ask(all_of_them, wire, {"x": floats([1, 2, 3])}, model="doubles")


@pytest.mark.parametrize("scheme", ["http", "grpc", ""])
def test_the_url_says_which_transport_it_is(triton, scheme):
    url = triton.http_url if scheme == "http" else triton.grpc_url
    settings = TritonSettings(url=f"{scheme}://{url}" if scheme else url, model="doubles")

    async def main():
        predictor = TritonPredictor("m", settings=settings)
        try:
            assert await predictor.healthy()
            answer = await predictor.answer(Request({"x": floats([1, 2, 3])}, model="m"))
            with pytest.raises(errors.InvalidInput, match="a batch of 9 rows: model 'm' takes at most 8"):
                await predictor.answer(Request({"x": floats(*[[1, 2, 3]] * 9)}, model="m"))
            return answer.tensors["y"].tolist()
        finally:
            await predictor.close()

    assert asyncio.run(main()) == [[2, 4, 6]]


def test_a_url_of_another_kind_is_refused():
    with pytest.raises(errors.CannotStart, match="'ftp://x:1': expected name:port, or one of grpc://, grpcs://"):
        TritonPredictor("m", settings=TritonSettings(url="ftp://x:1"))


@pytest.mark.parametrize("kind", [TritonPredictor, TritonControl])
@pytest.mark.parametrize("host", ["", "h:abc", "h:", "h:0", "h:99999", "h:1/path", "::1:8001", "a b", "x://h:1"])
def test_a_host_that_nothing_can_reach_is_refused_at_the_start(kind, host):
    with pytest.raises(errors.CannotStart, match=r"expected name(:port,| or name:port)"):
        kind("m", settings=TritonSettings(url=host)) if kind is TritonPredictor else kind(host)


@pytest.mark.parametrize("host", ["h", "h:8001", "h:8001/", "[::1]:8001", "a-b.c.svc.cluster.local:1", "under_score"])
def test_other_hosts_are_taken(host):
    assert TritonControl(host)._wire.host.startswith(host.rstrip("/"))


@pytest.mark.parametrize("wire", WIRES[1:])
def test_only_the_requested_outputs_are_asked_of_triton(all_of_them, wire):
    answer = ask(all_of_them, wire, {"x": floats([7])}, model="seen", outputs={"seen": {}})
    assert list(answer.tensors) == ["seen"]
    assert seen(answer)["outputs"] == ["seen"]
    with pytest.raises(errors.InvalidInput, match="unknown output 'nix': this model gives 'y', 'seen'"):
        ask(all_of_them, wire, {"x": floats([7])}, model="seen", outputs={"nix": {}})


@pytest.mark.parametrize("wire", WIRES[1:])
def test_a_requests_own_parameters_reach_the_model(all_of_them, wire):
    given = {"style": "bold", "limit": 7, "deep": True}
    found = seen(ask(all_of_them, wire, {"x": floats([7])}, model="seen", parameters=given))["parameters"]
    assert {key: found[key] for key in given} == given


@pytest.mark.parametrize(("asked", "most"), [({}, 5_050_000), ({"timeout": 1_000_000}, 1_000_000)])
def test_what_is_left_of_the_deadline_is_tritons_queue_time_out(all_of_them, asked, most):
    deadline = time.monotonic() + 5  # which gRPC rounds up by up to a hundredth on its way
    answer = ask(all_of_them, "v2 gRPC", {"x": floats([7])}, model="seen", deadline=deadline, parameters=asked)
    assert 0 < seen(answer)["timeout"] <= most


@pytest.mark.parametrize("asked", [-5, "abc"])
def test_a_queue_time_out_that_is_none_is_refused_as_a_priority_is(all_of_them, asked):
    x = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [7]}
    reply = http(all_of_them.http_url, "/v2/models/seen/infer", {"inputs": [x], "parameters": {"timeout": asked}})
    assert reply.status == 400
    assert reply.json["error"].startswith(f"parameter 'timeout' is {asked!r}: expected whole microseconds")


async def at_work(triton, before):
    """Once its log tells of one more of the first runs than `before`."""
    assert await asyncio.to_thread(eventually, lambda: long_runs(triton) > before)


def long_runs(triton):
    return triton.log.read_text().count("at work for 1.0 s")


async def runs(triton):
    backend = GrpcBackend(triton.grpc_url)
    try:
        reply = await backend.stub().ModelStatistics(messages.ModelStatisticsRequest(name="order"))
        return reply.model_stats[0].inference_stats.success.count
    finally:
        await backend.close()


def test_triton_drops_what_nobody_waits_for_any_more(triton, all_of_them):
    async def main():
        backend = connect(all_of_them.grpc_url)
        before, longs = await runs(triton), long_runs(triton)
        try:
            busy = asyncio.create_task(backend.infer(Request({"x": floats([1])}, model="order")))
            await at_work(triton, longs)
            late = [Request({"x": floats([0])}, model="order", deadline=time.monotonic() + 0.3) for _ in range(5)]
            found = await asyncio.gather(*map(backend.infer, late), return_exceptions=True)
            assert {type(error) for error in found} <= {errors.DeadlineExceeded, errors.Unavailable}
            await busy
            await backend.infer(Request({"x": floats([0])}, model="order"))
            return await runs(triton) - before
        finally:
            await backend.close()

    assert asyncio.run(main()) == 2


def test_a_higher_priority_goes_before(triton, all_of_them):
    async def main():
        backend = connect(all_of_them.grpc_url)
        longs = long_runs(triton)
        try:

            def call(seconds, priority):
                request = Request({"x": floats([seconds])}, model="order", parameters={"priority": priority})
                return asyncio.create_task(backend.infer(request))

            first = call(1, 1)
            await at_work(triton, longs)
            low = [call(0, 2) for _ in range(3)]
            await asyncio.sleep(0.3)
            high = call(0, 1)
            answers = await asyncio.gather(first, high, *low)
            return [float(answer.tensors["y"][0, 0]) for answer in answers]
        finally:
            await backend.close()

    began, high, *low = asyncio.run(main())
    assert high == began + 1
    assert sorted(low) == [began + 2, began + 3, began + 4]


@pytest.mark.parametrize("wire", WIRES[1:])
def test_a_sequence_finds_its_own_state_again(all_of_them, wire):
    key = 100 + WIRES.index(wire)

    def add(value, whose, **more):
        parameters = {"sequence_id": whose, **more}
        answer = ask(all_of_them, wire, {"x": floats([value])}, model="sum", parameters=parameters)
        return float(answer.tensors["y"][0, 0])

    assert add(1, key, sequence_start=True) == 1
    assert add(10, key + 50, sequence_start=True) == 10
    assert add(2, key) == 3
    assert add(20, key + 50, sequence_end=True) == 30
    assert add(3, key, sequence_end=True) == 6
    with pytest.raises(errors.InvalidInput, match="must specify the START flag on the first request"):
        add(1, key)


def test_inputs_of_different_batches_are_refused_before_triton_sees_them(triton):
    async def main():
        predictor = TritonPredictor("doubles", settings=TritonSettings(url=triton.grpc_url))
        await predictor.spec()
        two = ModelSpec((*NUMBER.inputs, TensorSpec("z", "FP32", (-1, 1))))
        predictor._spec = two
        try:
            with pytest.raises(errors.InvalidInput, match=r"share their first dimension.*'x' \[1, 1\], 'z' \[2, 1\]"):
                await predictor._fitting(Request({"x": floats([1]), "z": floats([1], [2])}))
        finally:
            await predictor.close()

    asyncio.run(main())


def test_tritons_own_response_cache_answers_what_was_asked_before(triton, all_of_them):
    answers = [
        float(ask(all_of_them, "v2 gRPC", {"x": floats([value])}, model="cached").tensors["y"][0, 0])
        for value in (0, 0.001, 0)
    ]
    assert answers == [1, 2, 1]  # the number of the run: the third one was none

    async def main():
        control = TritonControl(triton.grpc_url)
        try:
            (found,) = await control.statistics("cached")
            return found.cache_hits, found.cache_misses, found.executions
        finally:
            await control.close()

    assert asyncio.run(main()) == (1, 2, 2)
