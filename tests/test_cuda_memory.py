"""Tensors that lie on a GPU, through CUDA shared memory and, where that cannot be, by way of the host.

On stand-ins for CUDA and for a Triton with a GPU, specified from the real ones; on a GPU if any.
"""

import asyncio
import ctypes
import logging
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not for this machine")

from standin_cuda import LEGACY, PER_THREAD, Gpu, runtime
from standin_triton import StandInTriton, serving
from tritonclient.utils._shared_memory_tensor import SharedMemoryTensor

from kservekit import cuda, gpu_tensors
from kservekit.codec.message import Request
from kservekit.config import BackendSettings, TritonSettings
from kservekit.errors import CannotStart, DeadlineExceeded, ModelError, Unavailable
from kservekit.oip import connect, cuda_memory
from kservekit.oip.grpc import GrpcBackend
from kservekit.oip.regions import QUARANTINE_S
from kservekit.oip.shared_memory import SharedMemoryBackend
from kservekit.predictors.triton import TritonPredictor
from kservekit.serving import Transformer
from kservekit.tensors import DATATYPES

MIB = 2**20


class Arrays:
    """What a library has on the stand-in's GPU."""

    def __init__(self, gpu):
        self.gpu, self.kept = gpu, []

    def empty(self, shape, dtype, device=0):
        with self.gpu.cuda.on(device):
            address = self.gpu.cuda(self.gpu.module.cudaMalloc, max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize))
        return self.gpu.array(address, dtype, shape), address

    def by_dlpack(self, values, device=0, *, stream=LEGACY):
        found, _ = self.empty(values.shape, values.dtype, device)
        found[...] = values
        return ByDlpack(self.gpu, found, device, stream)

    def by_array_interface(self, values, device=0, **said):
        found, address = self.empty(values.shape, values.dtype, device)
        found[...] = values
        return ByArrayInterface(found, address if values.size else 0, said)


class ByDlpack:
    """Its capsules are NumPy's; bfloat16, which NumPy does not give away, tritonclient's."""

    def __init__(self, gpu, values, device, stream):
        self.gpu, self.values, self.device, self.stream = gpu, values, device, stream

    def __dlpack_device__(self):
        return 2, self.device

    def __dlpack__(self, *, stream=None):
        if stream != gpu_tensors.UNORDERED:
            self.gpu.wait(stream, self.stream)
        if self.values.dtype != DATATYPES["BF16"]:
            return self.values.__dlpack__()
        address, size = self.values.ctypes.data, self.values.nbytes
        self.lent = SharedMemoryTensor("BF16", list(self.values.shape), address, 0, size, self.device)
        return self.lent.__dlpack__()


class ByArrayInterface:
    def __init__(self, values, address, said):
        self.values = values
        usual = {"shape": values.shape, "typestr": values.dtype.str, "data": (address, False), "version": 3}
        self.__cuda_array_interface__ = usual | said


@pytest.fixture
def gpu(monkeypatch):
    found = Gpu(devices=2)
    monkeypatch.setattr(cuda, "load", lambda extra: found.cuda)
    return found


def through(gpu, ask, *, max_bytes=4 * MIB, **triton):
    """What `ask(backend, triton)` gives; nothing of the backend's is left on the GPU, nor with the server, after it."""

    async def main():
        server = StandInTriton(gpu, **triton)
        async with serving(server) as port:
            backend = SharedMemoryBackend(GrpcBackend(f"127.0.0.1:{port}"), max_bytes=max_bytes)
            try:
                return await ask(backend, server)
            finally:
                server.answers.set()
                shared = {*map(ctypes.addressof, server.registered.values())}
                await backend.close()
                assert not server.registered
                assert not shared & set(gpu.blocks)
                assert not gpu.streams

    return asyncio.run(main())


def echo(on_gpu, tensors=None, **more):
    return Request(tensors or {}, model="echo", gpu_tensors=on_gpu, **more)


def numbers(count=1000, dtype=np.float32):
    return np.random.default_rng(7).integers(0, 2 if dtype == np.bool_ else 100, count).astype(dtype)


