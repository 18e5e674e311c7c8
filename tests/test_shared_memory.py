"""Tensors through system shared memory, with the real Triton at the other end."""

import asyncio
import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import write_doubles
from hypothesis import given, settings
from hypothesis import strategies as st
from test_readme import block

from kservekit import cuda, errors
from kservekit.codec.message import Request
from kservekit.local.triton import TritonServer, reserved_ports
from kservekit.oip import connect, regions, shared_memory
from kservekit.oip.grpc import GrpcBackend
from kservekit.oip.regions import Exhausted, Regions, left_behind
from kservekit.oip.shared_memory import SharedMemoryBackend
from kservekit.oip.triton_messages import messages
from kservekit.predictors.repository import write_model
from kservekit.serving import Transformer
from kservekit.tensors import DATATYPES, ModelSpec, TensorSpec

pytestmark = pytest.mark.skipif(not regions.FOLDER.is_dir(), reason=f"there is no {regions.FOLDER}")

# What is given comes back; an input `head` says how many elements of FP32 do.
ECHO_IN_TRITON = """
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
            given = {tensor.name(): tensor for tensor in request.inputs()}
            values = {}
            for name, tensor in given.items():
                if name == "BF16":
                    values["out_BF16"] = triton.Tensor.from_dlpack("out_BF16", tensor.to_dlpack())
                elif name not in ("head", "seconds"):
                    value = tensor.as_numpy()
                    if "head" in given:
                        value = value[: int(given["head"].as_numpy()[0])]
                    values[f"out_{name}"] = triton.Tensor(f"out_{name}", value)
            if "seconds" in given:
                time.sleep(float(given["seconds"].as_numpy()[0]))
            if "FP64" in given and (given["FP64"].as_numpy() < 0).any():
                answers.append(triton.InferenceResponse([], triton.TritonError("negative")))
                continue
            values["runs"] = triton.Tensor("runs", np.array([runs], np.int64))
            answers.append(triton.InferenceResponse(list(values.values())))
        return answers
"""

OUTPUTS_IN_TRITON = """
import triton_python_backend_utils as triton

class TritonPythonModel:
    def execute(self, requests):
        given = [triton.get_input_tensor_by_name(request, "FP32").as_numpy() for request in requests]
        return [triton.InferenceResponse([triton.Tensor(name, x) for name in {names}]) for x in given]
"""

ECHO = ModelSpec(
    (
        *(TensorSpec(name, name, (-1,), optional=True) for name in DATATYPES),
        TensorSpec("head", "INT32", (1,), optional=True),
        TensorSpec("seconds", "FP32", (1,), optional=True),
    ),
    (*(TensorSpec(f"out_{name}", name, (-1,)) for name in DATATYPES), TensorSpec("runs", "INT64", (1,))),
)


@pytest.fixture(scope="module")
def echoes(local_triton, tmp_path_factory):
    folder = tmp_path_factory.mktemp("echo")
    (folder / "model.py").write_text(ECHO_IN_TRITON)
    write_model(folder / "repository", "echo", ECHO, {"model.py": folder / "model.py"})
    return local_triton(folder / "repository")


def through(triton, ask, **options):
    """What `ask(backend)` gives; nothing of the backend's is left behind after it."""

    async def main():
        backend = SharedMemoryBackend(GrpcBackend(triton.grpc_url), **options)
        try:
            return await ask(backend)
        finally:
            owner = backend.regions._owner
            names = {item for item in await registered(backend) if item.startswith(owner)}
            await backend.close()
            assert list(regions.FOLDER.glob(f"{owner}*")) == []
            assert not names & set(await registered(backend))
            await backend.wire.close()

    return asyncio.run(main())


async def registered(backend):
    reply = await backend.wire.stub().SystemSharedMemoryStatus(messages.SystemSharedMemoryStatusRequest(), timeout=5)
    return list(reply.regions)


async def until(condition):
    while not condition():  # noqa: ASYNC110  nothing tells of it
        await asyncio.sleep(0.01)


def echo(tensors, **more):
    return Request(tensors, model="echo", **more)


def numbers(count=32 * 1024, dtype=np.float32):
    return np.random.default_rng(7).integers(0, 2 if dtype == np.bool_ else 100, count).astype(dtype)


