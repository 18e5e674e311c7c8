"""What a GPU would do, done on the host: TensorRT's runtime and CUDA's, for tests where there is no GPU.

Each double has the names of the real class and no others, and takes as many arguments as the real method says. Whether
bytes are an engine is still the real runtime's to say, as far as it says so without a driver. As on a GPU nothing is
done before its stream is waited for, and only in memory that was asked for.
"""

from __future__ import annotations

import ctypes
import inspect
import re
import threading
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import NonCallableMock, create_autospec

import numpy as np
import tensorrt_rtx_bindings as trt
from cuda.bindings import runtime

from kservekit.predictors.tensorrt_runtime import Cuda, Library

Shape = tuple[int, ...]
OK = runtime.cudaError_t.cudaSuccess
INVALID = runtime.cudaError_t.cudaErrorInvalidValue
DTYPES = {trt.DataType.FLOAT: np.float32, trt.DataType.INT32: np.int32, trt.DataType.HALF: np.float16}


@dataclass
class Model:
    """What the engine is of: by default y = x + x."""

    inputs: dict[str, Shape] = field(default_factory=lambda: {"x": (-1, 2)})
    outputs: dict[str, Shape] = field(default_factory=lambda: {"y": (-1, 2)})
    profiles: list[dict[str, tuple[Shape, Shape, Shape]]] = field(
        default_factory=lambda: [{"x": ((1, 2), (4, 2), (8, 2))}]
    )
    shapes: Callable[[dict[str, Shape]], dict[str, Shape]] = lambda shapes: {"y": shapes["x"]}
    compute: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = lambda arrays: {"y": arrays["x"] * 2}
    datatypes: dict[str, trt.DataType] = field(default_factory=dict)
    formats: dict[str, trt.TensorFormat] = field(default_factory=dict)
    locations: dict[str, trt.TensorLocation] = field(default_factory=dict)
    capturable: bool = True

    def datatype(self, name: str) -> trt.DataType:
        return self.datatypes.get(name, trt.DataType.FLOAT)


def double(real: type, does: object) -> Any:
    """An instance of `real` as far as its names go, that does what `does` does."""
    found = create_autospec(real, instance=True, spec_set=True)
    for name in (name for name in dir(does) if not name.startswith("_")):
        value = getattr(does, name)
        if callable(value):
            getattr(found, name).side_effect = _counted(getattr(real, name), value)
        else:
            setattr(found, name, value)
    return found


def _counted(real: Any, does: Callable[..., Any]) -> Callable[..., Any]:
    """Bindings have no signatures, and say in words what they take."""
    name = real.__name__
    lines = re.findall(rf"^(?:\d+\. )?{name}\(self: [\w.]+(.*)\) ->", real.__doc__, re.M)
    counts = {len(re.findall(r", \w+: ", line)) - line.count(" = ") for line in lines}
    most = {len(re.findall(r", \w+: ", line)) for line in lines}
    assert lines, f"{name} does not say what it takes"

    def call(*arguments: Any) -> Any:
        assert min(counts) <= len(arguments) <= max(most), f"{name} takes {sorted(counts | most)}: {arguments}"
        return does(*arguments)

    return call