def regions_of(message):
    return {item.name: item.parameters["shared_memory_region"].string_param for item in message.inputs}


@pytest.mark.parametrize("kind", ["by_dlpack", "by_array_interface"])
def test_every_datatype_arrives_bit_for_bit_beside_tensors_on_the_host(gpu, kind):
    values = {name: numbers(dtype=DATATYPES[name]).reshape(10, 100) for name in sorted(set(DATATYPES) - {"BYTES"})}
    if kind == "by_array_interface":
        del values["BF16"]  # it has no name for it
    arrays = {name: getattr(Arrays(gpu), kind)(value) for name, value in values.items()}
    host = {"words": np.array([b"", b"\xff"], object), "h": numbers(3)}

    async def ask(backend, triton):
        answer = await backend.infer(echo(arrays, host, id="7"))
        return answer, triton.asked[0]

    answer, message = through(gpu, ask)
    assert (answer.id, answer.model, answer.version) == ("7", "echo", "1")
    for name, value in values.items():
        assert answer.tensors[f"out_{name}"].dtype == value.dtype
        assert answer.tensors[f"out_{name}"].shape == (10, 100)
        assert answer.tensors[f"out_{name}"].tobytes() == value.tobytes()
        assert regions_of(message)[name]
    assert answer.tensors["out_words"].tolist() == [b"", b"\xff"]
    assert (answer.tensors["out_h"] == numbers(3)).all()
    assert len(message.raw_input_contents) == 2


def test_each_gpu_has_memory_of_its_own(gpu):
    arrays = Arrays(gpu)
    sent = {"a": arrays.by_dlpack(numbers(), 0), "b": arrays.by_dlpack(numbers() + 1, 1)}

    async def ask(backend, triton):
        for _ in range(2):
            answer = await backend.infer(echo(sent))
            assert (answer.tensors["out_b"] - answer.tensors["out_a"] == 1).all()
        return [*map(regions_of, triton.asked)], len(triton.registered)

    (first, second), registered = through(gpu, ask)
    assert first["a"] != first["b"]
    assert first == second
    assert registered == 2


@pytest.mark.parametrize("how", ["dlpack", "stream", "legacy", "unnamed", "per thread"])
def test_what_the_arrays_own_stream_still_does_to_it_is_waited_for(gpu, how):
    own = int(gpu.cuda(gpu.module.cudaStreamCreate))
    stream = {"dlpack": own, "stream": own, "per thread": PER_THREAD}.get(how, LEGACY)
    said = {} if how == "unnamed" else {"stream": stream}
    arrays = Arrays(gpu)
    zeros = np.zeros(100, np.float32)
    array = arrays.by_dlpack(zeros, stream=own) if how == "dlpack" else arrays.by_array_interface(zeros, **said)
    gpu.queue(stream, lambda: array.values.fill(5))

    async def ask(backend, triton):
        answer = await backend.infer(echo({"x": array}))
        gpu.cuda(gpu.module.cudaStreamDestroy, own)
        assert regions_of(triton.asked[0])["x"]
        return answer

    assert set(through(gpu, ask).tensors["out_x"]) == {5}


class NeedsGradient(ByDlpack):
    def __dlpack__(self, *, stream=None):  # as torch.Tensor says it
        raise BufferError("Can't export tensors that require gradient, use tensor.detach()")


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (
            lambda on: on.by_array_interface(numbers(6), shape=(2, 3), strides=(4, 8)),
            "is not row-major: expected x.cont",
        ),
        (lambda on: ByDlpack(on.gpu, numbers(6).reshape(2, 3).T, 0, LEGACY), r"shape \[3, 2\] and strides \[1, 3\]"),
        (lambda on: on.by_array_interface(numbers(6), typestr=">f4"), "of type >f4, which the protocol has not"),
        (lambda on: on.by_array_interface(numbers(6), mask=object()), "is masked"),
        (
            lambda on: ByDlpack(on.gpu, numbers(4).astype(np.complex64), 0, LEGACY),
            "DLPack's type 5 with 1 times 64 bits",
        ),
        (lambda on: NeedsGradient(on.gpu, numbers(6), 0, LEGACY), r"tensor 'x' .* cannot be read: .*use tensor.detach"),
    ],
)
def test_what_cannot_be_sent_as_it_lies_is_refused_with_the_way_out(gpu, make, complaint):
    async def ask(backend, triton):
        with pytest.raises(ModelError, match=complaint):
            await backend.infer(echo({"x": make(Arrays(gpu))}))
        assert not triton.asked

    through(gpu, ask)