@pytest.mark.parametrize("datatype", sorted(set(DATATYPES) - {"BYTES"}))
def test_every_datatype_comes_back_bit_for_bit_by_both_ways(echoes, datatype):
    given = numbers(128 * 1024, DATATYPES[datatype])

    async def ask(backend):
        learns = await backend.infer(echo({datatype: given}, id="first"))
        knows = await backend.infer(echo({datatype: given[::-1]}, id="second"))
        assert (learns.id, knows.id, knows.model, knows.version) == ("first", "second", "echo", "1")
        return learns, knows, backend.regions.bytes, await registered(backend)

    learns, knows, taken, names = through(echoes, ask)
    for answer, expected in ((learns, given), (knows, given[::-1])):
        found = answer.tensors[f"out_{datatype}"]
        assert found.dtype == expected.dtype
        assert found.tobytes() == expected.tobytes()
    assert taken >= given.nbytes
    assert any(name.startswith(regions.PREFIX) for name in names)


def test_bytes_travel_beside_a_large_tensor(echoes):
    words = np.array([b"", b"\xff\0", b"abc"], object)

    async def ask(backend):
        await backend.infer(echo({"BYTES": words, "FP32": numbers()}))
        return await backend.infer(echo({"BYTES": words, "FP32": numbers()}))

    answer = through(echoes, ask)
    assert answer.tensors["out_BYTES"].tolist() == words.tolist()
    assert (answer.tensors["out_FP32"] == numbers()).all()


def test_small_tensors_and_empty_ones_go_by_grpc(echoes):
    async def ask(backend):
        small = await backend.infer(echo({"FP32": numbers(5)}))
        empty = await backend.infer(echo({"FP32": numbers(), "INT8": numbers(0, np.int8)}))
        assert backend.regions.bytes == 0
        return small.tensors["out_FP32"].shape, empty.tensors["out_INT8"].shape

    assert through(echoes, ask) == ((5,), (0,))


def test_requested_outputs_are_the_ones_that_come(echoes):
    async def ask(backend):
        asked = echo({"FP32": numbers(), "FP64": numbers(dtype=np.float64)}, outputs={"out_FP64": {}})
        return [list((await backend.infer(asked)).tensors) for _ in range(2)]

    assert through(echoes, ask) == [["out_FP64"]] * 2


def test_an_output_that_is_asked_for_as_classes_comes_as_classes_whatever_is_known_of_its_size(echoes):
    async def ask(backend):
        values = numbers()
        values[5] = 1000
        for parameters in ({}, {"classification": 1}):
            answer = await backend.infer(echo({"FP32": values}, outputs={"out_FP32": parameters}))
        return answer.tensors["out_FP32"].tolist()

    assert through(echoes, ask) == [b"1000.000000:5"]


def test_many_at_once_get_each_their_own(echoes):
    async def ask(backend):
        given = [np.full(32 * 1024, at, np.float32) for at in range(24)]
        for _ in range(2):
            answers = await asyncio.gather(*(backend.infer(echo({"FP32": values})) for values in given))
            assert [set(answer.tensors["out_FP32"]) for answer in answers] == [{at} for at in range(24)]

    through(echoes, ask)


def test_what_does_not_fit_in_the_bound_goes_by_grpc(echoes):
    async def ask(backend):
        given = [np.full(32 * 1024, at, np.float32) for at in range(6)]
        answers = await asyncio.gather(*(backend.infer(echo({"FP32": values})) for values in given))
        assert [set(answer.tensors["out_FP32"]) for answer in answers] == [{at} for at in range(6)]
        assert backend.regions.bytes == 2**18

    through(echoes, ask, max_bytes=2**18 + 1)


def test_a_machine_without_memory_left_answers_by_grpc(echoes, monkeypatch, caplog):
    def full(*_):  # stands in for a /dev/shm that is full
        raise OSError(28, "No space left on device")

    async def ask(backend):
        return await backend.infer(echo({"FP32": numbers()}))

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert (through(echoes, ask).tensors["out_FP32"] == numbers()).all()
    assert "No space left on device" in caplog.text


def test_outputs_whose_size_the_inputs_do_not_tell_are_asked_for_once_more_and_then_go_by_grpc(echoes):
    async def ask(backend):
        runs = []
        for head in (20_000, 30_000, 31_000):
            answer = await backend.infer(echo({"FP32": numbers(), "head": np.array([head], np.int32)}))
            assert answer.tensors["out_FP32"].shape == (head,)
            runs.append(answer.tensors["runs"][0])
        return list(np.diff(runs))

    assert through(echoes, ask) == [2, 1]