class Gpu:
    """CUDA's runtime on the host's own memory."""

    def __init__(self, memory: int = 2**24) -> None:
        self.memory = memory
        self.blocks: dict[int, Any] = {}
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self.captured: dict[int, list[Callable[[], None]]] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.launches = 0
        self.failure = OK
        self.lock = threading.Lock()
        self.module: Any = NonCallableMock(spec_set=runtime)
        for name in dir(type(self)):
            if name.startswith("cuda") and name != "cuda":
                real, ours = getattr(runtime, name), getattr(self, name)
                assert inspect.signature(real).parameters.keys() == inspect.signature(ours).parameters.keys(), name
                setattr(self.module, name, ours)
        for name in (
            "cudaError_t",
            "cudaMemcpyKind",
            "cudaStreamCaptureMode",
            "cudaHostAllocDefault",
            "cudaStreamNonBlocking",
            "cudaGetErrorString",
        ):
            setattr(self.module, name, getattr(runtime, name))
        self.cuda = Cuda(self.module)

    @property
    def used(self) -> int:
        return sum(map(ctypes.sizeof, self.blocks.values())) + len(self.streams) + len(self.graphs)

    def queue(self, stream: int, work: Callable[[], None]) -> None:
        self.captured.get(stream, self.streams[stream]).append(work)

    def array(self, address: int, dtype: Any, shape: Shape) -> np.ndarray:
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert self.holds(address, count), "outside of what was asked for"
        raw = (ctypes.c_uint8 * count).from_address(address)
        return np.frombuffer(raw, np.uint8).view(dtype).reshape(shape)

    def holds(self, address: int, count: int) -> bool:
        return any(at <= address and address + count <= at + ctypes.sizeof(block) for at, block in self.blocks.items())

    def cudaGetDeviceCount(self):
        return OK, 1

    def cudaGetDeviceProperties(self, device):
        found = runtime.cudaDeviceProp()
        found.name, found.major, found.minor = b"Stand-in".ljust(256, b"\0"), 9, 0
        return OK, found

    def cudaMalloc(self, size):
        with self.lock:
            if size > self.memory - sum(map(ctypes.sizeof, self.blocks.values())):
                return runtime.cudaError_t.cudaErrorMemoryAllocation, None
            block = (ctypes.c_uint8 * size)()
            ctypes.memset(block, 0xA5, size)
            self.blocks[ctypes.addressof(block)] = block
        return OK, ctypes.addressof(block)

    def cudaHostAlloc(self, size, flags):
        return self.cudaMalloc(size)

    def cudaFree(self, devPtr):
        return (INVALID if self.blocks.pop(devPtr, None) is None else OK,)

    def cudaFreeHost(self, ptr):
        return self.cudaFree(ptr)

    def cudaStreamCreateWithFlags(self, flags):
        with self.lock:
            stream = 1000 + len(self.streams)
            self.streams[stream] = []
        return OK, runtime.cudaStream_t(stream)

    def cudaStreamDestroy(self, stream):
        del self.streams[int(stream)]
        return (OK,)

    def cudaMemcpyAsync(self, dst, src, count, kind, stream):
        if not (self.holds(dst, count) and self.holds(src, count)):
            return (INVALID,)
        self.queue(int(stream), lambda: ctypes.memmove(dst, src, count))
        return (OK,)

    def cudaStreamSynchronize(self, stream):
        work, self.streams[int(stream)] = self.streams[int(stream)], []
        for step in work:
            step()
        return (self.failure,)

    def cudaStreamBeginCapture(self, stream, mode):
        self.captured[int(stream)] = []
        return (OK,)

    def cudaStreamEndCapture(self, stream):
        work = self.captured.pop(int(stream))
        if None in work:
            return runtime.cudaError_t.cudaErrorStreamCaptureInvalidated, None
        self.graphs[len(self.graphs) + 1] = work
        return OK, runtime.cudaGraph_t(len(self.graphs))

    def cudaGraphInstantiate(self, graph, flags):
        self.graphs[int(graph) + 100] = self.graphs[int(graph)]
        return OK, runtime.cudaGraphExec_t(int(graph) + 100)

    def cudaGraphDestroy(self, graph):
        del self.graphs[int(graph)]
        return (OK,)

    def cudaGraphExecDestroy(self, graphExec):
        return self.cudaGraphDestroy(graphExec)

    def cudaGraphLaunch(self, graphExec, stream):
        self.launches += 1
        for step in self.graphs[int(graphExec)]:
            self.queue(int(stream), step)
        return (OK,)