def test_strides_that_say_nothing_new_are_row_major(gpu):
    array = Arrays(gpu).by_array_interface(numbers(6), shape=(1, 6), strides=(999, 4))

    async def ask(backend, triton):
        return (await backend.infer(echo({"x": array}))).tensors["out_x"]

    assert through(gpu, ask).tolist() == [numbers(6).tolist()]


def test_an_empty_tensor_goes_by_way_of_the_host(gpu):
    arrays = Arrays(gpu)
    sent = {"x": arrays.by_array_interface(numbers(0)), "y": arrays.by_dlpack(numbers(5))}

    async def ask(backend, triton):
        answer = await backend.infer(echo(sent))
        assert not any(regions_of(triton.asked[0]).values())
        return answer.tensors

    tensors = through(gpu, ask)
    assert tensors["out_x"].shape == (0,)
    assert tensors["out_y"].tolist() == numbers(5).tolist()


@pytest.mark.parametrize(
    ("triton", "memory", "said"),
    [
        ({"extensions": ("system",)}, 2**24, "has not the extension cuda_shared_memory"),
        ({"opens": False}, 2**24, "cannot open our memory of GPU 0: .*failed to open CUDA IPC handle"),
        ({}, 2**20, "no memory to share on the GPU: cudaMalloc: out of memory"),
    ],
)
def test_where_memory_cannot_be_shared_it_goes_by_way_of_the_host_which_is_said_once(gpu, triton, memory, said, caplog):
    gpu.memory = memory
    array = Arrays(gpu).by_dlpack(numbers())
    held = set(gpu.blocks)

    async def ask(backend, triton):
        for _ in range(3):
            assert (await backend.infer(echo({"x": array}))).tensors["out_x"].tobytes() == numbers().tobytes()
        assert not any(any(regions_of(message).values()) for message in triton.asked)
        assert set(gpu.blocks) == held

    through(gpu, ask, **triton)
    lines = [line for line in caplog.messages if "copied to the host" in line]
    assert len(lines) == 1
    assert re.search(said, lines[0])