def test_a_model_that_has_other_outputs_after_a_reload_gives_them(tmp_path, monkeypatch):
    def write(*names):
        (tmp_path / "model.py").write_text(OUTPUTS_IN_TRITON.format(names=names))
        spec = ModelSpec((TensorSpec("FP32", "FP32", (-1,)),), tuple(TensorSpec(name, "FP32", (-1,)) for name in names))
        write_model(tmp_path / "repository", "changing", spec, {"model.py": tmp_path / "model.py"})

    async def ask(backend):
        async def twice():  # learns, and knows
            request = Request({"FP32": numbers()}, model="changing")
            answers = [set((await backend.infer(request)).tensors) for _ in range(2)]
            assert backend._learned
            return answers

        found = []
        # One output more is seen by a look at the model, one that is gone by the server's refusal too.
        for believed_s, names in ((0, ("first", "second")), (3600, ("second",))):
            monkeypatch.setattr(shared_memory, "BELIEVED_S", believed_s)
            found.append(await twice())
            write(*names)
            asked = messages.RepositoryModelLoadRequest(model_name="changing")
            await backend.wire.stub().RepositoryModelLoad(asked, timeout=60)
        return [*found, await twice()]

    write("first")
    with TritonServer(tmp_path / "repository", arguments=["--model-control-mode=explicit", "--load-model=*"]) as triton:
        assert through(triton, ask) == [[{"first"}] * 2, [{"first", "second"}] * 2, [{"second"}] * 2]


def test_a_local_tritons_own_memory_is_not_taken_for_a_region_that_was_left_behind(echoes):
    own = list(regions.FOLDER.glob(f"kservekit-{os.getpid()}-*"))
    assert own
    for path in own:
        os.utime(path, (1, 1))
    list(left_behind())
    assert all(path.exists() for path in own)


def test_a_model_with_a_state_never_runs_twice(echoes):
    async def ask(backend):
        runs = []
        for head in (20_000, 30_000, 31_000):
            tensors = {"FP32": numbers(), "head": np.array([head], np.int32)}
            answer = await backend.infer(echo(tensors, parameters={"sequence_id": 5, "sequence_start": True}))
            runs.append(answer.tensors["runs"][0])
        return list(np.diff(runs))

    assert through(echoes, ask) == [1, 1]


def test_after_the_models_error_the_region_serves_the_next(echoes):
    async def ask(backend):
        values = numbers(dtype=np.float64)
        for _ in range(3):
            with pytest.raises(errors.ModelError):
                await backend.infer(echo({"FP64": -1 - values}))
        assert backend.regions.bytes == 2**18
        assert (await backend.infer(echo({"FP64": values}))).tensors["out_FP64"].tobytes() == values.tobytes()
        assert backend.regions.bytes == 2**18

    through(echoes, ask)


@pytest.mark.parametrize("end", ["cancelled", "late"])
def test_a_region_is_nobody_elses_while_triton_may_be_at_it(echoes, end):
    async def ask(backend):
        slow = echo({"FP32": numbers(), "seconds": np.array([0.5], np.float32)})
        if end == "late":
            slow.deadline = time.monotonic() + 0.2
            with pytest.raises(errors.DeadlineExceeded):
                await backend.infer(slow)
        else:
            region = backend.regions.take(2**18)
            assert await backend._register(region)  # what is known to Triton is taken at once
            backend.regions.give_back(region)
            task = asyncio.create_task(backend.infer(slow))
            await until(lambda: not backend.regions._idle)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert [region.size for _, region in backend.regions._quarantined] == [backend.regions.bytes]
        other = np.full(32 * 1024, 3, np.float32)
        assert (await backend.infer(echo({"FP32": other}))).tensors["out_FP32"].tobytes() == other.tobytes()

    through(echoes, ask)


def inputs_sent(backend):
    """Of each request from now on, in which region each input was said to be."""
    sent, call = [], backend.wire.call

    async def noted(message, request):
        found = messages.ModelInferRequest.FromString(message)
        sent.append({item.name: item.parameters["shared_memory_region"].string_param for item in found.inputs})
        return await call(message, request)

    backend.wire.call = noted
    return sent


