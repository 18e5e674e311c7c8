"""TensorRTPredictor: on the real library as far as it goes without a GPU, on a stand-in beyond, and on a GPU if any."""

import asyncio
import logging
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is for Linux on x86_64")

import calls
import standin_tensorrt as standin
from calls import WIRES, eventually
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx_files import write_doubles
from standin_cuda import runtime
from standin_tensorrt import Model, trt
from test_tensorrt_build import OPTIONS

from kservekit import cuda
from kservekit.codec.message import Request
from kservekit.config import TensorRTSettings
from kservekit.errors import CannotStart, InvalidInput, ModelError, Unavailable
from kservekit.local.server import LocalServer
from kservekit.predictors import tensorrt as predictor_module
from kservekit.predictors import tensorrt_runtime
from kservekit.predictors.tensorrt import TensorRTPredictor
from kservekit.predictors.tensorrt_build import build
from kservekit.predictors.tensorrt_engine import deserialize
from kservekit.predictors.tensorrt_runtime import Gpu
from kservekit.tensors import DATATYPES, TensorSpec

FIXED = {"inputs": {"x": (3, 2)}, "outputs": {"y": (3, 2)}, "profiles": []}


class Bench:
    """A predictor on the stand-in, of an ONNX file that the real library builds an engine from."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.monkeypatch = folder, monkeypatch
        self.gpu = standin.Gpu()

    def predictor(self, model=None, *, rtx=True, **settings):
        library = standin.library(self.gpu, model or Model(), rtx=rtx)
        self.monkeypatch.setattr(tensorrt_runtime, "tensorrt", lambda: library)
        self.monkeypatch.setattr(cuda, "load", lambda extra: self.gpu.cuda)
        path = self.folder / "m.onnx"
        if not path.exists():
            write_doubles(path)
        usual = {"model_path": str(path), "engine_cache": str(self.folder / "engines")}
        return TensorRTPredictor(settings=TensorRTSettings(**usual | settings))

    def loaded(self, model=None, **settings):
        predictor = self.predictor(model, **settings)
        assert predictor.load()
        return predictor


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    path = write_doubles(tmp_path_factory.mktemp("plan") / "m.onnx")
    return build(tensorrt_runtime.tensorrt(), path, OPTIONS)


def rows(count, start=0.0):
    return np.arange(start, start + count * 2, dtype=np.float32).reshape(count, 2)


def ask(predictor, **tensors):
    return asyncio.run(predictor.infer(tensors))


def test_each_request_gets_its_own_answer_whatever_its_rows(bench):
    predictor = bench.loaded()
    answers = [(rows(count, count), ask(predictor, x=rows(count, count))) for count in (1, 8, 3, 3, 1)]
    for sent, answer in answers:
        assert answer["y"].tolist() == (sent * 2).tolist()


def test_an_array_that_lies_in_another_order_is_taken_as_it_reads(bench):
    sent = np.asfortranarray(rows(8))[::2]
    assert ask(bench.loaded(), x=sent)["y"].tolist() == (sent * 2).tolist()


def test_the_engines_own_tensors_are_the_metadata_and_the_check(bench):
    predictor = bench.loaded(Model(datatypes={"x": trt.DataType.HALF, "y": trt.DataType.HALF}))
    assert list(predictor.inputs) == [TensorSpec("x", "FP16", (-1, 2))]
    assert list(predictor.outputs) == [TensorSpec("y", "FP16", (-1, 2))]
    with pytest.raises(InvalidInput, match="input 'x' is FP32: this model takes FP16"):
        asyncio.run(predictor.answer(Request({"x": rows(1)})))
    answer = asyncio.run(predictor.answer(Request({"x": rows(1).astype(np.float16)})))
    assert answer.tensors["y"].dtype == np.float16


def test_more_rows_than_the_engine_takes_are_refused_with_its_maximum_and_the_next_are_served(bench):
    predictor = bench.loaded()
    with pytest.raises(InvalidInput, match=r"'x' has shape \[9, 2\]: this engine takes \[1, 2\] to \[8, 2\]"):
        ask(predictor, x=rows(9))
    assert len(ask(predictor, x=rows(8))["y"]) == 8


def test_inputs_whose_sizes_contradict_each_other_are_the_callers_fault(bench):
    def same(shapes):
        if len(set(shapes.values())) > 1:
            raise RuntimeError
        return {"y": shapes["a"]}

    takes = ((1,), (8,), (8,))
    predictor = bench.loaded(
        Model(
            {"a": (-1,), "b": (-1,)},
            {"y": (-1,)},
            [{"a": takes, "b": takes}],
            same,
            lambda arrays: {"y": arrays["a"] + arrays["b"]},
        )
    )
    one, two = np.ones(1, np.float32), np.ones(2, np.float32)
    assert ask(predictor, a=two, b=two)["y"].tolist() == [2, 2]
    with pytest.raises(InvalidInput, match=r"these shapes together: 'a' \[1\], 'b' \[2\]"):
        ask(predictor, a=one, b=two)
    assert ask(predictor, a=two, b=two)["y"].tolist() == [2, 2]


def test_requests_of_all_profiles_are_served_by_one_context(bench):
    profiles = [{"x": ((1, 2), (1, 2), (2, 2))}, {"x": ((3, 2), (48, 2), (96, 2))}]
    predictor = bench.loaded(Model(profiles=profiles))
    for count in (1, 96, 2, 3):
        assert ask(predictor, x=rows(count))["y"].tolist() == (rows(count) * 2).tolist()
    with pytest.raises(InvalidInput, match=r"\[1, 2\] to \[2, 2\], or \[3, 2\] to \[96, 2\]"):
        ask(predictor, x=rows(97))


def test_a_caller_who_gives_up_harms_nobody_and_takes_no_context_with_him(bench):
    entered, leave, inside, most = threading.Semaphore(0), threading.Event(), [], []

    def slowly(arrays):
        if (arrays["x"] >= 0).all() and arrays["x"].any():  # not the first run, of zeros
            inside.append(1)
            most.append(len(inside))
            entered.release()
            leave.wait(60)
            inside.pop()
        return {"y": arrays["x"] * 2}

    predictor = bench.loaded(Model(compute=slowly), contexts=2)

    async def callers():
        running = [asyncio.create_task(predictor.infer({"x": rows(1, start)})) for start in (1, 2)]
        for _ in running:
            await asyncio.to_thread(entered.acquire)
        waiting = [asyncio.create_task(predictor.infer({"x": rows(1, start)})) for start in (3, 4, 5)]
        await asyncio.sleep(0)
        running[0].cancel()
        waiting[1].cancel()
        await asyncio.wait({running[0], waiting[1]})
        assert predictor._idle.empty()  # the engine still works for him who is gone
        leave.set()
        return await asyncio.gather(running[1], waiting[0], waiting[2])

    answers = asyncio.run(callers())
    assert [answer["y"].tolist() for answer in answers] == [(rows(1, start) * 2).tolist() for start in (2, 3, 5)]
    assert max(most) == 2
    assert len(most) == 4  # the one who gave up in line was never begun
    predictor.stop()  # which waits for both contexts
    assert bench.gpu.used == 0


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.integers(0, 3)), max_size=24))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whoever_stays_gets_his_own_rows_whoever_leaves_and_whatever_is_refused(three_contexts, callers):
    async def all_of_them():
        tasks = []
        for at, (count, leaves, turns) in enumerate(callers):
            tasks.append(asyncio.create_task(three_contexts.infer({"x": rows(count, at)})))
            for _ in range(turns):
                await asyncio.sleep(0)
            if leaves:
                tasks[-1].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    for at, answer in enumerate(asyncio.run(all_of_them())):
        count, leaves, _ = callers[at]
        if isinstance(answer, dict):
            assert answer["y"].tolist() == (rows(count, at) * 2).tolist()
        elif leaves:
            assert isinstance(answer, asyncio.CancelledError | InvalidInput)
        else:
            assert isinstance(answer, InvalidInput)
            assert count in (0, 9)


@pytest.fixture
def three_contexts(bench):
    predictor = bench.loaded(contexts=3)
    yield predictor
    predictor.stop()
    assert bench.gpu.used == 0


def test_an_unload_waits_for_the_runs_that_have_begun(bench):
    entered, leave = threading.Event(), threading.Event()

    def slowly(arrays):
        if arrays["x"].any():
            entered.set()
            leave.wait(60)
        return {"y": arrays["x"] * 2}

    predictor = bench.loaded(Model(compute=slowly))

    async def unload_in_the_midst():
        running = asyncio.create_task(predictor.infer({"x": rows(2)}))
        await asyncio.to_thread(entered.wait)
        unloading = asyncio.create_task(predictor.close())
        while predictor._contexts and not unloading.done():  # noqa: ASYNC110 - that it has begun, nothing says
            await asyncio.sleep(0)
        assert bench.gpu.used > 0
        leave.set()
        await unloading
        assert bench.gpu.used == 0
        return await running

    assert asyncio.run(unload_in_the_midst())["y"].tolist() == (rows(2) * 2).tolist()


def test_callers_who_share_a_run_get_their_own_rows_and_a_large_request_is_split(bench):
    sizes = []

    def noted(arrays):
        sizes.append(len(arrays["x"]))
        return {"y": arrays["x"] * 2}

    predictor = bench.loaded(Model(compute=noted), batch_rows=8, contexts=2)
    sizes.clear()

    async def callers():
        sent = [rows(1 + at % 5, at) for at in range(24)] + [rows(21)]
        answers = await asyncio.gather(*(predictor.infer({"x": values}) for values in sent))
        await predictor.close()
        return zip(sent, answers, strict=True)

    for values, answer in asyncio.run(callers()):
        assert answer["y"].tolist() == (values * 2).tolist()
    assert max(sizes) == 8
    assert len(sizes) < 25


def test_a_batch_larger_than_the_engine_takes_is_refused_before_it_serves(bench):
    with pytest.raises(CannotStart, match="BATCH_ROWS is 9: this engine takes 8 at most"):
        bench.predictor(batch_rows=9).load()
    with pytest.raises(CannotStart, match=r"BATCH_ROWS is set, and the engine has 'x' \[3, 2\], 'y' \[3, 2\]"):
        bench.predictor(Model(**FIXED), batch_rows=2).load()
    assert bench.gpu.used == 0


def test_an_engine_that_does_not_answer_row_by_row_takes_no_batches(bench):
    means = Model(compute=lambda arrays: {"y": np.repeat(arrays["x"].mean(0, keepdims=True), len(arrays["x"]), axis=0)})
    with pytest.raises(
        CannotStart, match=r"BATCH_ROWS is set, and callers .* 'y' has other values for a row that is al"
    ):
        bench.predictor(means, batch_rows=4).load()
    assert bench.gpu.used == 0


def test_a_gpu_that_fails_while_rows_are_tried_is_not_ready(bench):
    def fails(arrays):
        if len(arrays["x"]) == 3:
            bench.gpu.failure = runtime.cudaError_t.cudaErrorIllegalAddress
        return {"y": arrays["x"]}

    predictor = bench.predictor(Model(compute=fails), batch_rows=4)
    with pytest.raises(CannotStart, match="the engine cannot be run: cudaStreamSynchronize"):
        predictor.load()
    assert not predictor.ready


def test_a_run_of_fixed_shapes_is_recorded_once_and_played(bench):
    predictor = bench.loaded(Model(**FIXED), rtx=False, cuda_graphs=True)
    for start in (0, 5):
        assert ask(predictor, x=rows(3, start))["y"].tolist() == (rows(3, start) * 2).tolist()
    assert bench.gpu.launches == 2
    predictor.stop()
    assert bench.gpu.used == 0


def test_a_run_of_open_shapes_is_not_recorded(bench):
    predictor = bench.loaded(rtx=False, cuda_graphs=True)
    assert ask(predictor, x=rows(3))["y"].tolist() == (rows(3) * 2).tolist()
    assert bench.gpu.launches == 0


def test_an_engine_that_no_graph_can_hold_is_served_without(bench, caplog):
    predictor = bench.loaded(Model(**FIXED, capturable=False), rtx=False, cuda_graphs=True)
    assert ask(predictor, x=rows(3))["y"].tolist() == (rows(3) * 2).tolist()
    assert bench.gpu.launches == 0
    assert "no CUDA graph of this engine, which runs without: cudaStreamEndCapture" in caplog.text


def test_tensorrt_for_rtx_is_told_to_play_graphs_itself(bench, monkeypatch):
    made = []

    def config(self):
        made.append(standin.double(trt.IRuntimeConfig, object()))
        return made[-1]

    monkeypatch.setattr(standin.EngineDoes, "create_runtime_config", config)
    assert ask(bench.loaded(cuda_graphs=True), x=rows(2))["y"].tolist() == (rows(2) * 2).tolist()
    assert [item.cuda_graph_strategy for item in made] == [trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE]


def test_an_engine_is_built_once_for_each_set_of_options(bench, monkeypatch):
    built = []

    def noted(library, path, wanted):
        built.append(wanted)
        return build(library, path, wanted)

    monkeypatch.setattr(predictor_module, "build", noted)
    for max_batch in (8, 8, 16):
        bench.loaded(max_batch=max_batch)
    assert [wanted.sizes.batch[2] for wanted in built] == [8, 16]
    bench.loaded(engine_cache="")
    assert len(built) == 3


def test_of_two_that_start_at_once_one_builds_and_the_other_finds_the_engine(bench, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    first, second = bench.predictor(), bench.predictor()
    builds, waiter = [], threading.Thread(target=second.load)

    def slow(library, path, wanted):
        builds.append(path)
        waiter.start()
        assert eventually(lambda: "another process builds an engine" in caplog.text)
        return build(library, path, wanted)

    monkeypatch.setattr(predictor_module, "build", slow)
    assert first.load()
    waiter.join()
    assert second.ready
    assert len(builds) == 1


@pytest.mark.parametrize("left", [b"", b"junk" * 100, None])
def test_a_kept_engine_that_is_damaged_is_built_anew(bench, caplog, left):
    bench.loaded()
    (kept,) = (bench.folder / "engines").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] if left is None else left)
    assert ask(bench.loaded(), x=rows(1))["y"].tolist() == [[0, 2]]
    assert "an engine in the cache is no good, and built anew" in caplog.text
    assert len(kept.read_bytes()) == len(whole)


@pytest.mark.parametrize("rtx", [True, False])
@pytest.mark.parametrize("damage", [lambda plan: b"", lambda plan: b"junk" * 100, lambda plan: plan[:-1]])
def test_a_plan_that_is_none_or_cut_off_cannot_be_served_and_the_way_out_is_said(bench, plan, damage, rtx):
    path = bench.folder / "m.plan"
    path.write_bytes(damage(plan))
    with pytest.raises(CannotStart) as found:
        bench.predictor(model_path=str(path), rtx=rtx).load()
    assert f"{path} is not an engine that TensorRT" in str(found.value)
    assert "on Stand-in (compute capability 9.0): " in str(found.value)
    assert "gives no reason" not in str(found.value)
    assert "set KSERVEKIT_TENSORRT_MODEL_PATH to the ONNX file, and it is built here" in str(found.value)
    path.write_bytes(plan)
    assert ask(bench.loaded(model_path=str(path), rtx=rtx), x=rows(1))["y"].tolist() == [[0, 2]]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ("VERSION_MISMATCH", "another version built it"),
        ("UNSUPPORTED_CC", "it was built for other GPUs"),
        ("OLD_CUDA_DRIVER", "the GPU's driver is too old for it"),
    ],
)
def test_an_engine_of_another_version_or_for_another_gpu_is_refused(bench, plan, monkeypatch, found, reason):
    diagnosis = trt.EngineInvalidityDiagnostics.__members__[found].value
    monkeypatch.setattr(
        standin.RuntimeDoes, "get_engine_validity", lambda self, plan: (trt.EngineValidity.INVALID, diagnosis)
    )
    (bench.folder / "m.engine").write_bytes(plan)
    with pytest.raises(CannotStart, match=rf"\(compute capability 9\.0\): {reason}; build it with this version"):
        bench.predictor(model_path=str(bench.folder / "m.engine")).load()


def test_an_engine_that_tensorrt_itself_refuses_is_refused_in_its_words(bench, plan, monkeypatch):
    def refuse(self, plan):
        said = "expecting compute 8.9 got compute 9.0, please rebuild."
        self._notes.log(
            trt.ILogger.Severity.ERROR,
            "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is generated on an "
            f"incompatible device, {said} In validate at /_src/runtime/x.cpp:1)",
        )

    monkeypatch.setattr(standin.RuntimeDoes, "deserialize_cuda_engine", refuse)
    (bench.folder / "m.plan").write_bytes(plan)
    with pytest.raises(CannotStart, match=r"expecting compute 8\.9 got compute 9\.0, please rebuild\); build it"):
        bench.predictor(model_path=str(bench.folder / "m.plan"), rtx=False).load()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"model_path": "m.pt"}, r"MODEL_PATH is 'm\.pt': expected \.onnx, \.plan or \.engine"),
        ({"model_path": "gone.plan"}, r"MODEL_PATH is 'gone\.plan': no such file"),
        ({"contexts": 0}, "CONTEXTS is 0: expected 1 or more"),
        ({"min_batch": 9}, "_MAX_BATCH are 9, 8, 8: expected three numbers"),
        ({"sizes": "height"}, "SIZES has 'height': expected"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_a_gpu_is_touched(bench, settings, complaint):
    predictor = bench.predictor(**settings)
    bench.monkeypatch.setattr(cuda, "load", lambda extra: pytest.fail("CUDA was asked"))
    with pytest.raises(CannotStart, match=complaint):
        predictor.load()


def test_settings_that_only_a_build_takes_say_so_of_an_engine_that_is_built(bench, plan, caplog):
    (bench.folder / "m.plan").write_bytes(plan)
    bench.loaded(model_path=str(bench.folder / "m.plan"), precision=("fp16",))
    assert "KSERVEKIT_TENSORRT_PRECISION and _SIZES say how an engine is built" in caplog.text


DATATYPES_OF_TENSORRT = list(trt.DataType.__members__.values())


def contradiction(shapes):
    raise RuntimeError


REFUSED = [trt.fp8, trt.fp4, trt.int4, trt.e8m0]


def declared(bench, plan, datatype):
    library = standin.library(bench.gpu, Model(datatypes={"x": datatype}))
    return deserialize(library, plan, "m.plan", Gpu("Any", "9.0")).spec.inputs[0].datatype


@pytest.mark.parametrize("datatype", [item for item in DATATYPES_OF_TENSORRT if item not in REFUSED], ids=str)
def test_a_datatype_is_the_protocols_of_the_same_values(bench, plan, datatype):
    same = DATATYPES["BF16"] if datatype == trt.bfloat16 else np.dtype(trt.nptype(datatype))
    assert DATATYPES[declared(bench, plan, datatype)] == same


@pytest.mark.parametrize("datatype", REFUSED, ids=str)
def test_a_datatype_that_the_protocol_lacks_is_refused(bench, plan, datatype):
    with pytest.raises(CannotStart, match=f"'x' is {datatype.name}, which the protocol has no datatype for"):
        declared(bench, plan, datatype)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (Model(formats={"x": trt.TensorFormat.CHW32}), "'x' has its values in the order CHW32"),
        (Model(locations={"x": trt.TensorLocation.HOST}), "the values of 'x' are the sizes of another tensor"),
        (Model(shapes=contradiction), r"context 1 of 1 cannot be made: .* shapes together: 'x' \[8, 2\]"),
        (Model(shapes=lambda shapes: {"y": (-1, 2)}), "size of output 'y' depends on the values"),
    ],
)
def test_an_engine_that_this_predictor_does_not_serve_is_refused_with_the_reason(bench, model, complaint):
    with pytest.raises(CannotStart, match=complaint):
        bench.predictor(model).load()
    assert bench.gpu.used == 0


def test_where_memory_is_short_the_setting_is_named_and_all_of_it_given_back(bench):
    bench.gpu.memory = 3 * 1024
    with pytest.raises(CannotStart) as found:
        bench.predictor(contexts=4).load()
    assert "context 4 of 4 cannot be made: cudaMalloc: out of memory (cudaErrorMemoryAllocation)" in str(found.value)
    assert "set KSERVEKIT_TENSORRT_CONTEXTS or _MAX_BATCH to less" in str(found.value)
    assert bench.gpu.used == 0
    bench.loaded(contexts=3)


def test_an_unloaded_model_gives_the_gpu_back_and_can_be_loaded_again(bench):
    predictor = bench.loaded(contexts=3)
    assert bench.gpu.used > 0
    predictor.stop()
    predictor.stop()
    assert bench.gpu.used == 0
    with pytest.raises(Unavailable, match="taken out of service"):
        ask(predictor, x=rows(1))
    assert predictor.load()
    assert ask(predictor, x=rows(1))["y"].tolist() == [[0, 2]]


def test_a_gpu_that_fails_makes_the_model_unready_and_ends_the_process_once(bench, caplog, monkeypatch):
    predictor = bench.loaded()
    bench.gpu.failure = runtime.cudaError_t.cudaErrorIllegalAddress
    ended = []
    monkeypatch.setattr(os, "kill", lambda *what: ended.append(what))
    for _ in range(2):
        with pytest.raises(Unavailable, match="this server's GPU failed"):
            ask(predictor, x=rows(1))
    assert ended == [(os.getpid(), signal.SIGTERM)]
    assert not predictor.ready
    assert "to be started anew: cudaStreamSynchronize: an illegal memory access was encountered" in caplog.text


def test_a_run_that_the_engine_refuses_fails_alone(bench, monkeypatch):
    predictor = bench.loaded()
    with monkeypatch.context() as once:
        context = predictor._idle.get_nowait()
        once.setattr(context._handle.execute_async_v3, "side_effect", lambda stream: False)
        predictor._idle.put(context)
        with pytest.raises(ModelError, match="the engine does not run"):
            ask(predictor, x=rows(1))
    assert predictor.ready
    assert ask(predictor, x=rows(1))["y"].tolist() == [[0, 2]]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    settings = {
        "KSERVEKIT_TENSORRT_MODEL_PATH": str(write_doubles(folder / "m.onnx")),
        "KSERVEKIT_TENSORRT_ENGINE_CACHE": str(folder / "engines"),
        "KSERVEKIT_TENSORRT_CONTEXTS": "2",
        "KSERVEKIT_REPOSITORY_API": "true",
    }
    target = f"{Path(standin.__file__).with_name('served_tensorrt.py')}:OnStandIn"
    with LocalServer(target, model_name="m", settings=settings) as server:
        yield server


@pytest.mark.parametrize("wire", WIRES)
def test_an_engine_answers_over_every_wire_and_says_its_maximum(served, wire):
    assert served_answer(served, wire, rows(3)) == (rows(3) * 2).tolist()
    with pytest.raises(InvalidInput, match=r"'x' has shape \[9, 2\]: this engine takes \[1, 2\] to \[8, 2\]"):
        served_answer(served, wire, rows(9))
    assert served_answer(served, wire, rows(8)) == (rows(8) * 2).tolist()


def served_answer(served, wire, values):
    (only,) = calls.ask(served, wire, {"x": values}).tensors.values()  # v1 has no name for it
    return only.tolist()


def test_an_engine_is_unloaded_and_loaded_again_on_request(served):
    metadata = calls.http(served.http_url, "/v2/models/m").json
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    assert calls.http(served.http_url, "/v2/repository/models/m/unload", {}).status == 200
    with pytest.raises(Unavailable):
        served_answer(served, "v2 gRPC", rows(1))
    assert calls.http(served.http_url, "/v2/repository/models/m/load", {}).status == 200
    assert served_answer(served, "v2 gRPC", rows(1)) == [[0, 2]]


def test_the_log_says_that_it_is_experimental(bench, caplog):
    bench.loaded()
    assert "TensorRTPredictor is experimental" in caplog.text


def test_the_stand_in_has_nothing_that_the_library_has_not(bench):
    engine = standin.double(trt.ICudaEngine, standin.EngineDoes(bench.gpu, Model()))
    with pytest.raises(AttributeError):
        engine.get_binding_shape(0)  # TensorRT 8's
    with pytest.raises(AssertionError, match="get_tensor_shape takes"):
        engine.get_tensor_shape("x", 0)
    with pytest.raises(TypeError, match="positional arguments"):
        bench.gpu.module.cudaMalloc(1, 2)


def gpu():
    """The GPU that there is; else the reason why there is none."""
    try:
        return tensorrt_runtime.gpu(cuda.load("tensorrt")), ""
    except CannotStart as error:
        return None, str(error)


def test_without_a_gpu_it_cannot_start_and_says_why(tmp_path):
    if gpu()[0]:
        pytest.skip(f"there is {gpu()[0]}")
    settings = TensorRTSettings(model_path=str(write_doubles(tmp_path / "m.onnx")))
    with pytest.raises(CannotStart, match=r"no NVIDIA GPU with a driver .* \(OnnxPredictor serves ONNX files"):
        TensorRTPredictor(settings=settings).load()


def test_without_a_driver_a_good_engine_is_refused_for_the_driver(plan):
    if gpu()[0]:
        pytest.skip(f"there is {gpu()[0]}")
    with pytest.raises(CannotStart, match=r"CUDA driver version is insufficient .* the GPU driver is installed"):
        deserialize(tensorrt_runtime.tensorrt(), plan, "m.plan", Gpu("None", "0.0"))


@pytest.fixture
def on_the_gpu(tmp_path, caplog):
    """A predictor on the real GPU, loaded; skips with the reason where there is none, or one that is not served."""
    found, reason = gpu()
    if not found:
        pytest.skip(reason)
    caplog.set_level(logging.WARNING)

    def loaded(shape=("n", 2), **settings):
        path = write_doubles(tmp_path / "m.onnx", shape=shape)
        usual = {"model_path": str(path), "engine_cache": str(tmp_path / "engines")}
        predictor = TensorRTPredictor(settings=TensorRTSettings(**usual | settings))
        try:
            assert predictor.load()
        except CannotStart as error:
            if "it was built for other GPUs" not in str(error):
                raise
            pytest.skip(str(error))
        return predictor

    return loaded


def test_a_gpu_answers_whatever_the_rows(on_the_gpu):
    predictor = on_the_gpu(contexts=2)
    for count in (1, 8, 3):
        assert ask(predictor, x=rows(count, count))["y"].tolist() == (rows(count, count) * 2).tolist()
    with pytest.raises(InvalidInput, match=r"takes \[1, 2\] to \[8, 2\]"):
        ask(predictor, x=rows(9))
    predictor.stop()


def test_a_gpu_serves_callers_at_once_and_in_batches(on_the_gpu):
    predictor = on_the_gpu(contexts=2, batch_rows=8)

    async def callers():
        sent = [rows(1 + at % 5, at) for at in range(200)]
        answers = await asyncio.gather(*(predictor.infer({"x": values}) for values in sent))
        await predictor.close()
        return zip(sent, answers, strict=True)

    for values, answer in asyncio.run(callers()):
        assert answer["y"].tolist() == (values * 2).tolist()
    predictor.stop()


def test_a_gpu_plays_graphs_of_fixed_shapes(on_the_gpu, caplog):
    predictor = on_the_gpu(shape=(3, 2), cuda_graphs=True)
    for start in range(5):
        assert ask(predictor, x=rows(3, start))["y"].tolist() == (rows(3, start) * 2).tolist()
    assert "no CUDA graph" not in caplog.text
    predictor.stop()


def test_a_gpu_takes_a_kept_engine_and_refuses_a_damaged_plan(on_the_gpu, tmp_path):
    on_the_gpu().stop()
    (kept,) = (tmp_path / "engines").iterdir()
    predictor = on_the_gpu(model_path=str(kept))
    assert ask(predictor, x=rows(1))["y"].tolist() == [[0, 2]]
    predictor.stop()
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(CannotStart, match="is not an engine that TensorRT"):
        on_the_gpu(model_path=str(kept))