def test_what_does_not_fit_in_the_pool_goes_by_way_of_the_host_until_there_is_room(gpu, caplog):
    array = Arrays(gpu).by_dlpack(numbers(MIB // 4))  # a MiB

    async def ask(backend, triton):
        triton.answers.clear()
        tasks = [asyncio.create_task(backend.infer(echo({"x": array}))) for _ in range(5)]
        while len(triton.asked) < 5:  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0.01)
        triton.answers.set()
        for answer in await asyncio.gather(*tasks):
            assert answer.tensors["out_x"].tobytes() == numbers(MIB // 4).tobytes()
        await backend.infer(echo({"x": array}))
        return [bool(regions_of(message)["x"]) for message in triton.asked]

    *together, last = through(gpu, ask, max_bytes=2 * MIB)
    assert sorted(together) == [False] * 3 + [True] * 2
    assert last
    assert sum("are in use, or too few for a request" in line for line in caplog.messages) == 1


def test_after_tritons_restart_memory_is_registered_again(gpu):
    array = Arrays(gpu).by_dlpack(numbers())

    async def main():
        backend = None
        port, used = 0, []
        for _ in range(2):
            triton = StandInTriton(gpu)
            async with serving(triton, port) as port:
                backend = backend or SharedMemoryBackend(GrpcBackend(f"127.0.0.1:{port}"), max_bytes=2 * MIB)
                for _ in range(3):
                    answer = await _when_there(backend, echo({"x": array}))
                    assert answer.tensors["out_x"].tobytes() == numbers().tobytes()
                used.append([bool(regions_of(message)["x"]) for message in triton.asked])
                assert len(triton.registered) == 1
        await backend.close()
        return used

    assert asyncio.run(main()) == [[True] * 3, [True, False, True, True]]


async def _when_there(backend, request):
    while True:
        try:
            return await backend.infer(request)
        except Unavailable:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("end", ["late", "cancelled", "cancelled in the copy"])
def test_a_place_is_nobody_elses_while_it_may_be_in_use(gpu, end, monkeypatch):
    array = Arrays(gpu).by_dlpack(numbers())
    copying, go_on = threading.Event(), threading.Event()
    real = gpu_tensors.copy

    def slow(*arguments, **more):
        copying.set()
        go_on.wait(10)
        real(*arguments, **more)

    async def ask(backend, triton):
        await backend.infer(echo({"x": array}))
        triton.answers.clear()
        if end == "late":
            with pytest.raises(DeadlineExceeded):
                await backend.infer(echo({"x": array}, deadline=time.monotonic() + 0.1))
        else:
            if end == "cancelled in the copy":
                monkeypatch.setattr(gpu_tensors, "copy", slow)
            task = asyncio.create_task(backend.infer(echo({"x": array})))
            while not (copying.is_set() or len(triton.asked) > 1):  # noqa: ASYNC110  nothing tells of it
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        go_on.set()
        triton.answers.set()
        await backend.infer(echo({"x": array}))
        *_, last = triton.asked
        return last.inputs[0].parameters["shared_memory_offset"].int64_param

    assert through(gpu, ask) >= array.values.nbytes


def test_a_place_in_quarantine_comes_back_in_the_end():
    now = 0.0
    arena = cuda_memory.Arena("a", 0, 1024, 0, b"", clock=lambda: now)
    assert [arena.take(300), arena.take(100), arena.take(300)] == [0, 512, None]
    arena.quarantine(0)
    assert arena.take(300) is None
    now = QUARANTINE_S
    assert [arena.take(512), arena.take(256)] == [0, 768]
    arena.give_back(512)
    assert [arena.take(257), arena.take(256)] == [None, 512]


def test_a_gpu_that_fails_is_an_error_of_the_request_and_of_no_more(gpu, caplog):
    array = Arrays(gpu).by_dlpack(numbers())

    async def ask(backend, triton):
        gpu.failure = runtime.cudaError_t.cudaErrorIllegalAddress
        with pytest.raises(ModelError, match=r"'x' cannot be copied from the GPU: .*illegal memory access"):
            await backend.infer(echo({"x": array}))
        gpu.failure = runtime.cudaError_t.cudaSuccess
        return (await backend.infer(echo({"x": array}))).tensors["out_x"].tobytes()

    assert through(gpu, ask) == numbers().tobytes()
    assert "a copy on the GPU failed: cudaStreamSynchronize" in caplog.text


def test_a_thread_goes_on_with_the_gpu_that_it_had(gpu):
    gpu.cuda(gpu.module.cudaSetDevice, 1)
    assert gpu_tensors.on_host({"x": Arrays(gpu).by_dlpack(numbers(), 0)})["x"].tolist() == numbers().tolist()
    assert gpu.device == 1


def test_without_cudas_python_the_way_out_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(ModelError, match=r"lies on a GPU, and CUDA's Python .* pip install 'kservekit\[cuda\]'"):
        gpu_tensors.on_host({"x": object()})


def test_the_stand_in_has_nothing_that_cuda_has_not(gpu):
    with pytest.raises(AttributeError):
        gpu.module.cudaIpcGetHandle(0)
    with pytest.raises(TypeError, match="positional argument"):
        gpu.module.cudaIpcGetMemHandle()
    with pytest.raises(cuda.CudaError, match="cudaIpcGetMemHandle: invalid argument"):
        gpu.cuda(gpu.module.cudaIpcGetMemHandle, 1)


class OnTheGpu(Transformer):
    def __init__(self, arrays, backend):
        super().__init__(backend=backend)
        self.arrays = arrays

    def to_tensors(self, tensors):
        return {"x": self.arrays.by_dlpack(tensors["x"] * 2), "y": tensors["x"].tolist()}


class OnTheGpuToo(TritonPredictor):
    def __init__(self, arrays, backend):
        super().__init__("echo", settings=TritonSettings(), backend=backend)
        self.arrays = arrays

    async def infer(self, tensors):
        return await super().infer({"x": self.arrays.by_dlpack(tensors["x"] * 2), "y": tensors["x"]})


@pytest.mark.parametrize("model", [OnTheGpu, OnTheGpuToo])
def test_what_a_handler_made_on_the_gpu_stays_there(gpu, model):
    async def main():
        triton = StandInTriton(gpu)
        async with serving(triton) as port:
            served = model(
                Arrays(gpu), connect(f"127.0.0.1:{port}", settings=BackendSettings(shared_memory_bytes=2 * MIB))
            )
            try:
                return await served.answer(Request({"x": numbers(4)})), triton.asked[0]
            finally:
                await served.close()

    answer, message = asyncio.run(main())
    assert answer.tensors["out_x"].tolist() == (numbers(4) * 2).tolist()
    assert answer.tensors["out_y"].tolist() == numbers(4).tolist()
    assert regions_of(message)["x"]
    assert not regions_of(message)["y"]


@pytest.mark.parametrize("protocol", ["grpc-v2", "v2", "v1"])
def test_every_other_way_takes_it_by_way_of_the_host(gpu, predictor, protocol):
    url = predictor.grpc_url if protocol == "grpc-v2" else predictor.http_url.removeprefix("http://")
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)

    async def main():
        backend = connect(url, protocol)
        try:
            request = Request({}, model="doubles", gpu_tensors={"x": Arrays(gpu).by_dlpack(rows)})
            answer = await backend.infer(request)
            streamed = [item async for item in backend.stream(request)] if protocol != "v1" else []
            return [answer, *streamed]
        finally:
            await backend.close()

    for answer in asyncio.run(main()):
        assert next(iter(answer.tensors.values())).tolist() == (rows * 2).tolist()


READS = """
import ctypes, sys
from cuda.bindings import runtime
from kservekit.cuda import Cuda
cuda, handle = Cuda(runtime), runtime.cudaIpcMemHandle_t()
ctypes.memmove(handle.getPtr(), bytes.fromhex(sys.argv[1]), runtime.CUDA_IPC_HANDLE_SIZE)
address = cuda(runtime.cudaIpcOpenMemHandle, handle, runtime.cudaIpcMemLazyEnablePeerAccess)
found = (ctypes.c_uint8 * int(sys.argv[2]))()
kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
cuda(runtime.cudaMemcpy, ctypes.addressof(found), int(address) + int(sys.argv[3]), len(found), kind)
print(bytes(found).hex())
"""


def test_a_gpus_memory_is_read_by_another_process(caplog):
    try:
        driver = cuda.load("cuda")
        if not driver(runtime.cudaGetDeviceCount):
            pytest.skip("CUDA sees no GPU")
    except (CannotStart, cuda.CudaError) as error:
        pytest.skip(f"no GPU that CUDA can use: {error}")
    values = numbers(1000)
    address = int(driver(runtime.cudaMalloc, values.nbytes))
    to_device = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
    driver(runtime.cudaMemcpy, address, values.ctypes.data, values.nbytes, to_device)
    array = ByArrayInterface(values, address, {"stream": LEGACY})
    assert gpu_tensors.on_host({"x": array})["x"].tobytes() == values.tobytes()
    arena = cuda_memory._made("a", 0, 2 * MIB, driver)
    gpu_tensors.copy({"x": array}, {"x": arena.address + 256}, 0, driver)
    reader = [sys.executable, "-c", READS, arena.handle.hex(), str(values.nbytes), "256"]
    found = subprocess.run(reader, capture_output=True, text=True, check=True).stdout.strip()
    assert bytes.fromhex(found) == values.tobytes()
    cuda_memory._free(arena, driver)
    driver(runtime.cudaFree, address)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