def filled(backend, values):
    array = backend.empty(values.shape, values.dtype)
    array[...] = values
    return array


def test_an_array_that_was_made_in_shared_memory_is_sent_as_it_lies_there(echoes):
    async def ask(backend):
        for at in range(5):
            array = filled(backend, np.full(32 * 1024, at, np.float32))
            answer = await backend.infer(echo({"FP32": array, "head": np.array([3], np.int32)}))
            assert answer.tensors["out_FP32"].tolist() == [at] * 3
            del array
        # 128 KiB are the array's. Next to them were 64 for the other input, 4 bytes that had to be copied.
        assert sorted(region.size for region in backend.regions._idle) == [2**16, 2**17]

    through(echoes, ask)


def test_a_part_of_such_an_array_is_sent_from_where_it_begins_and_one_in_another_order_is_copied(echoes):
    async def ask(backend):
        array, sent = filled(backend, numbers(2**17).reshape(4, -1)), inputs_sent(backend)
        for part in (array[1], array[1:3].reshape(-1), array[:, 2**14 :].reshape(-1), array[3, ::-1]):
            answer = await backend.infer(echo({"FP32": part}))
            assert (answer.tensors["out_FP32"] == part).all()
        region, _ = backend.regions.place(array.data)
        assert [item["FP32"] == region.name for item in sent] == [True, True, False, False]

    through(echoes, ask)


def test_what_a_model_answered_is_the_next_ones_input_without_a_copy(echoes):
    async def ask(backend):
        tensors = {"FP32": numbers()}
        for _ in range(2):  # learns, and knows
            answer = await backend.infer(echo(tensors))
        values = answer.tensors["out_FP32"]
        region, _ = backend.regions.place(values.data)
        sent = inputs_sent(backend)
        answer = await backend.infer(echo({"FP32": values, "head": np.array([3], np.int32)}))
        assert answer.tensors["out_FP32"].tolist() == numbers()[:3].tolist()
        assert sent[0]["FP32"] == region.name != sent[0]["head"]

    through(echoes, ask)


def test_one_array_may_be_of_many_requests_at_once(echoes):
    async def ask(backend):
        array, sent = filled(backend, numbers()), inputs_sent(backend)
        answers = await asyncio.gather(*(backend.infer(echo({"FP32": array})) for _ in range(12)))
        assert all((answer.tensors["out_FP32"] == numbers()).all() for answer in answers)
        assert sent == [{"FP32": backend.regions.place(array.data)[0].name}] * 12

    through(echoes, ask)


def test_threads_make_arrays_while_the_loop_sends_others(echoes):
    """Each is filled with its own number, sent, and gone before the next, in a pool that has too little for all."""

    async def ask(backend):
        def made(at):
            return filled(backend, np.full(32 * 1024, at, np.float32))

        async def one(caller):
            for step in range(20):
                at = caller * 100 + step
                array = await asyncio.to_thread(made, at)
                answer = await backend.infer(echo({"FP32": array}))
                assert (answer.tensors["out_FP32"] == at).all()
                del array, answer

        await asyncio.gather(*map(one, range(8)))

    through(echoes, ask, max_bytes=2**20)


def test_what_is_small_has_no_fixed_size_or_does_not_fit_is_an_ordinary_array(echoes):
    async def ask(backend):
        small, words = backend.empty((3,), np.float32), backend.empty((2**14,), object)
        first, second = backend.empty((2**15,), np.float32), backend.empty((2**15,), np.float32)
        assert [array.shape for array in (small, words, first, second)] == [(3,), (2**14,), (2**15,), (2**15,)]
        assert backend.regions.bytes == 2**17
        second[...] = numbers()
        assert ((await backend.infer(echo({"FP32": second}))).tensors["out_FP32"] == numbers()).all()

    through(echoes, ask, max_bytes=2**17)