class ContextDoes:
    def __init__(self, gpu: Gpu, model: Model) -> None:
        self._gpu, self._model = gpu, model
        self._profile: dict[str, tuple[Shape, Shape, Shape]] = {}
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index, stream):
        if stream not in self._gpu.streams or not 0 <= index < max(1, len(self._model.profiles)):
            return False
        self._profile, self._shapes = (self._model.profiles or [{}])[index], {}
        return True

    def set_input_shape(self, name, shape):
        low, _, high = self._profile.get(name, (self._model.inputs[name],) * 3)
        if not all(least <= size <= most for least, size, most in zip(low, shape, high, strict=True)):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def infer_shapes(self):
        self._model.shapes(self._shapes)
        return [name for name in self._model.inputs if name not in self._shapes]

    def get_tensor_shape(self, name):
        return trt.Dims(self._shapes.get(name) or self._model.shapes(self._shapes)[name])

    def get_max_output_size(self, name):
        if len(self._shapes) < len(self._model.inputs):
            return -1
        most = {
            item: self._profile[item][2] if item in self._profile else self._model.inputs[item] for item in self._shapes
        }
        return int(np.prod(self._model.shapes(most)[name])) * np.dtype(DTYPES[self._model.datatype(name)]).itemsize

    def set_tensor_address(self, name, address):
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        if stream in self._gpu.captured and not self._model.capturable:
            self._gpu.captured[stream].append(None)
            return False
        if self._addresses.keys() != self._model.inputs.keys() | self._model.outputs.keys():
            return False
        shapes = dict(self._shapes)

        def work() -> None:
            arrays = {name: self._array(name, shape).copy() for name, shape in shapes.items()}
            for name, value in self._model.compute(arrays).items():
                self._array(name, value.shape)[...] = value

        self._gpu.queue(stream, work)
        return True

    def _array(self, name, shape):
        return self._gpu.array(self._addresses[name], DTYPES[self._model.datatype(name)], shape)


class EngineDoes:
    def __init__(self, gpu: Gpu, model: Model) -> None:
        self._gpu, self._model = gpu, model
        self._names = [*model.inputs, *model.outputs]
        self.num_io_tensors = len(self._names)
        self.num_optimization_profiles = max(1, len(model.profiles))

    def get_tensor_name(self, index):
        return self._names[index]

    def get_tensor_mode(self, name):
        return trt.TensorIOMode.INPUT if name in self._model.inputs else trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return self._model.datatype(name)

    def get_tensor_shape(self, name):
        return trt.Dims((self._model.inputs | self._model.outputs)[name])

    def get_tensor_format(self, name):
        return self._model.formats.get(name, trt.TensorFormat.LINEAR)

    def get_tensor_location(self, name):
        return self._model.locations.get(name, trt.TensorLocation.DEVICE)

    def get_tensor_profile_shape(self, name, index):
        return [trt.Dims(shape) for shape in self._model.profiles[index][name]]

    def create_runtime_config(self):
        return create_autospec(trt.IRuntimeConfig, instance=True, spec_set=True)

    def create_execution_context(self, config=None):
        return double(trt.IExecutionContext, ContextDoes(self._gpu, self._model))


class RuntimeDoes:
    def __init__(self, gpu: Gpu, model: Model, notes: Any) -> None:
        self._gpu, self._model, self._notes = gpu, model, notes
        self._real = trt.Runtime(notes)

    def get_engine_validity(self, plan):
        found = self._real.get_engine_validity(plan)
        self._notes.errors.clear()  # that there is no driver
        return found

    def deserialize_cuda_engine(self, plan):
        self._notes.errors.clear()
        self._real.deserialize_cuda_engine(plan)
        if "cudaError 35" not in self._notes.errors[0]:
            return None
        self._notes.errors.clear()
        return double(trt.ICudaEngine, EngineDoes(self._gpu, self._model))


class StandIn(types.ModuleType):
    """The real module, builder and all, with another runtime."""

    def __init__(self, gpu: Gpu, model: Model, *, without: tuple[str, ...] = ()) -> None:
        super().__init__("tensorrt")
        self._gpu, self._model, self._without = gpu, model, without

    def Runtime(self, notes):
        return double(trt.Runtime, RuntimeDoes(self._gpu, self._model, notes))

    def __getattr__(self, name):
        if name in self.__dict__.get("_without", ()):
            raise AttributeError(name)
        return getattr(trt, name)


def library(gpu: Gpu, model: Model, *, rtx: bool = True) -> Library:
    """TensorRT for RTX; or TensorRT, which has neither graphs of its own nor a diagnosis of engines."""
    if rtx:
        return Library(StandIn(gpu, model), "TensorRT for RTX")
    return Library(StandIn(gpu, model, without=("CudaGraphStrategy", "EngineInvalidityDiagnostics")), "TensorRT")
