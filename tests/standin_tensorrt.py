"""What TensorRT's runtime would do on a GPU, done on the host (standin_cuda), for tests where there is no GPU.

Each double has the names of the real class and no others, and takes as many arguments as the real method says. Whether
bytes are an engine is still the real runtime's to say, as far as it says so without a driver.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import create_autospec

import numpy as np
import tensorrt_rtx_bindings as trt
from standin_cuda import Gpu

from kservekit.predictors.tensorrt_runtime import Library

Shape = tuple[int, ...]
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