@pytest.mark.parametrize("end", ["cancelled", "late"])
def test_an_array_that_triton_may_still_read_is_never_anothers_memory(echoes, end):
    async def ask(backend):
        array = filled(backend, numbers())
        slow = echo({"FP32": array, "seconds": np.array([0.5], np.float32)})
        if end == "late":
            slow.deadline = time.monotonic() + 0.2
            with pytest.raises(errors.DeadlineExceeded):
                await backend.infer(slow)
        else:
            for _ in range(2):  # what is known to Triton is sent at once
                await backend.infer(echo(slow.tensors | {"seconds": np.zeros(1, np.float32)}))
            task = asyncio.create_task(backend.infer(slow))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            del task
        assert (array == numbers()).all()  # its owner has it as long as he likes
        size = array.nbytes
        del array, slow
        async with asyncio.timeout(10):  # the call that was given up is told so in a while, and errors have frames
            await until(
                lambda: gc.collect() >= 0 and size in [region.size for _, region in backend.regions._quarantined]
            )

    through(echoes, ask)


def test_the_readmes_transformer_makes_its_tensor_there(echoes):
    names = {"np": np, "Transformer": Transformer}
    exec(block("python", "class Scans"), names)
    scans = numbers(2**16, np.uint16).reshape(1, 1, 256, 256) * 655

    async def ask(backend):
        found = names["Scans"]("m", backend=backend).to_tensors({"scans": scans})["scans"]
        assert backend.regions.place(found.data)
        assert np.allclose(found, scans / 65535)

    through(echoes, ask)


def test_an_array_outlives_the_pool(echoes):
    async def ask(backend):
        return filled(backend, numbers())

    assert (through(echoes, ask) == numbers()).all()


def test_after_tritons_restart_regions_are_registered_again(local_triton, tmp_path):
    write_doubles(tmp_path / "repository", tmp_path)
    with reserved_ports({"grpc_port": None}) as ports:
        pass
    request = Request({"x": np.ones((8, 3), np.float32)}, model="doubles")

    async def main():
        backend = SharedMemoryBackend(GrpcBackend(f"127.0.0.1:{ports['grpc_port']}"))
        kept = filled(backend, np.full((8, 3), 4, np.float32))
        try:
            for life in range(3):
                with TritonServer(tmp_path / "repository", grpc_port=ports["grpc_port"]) as triton:
                    while not await backend.ready("doubles"):  # noqa: ASYNC110  gRPC connects again in its own time
                        await asyncio.sleep(0.05)
                    for _ in range(3):
                        assert (await backend.infer(request)).tensors["y"].max() == 2
                    answer = await backend.infer(Request({"x": kept}, model="doubles"))
                    assert answer.tensors["y"].max() == 8
                    del answer
                    assert len(await registered(backend)) == 2
                    if life == 1:  # the last life's end is met by a request in flight
                        slow = asyncio.create_task(
                            backend.infer(Request({"x": np.full((8, 3), 99, np.float32)}, model="doubles"))
                        )
                        await until(lambda: not backend.regions._idle)
                        triton._process.kill()
                        with pytest.raises(errors.Unavailable):
                            await slow
                    taken = backend.regions.bytes
                with pytest.raises(errors.Unavailable):
                    await backend.infer(request)
            return taken
        finally:
            await backend.close()

    original, shared_memory.LEAST_BYTES = shared_memory.LEAST_BYTES, 1
    try:
        assert asyncio.run(main()) == 2 * 2**16
    finally:
        shared_memory.LEAST_BYTES = original


def test_a_server_without_the_extension_gets_all_by_grpc(predictor):
    async def main():
        backend = SharedMemoryBackend(GrpcBackend(predictor.grpc_url))
        rows = np.ones((8, 3), np.float32).repeat(3000, axis=0)
        with pytest.raises(errors.ServingError):  # more rows than Triton's model takes; not a word of shared memory
            await backend.infer(Request({"x": rows}, model="doubles"))
        assert backend.regions.bytes == 0
        await backend.close()

    asyncio.run(main())


def test_what_lies_on_a_gpu_reaches_a_triton_that_has_none(echoes, monkeypatch, caplog):
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not for this machine")
    from standin_cuda import Gpu
    from test_cuda_memory import Arrays

    gpu = Gpu()
    monkeypatch.setattr(cuda, "load", lambda extra: gpu.cuda)
    array = Arrays(gpu).by_dlpack(numbers())

    async def ask(backend):
        answers = [await backend.infer(Request({}, model="echo", gpu_tensors={"FP32": array})) for _ in range(2)]
        assert backend.regions.bytes
        return answers

    for answer in through(echoes, ask, max_bytes=2**21):
        assert answer.tensors["out_FP32"].tobytes() == numbers().tobytes()
    (line,) = [line for line in caplog.messages if "copied to the host" in line]
    assert "cannot open our memory of GPU 0: failed to register shared memory region: invalid args" in line


