"""A serialized engine, taken by the runtime or refused with the reason, and what it says of itself.

Experimental: no GPU has run it yet; what the runtime refuses without one, it has refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kservekit.errors import CannotStart
from kservekit.predictors.tensorrt_profiles import Profile, Range
from kservekit.predictors.tensorrt_runtime import Gpu, Library, recorder
from kservekit.tensors import ModelSpec, TensorSpec

_DATATYPES = {
    "BOOL": "BOOL",
    "UINT8": "UINT8",
    "INT8": "INT8",
    "INT32": "INT32",
    "INT64": "INT64",
    "HALF": "FP16",
    "BF16": "BF16",
    "FLOAT": "FP32",
}

_DIAGNOSES = {
    "VERSION_MISMATCH": "another version built it",
    "UNSUPPORTED_CC": "it was built for other GPUs",
    "OLD_CUDA_DRIVER": "the GPU's driver is too old for it",
    "OLD_CUDA_RUNTIME": "the library's CUDA is too old for it",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory for it",
    "MALFORMED_ENGINE": "it is no engine, or a part of one",
    "CUDA_ERROR": "CUDA is not installed correctly",
}
"""TensorRT for RTX says these of an engine before it is loaded; TensorRT says the like in its errors."""


@dataclass(frozen=True)
class Engine:
    library: Library
    handle: Any
    runtime: Any
    """Kept, because an engine must not outlive it."""
    notes: Any
    """What the library logs on it."""
    spec: ModelSpec
    """Sizes that the engine leaves open are -1."""
    profiles: tuple[Profile, ...]

    @property
    def fixed(self) -> bool:
        """Whether it takes one shape of each input and no other."""
        return all(-1 not in item.shape for item in self.spec.inputs)

    @property
    def batches(self) -> int:
        """The most rows of one run; 0 where the first size of a tensor is fixed, as of one that has no rows."""
        tensors = (*self.spec.inputs, *self.spec.outputs)
        if not all(item.has_rows for item in tensors):
            return 0
        return max(min(item.max[0] for item in profile.values()) for profile in self.profiles)


def deserialize(library: Library, plan: bytes, where: str, gpu: Gpu) -> Engine:
    """CannotStart for what is no engine, one of another version, or one for another GPU."""
    notes = recorder(library.api)
    notes.errors.clear()
    runtime = library.api.Runtime(notes)
    reason = _diagnosis(library.api, runtime, plan)
    handle = runtime.deserialize_cuda_engine(plan) if not reason else None
    if handle is None:
        raise CannotStart(
            f"{where} is not an engine that {library} runs on {gpu}: {reason or notes.reason()}; build it with this "
            "version for this GPU, or set KSERVEKIT_TENSORRT_MODEL_PATH to the ONNX file, and it is built here"
        )
    spec = _spec(library.api, handle, where)
    return Engine(library, handle, runtime, notes, spec, _profiles(handle, spec))


def _diagnosis(api: Any, runtime: Any, plan: bytes) -> str:
    if not hasattr(api, "EngineInvalidityDiagnostics"):
        return ""
    validity, found = runtime.get_engine_validity(plan)
    if validity != api.EngineValidity.INVALID:
        return ""
    members = api.EngineInvalidityDiagnostics.__members__
    return ", and ".join(text for name, text in _DIAGNOSES.items() if name in members and found & members[name].value)


def _spec(api: Any, handle: Any, where: str) -> ModelSpec:
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    for name in map(handle.get_tensor_name, range(handle.num_io_tensors)):
        datatype = handle.get_tensor_dtype(name).name
        if datatype not in _DATATYPES:
            raise CannotStart(f"{where}: {name!r} is {datatype}, which the protocol has no datatype for")
        if handle.get_tensor_format(name) != api.TensorFormat.LINEAR:
            raise CannotStart(
                f"{where}: {name!r} has its values in the order {handle.get_tensor_format(name).name}: "
                "build the engine with linear inputs and outputs"
            )
        if handle.get_tensor_location(name) != api.TensorLocation.DEVICE:
            raise CannotStart(
                f"{where}: the values of {name!r} are the sizes of another tensor; export the model with constants "
                "there, or serve it with OnnxPredictor"
            )
        kind = inputs if handle.get_tensor_mode(name) == api.TensorIOMode.INPUT else outputs
        kind.append(TensorSpec(name, _DATATYPES[datatype], tuple(handle.get_tensor_shape(name))))
    return ModelSpec(tuple(inputs), tuple(outputs))


def _profiles(handle: Any, spec: ModelSpec) -> tuple[Profile, ...]:
    """Each with all inputs, those of one fixed shape too."""
    return tuple(
        {item.name: _range(handle, item, index) for item in spec.inputs}
        for index in range(handle.num_optimization_profiles)
    )


def _range(handle: Any, item: TensorSpec, index: int) -> Range:
    if -1 not in item.shape:
        return Range(item.shape, item.shape, item.shape)
    return Range(*(tuple(shape) for shape in handle.get_tensor_profile_shape(item.name, index)))