@pytest.mark.parametrize(
    ("host", "bytes_", "expected"),
    [
        ("localhost:8001", 1024, SharedMemoryBackend),
        ("127.0.0.1:8001", 1024, SharedMemoryBackend),
        ("[::1]:8001", 1024, SharedMemoryBackend),
        ("localhost:8001", 0, GrpcBackend),
        ("triton.models:8001", 1024, GrpcBackend),
        ("localhost.example:8001", 1024, GrpcBackend),
    ],
)
def test_shared_memory_is_for_a_server_on_this_machine(host, bytes_, expected):
    from kservekit.config import BackendSettings

    assert type(connect(host, settings=BackendSettings(shared_memory_bytes=bytes_)).wire) is expected


LEAVES_ONE = """
import os, signal, sys
from kservekit.oip.regions import Regions
pool = Regions(2**20, dropped=None)
region = pool.take(1)
print(region.name, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_and_what_somebody_has_is_not(echoes):
    left = subprocess.run([sys.executable, "-c", LEAVES_ONE], capture_output=True, text=True).stdout.strip()
    foreign = regions.FOLDER / f"not-{regions.PREFIX}{os.getpid()}"
    foreign.touch()
    pool = Regions(2**20, dropped=lambda region: None)
    kept = pool.take(1)
    try:
        for path in (regions.FOLDER / left, regions.FOLDER / kept.name, foreign):
            os.utime(path, (1, 1))

        async def ask(backend):
            request = messages.SystemSharedMemoryRegisterRequest(name=left, key=f"/{left}", offset=0, byte_size=65536)
            await backend.wire.stub().SystemSharedMemoryRegister(request)
            await backend.infer(echo({"FP32": numbers()}))
            return await registered(backend)

        assert left not in through(echoes, ask)
        assert not (regions.FOLDER / left).exists()
        assert (regions.FOLDER / kept.name).exists()
        assert foreign.exists()
    finally:
        foreign.unlink()
        pool.drop_all()
    assert kept.name not in left_behind()


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from(["take", "lend", "back", "lost", "wait"]), st.integers(1, 2**18)), max_size=40)
)
def test_no_two_have_one_region_and_the_bound_holds(steps):
    now = 0.0
    dropped = []
    pool = Regions(2**19, dropped=dropped.append, clock=lambda: now)
    taken, lent, lost, ever = [], {}, set(), set()
    try:
        for what, size in steps:
            if what == "take":
                try:
                    region = pool.take(size)
                except Exhausted:
                    continue
                assert region.size >= size
                assert region not in taken
                assert region not in lost
                assert region not in dropped
                assert not region.map.closed
                taken.append(region)
                ever.add(region)
            elif what == "wait":
                now += regions.QUARANTINE_S
            elif what == "lend" and taken:
                region = taken[size % len(taken)]
                if region not in lent:
                    lent[region] = pool.lend(region, writeable=True)
                    assert pool.place(lent[region][7:].data) == (region, 7)
            elif taken:
                region = taken.pop(size % len(taken))
                if what == "lost":
                    lost.add(region)
                    pool.quarantine(region)
                elif region not in lent:
                    pool.give_back(region)
                lent.pop(region, None)  # and with it the last array
            assert pool.bytes <= pool.max_bytes
            assert pool.bytes == sum(region.size for region in ever if region not in dropped)
    finally:
        for region in taken:
            pool.give_back(region)
        pool.drop_all()
    assert set(dropped) == ever
    assert pool.bytes == 0


def test_a_region_of_two_requests_is_dropped_once():
    dropped = []
    pool = Regions(2**20, dropped=dropped.append)
    region = pool.take(1)
    pool.drop(region)
    pool.drop(region)
    assert (dropped, pool.bytes) == ([region], 0)


def test_a_folder_of_the_pods_group_gives_regions_that_the_group_can_open(tmp_path, monkeypatch):
    monkeypatch.setattr(regions, "FOLDER", Path(tmp_path))
    modes = []
    for bits in (0o2770, 0o770):
        tmp_path.chmod(bits)
        pool = Regions(2**20, dropped=lambda region: None)
        modes.append((tmp_path / pool.take(1).name).stat().st_mode & 0o777)
        pool.drop_all()
    assert modes == [0o660, 0o600]
