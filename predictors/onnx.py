"""A KServe predictor with ONNX Runtime in its own process: no Triton and no GPU needed, but a GPU used."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from kservekit import config
from kservekit.config import OnnxSettings
from kservekit.cpus import usable_cpus
from kservekit.errors import CannotStart, InvalidInput
from kservekit.predictors.batching import MicroBatcher
from kservekit.predictors.onnx_file import DATATYPES, check_shapes
from kservekit.predictors.onnx_providers import check_in_use, chosen
from kservekit.predictors.shared_runs import check_shared_runs, on_the_cpu
from kservekit.serving import ModelSpec, Predictor, Tensors, TensorSpec
from kservekit.serving.pool import handler_pool


class OnnxPredictor(Predictor):
    """Takes and gives what the file declares; dynamic sizes are -1.

    Settings: KSERVEKIT_ONNX_MODEL_PATH, _THREADS, _PROVIDERS. Callers who come at about the same time share a run where
    KSERVEKIT_ONNX_BATCH_ROWS is set: so many rows at most, and a wait of _BATCH_DELAY_MS at most.

    A file that is taken away or replaced while it is served changes nothing until the model is loaded again. Weights
    beside it are mapped into memory: replace them by a rename, because who writes into them ends this process.

    Experimental: TensorRT and CUDA, the latter with inputs and outputs bound to the GPU, which none has run yet.
    """

    def __init__(self, name: str = "model", *, settings: OnnxSettings | None = None) -> None:
        super().__init__(name)
        self.settings = settings or config.read(OnnxSettings)
        self.session: Any = None
        self._bound_to = ""
        """The device that inputs and outputs are bound to; empty: none."""
        self._dimensions: list[tuple[str, int, str]] = []
        self._batcher: MicroBatcher | None = None

    def load(self) -> bool:
        # From 1.29 on it sends its makers usage data with an id of the machine, unless it is told not to.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        try:
            import onnxruntime
            from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
        except ImportError:
            raise CannotStart("ONNX Runtime is not installed: pip install 'kservekit[onnx]'") from None
        path = Path(self.settings.model_path)
        if not path.is_file():
            raise CannotStart(f"KSERVEKIT_ONNX_MODEL_PATH is {str(path)!r}: no such file")
        providers = chosen(self.settings.providers, onnxruntime.get_available_providers())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.settings.threads or usable_cpus()
        try:
            session = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # its exceptions have no common base
            raise CannotStart(f"{path} is not a model that ONNX Runtime takes: {error}") from error
        check_in_use(self.settings.providers, providers, session.get_providers())
        session.disable_fallback()  # to the CPU and for good, when a GPU fails in the middle of serving
        inputs, outputs = ([_spec(item) for item in items] for items in (session.get_inputs(), session.get_outputs()))
        check_shapes(path, [item.name for item in inputs if not item.shape])
        if self.settings.batch_rows:
            _check_batches([*inputs, *outputs])
            names = {item.name: _size_names(item) for item in (*session.get_inputs(), *session.get_outputs())}
            spec = ModelSpec(tuple(inputs), tuple(outputs))
            check_shared_runs("KSERVEKIT_ONNX_BATCH_ROWS", spec, names, on_the_cpu(path))
            delay_s = self.settings.batch_delay_ms / 1000
            self._batcher = MicroBatcher(self._in_thread, max_cost=self.settings.batch_rows, max_delay_s=delay_s)
        self.session, self.inputs, self.outputs = session, inputs, outputs
        self._dimensions = _named_dimensions(session.get_inputs())
        self._invalid_argument = InvalidArgument
        texts = any(spec.datatype == "BYTES" for spec in (*inputs, *outputs))  # which no device has
        self._bound_to = "cuda" if "CUDAExecutionProvider" in session.get_providers() and not texts else ""
        self.ready = True
        return self.ready

    async def infer(self, tensors: Tensors) -> Tensors:
        if self._batcher is not None:
            return await self._batcher.infer(tensors)
        return await self._in_thread(tensors)

    async def close(self) -> None:
        if self._batcher is not None:
            await self._batcher.close()

    async def _in_thread(self, tensors: Tensors) -> Tensors:
        outputs: Tensors = await handler_pool().run(self._outputs, tensors)
        return outputs

    def _outputs(self, tensors: Tensors) -> Tensors:
        feed = {name: _text(name, values) if values.dtype.kind == "O" else values for name, values in tensors.items()}
        _check_dimensions(self._dimensions, feed)
        names = [spec.name for spec in self.outputs]
        try:
            outputs = self._bound_run(names, feed) if self._bound_to else self.session.run(names, feed)
        except self._invalid_argument as error:
            raise InvalidInput(f"the model does not take these values: {_reason(error)}") from error
        return dict(zip(names, outputs, strict=True))

    def _bound_run(self, names: list[str], feed: Tensors) -> list[np.ndarray]:
        """What `run` gives; inputs are on the device before it begins, and outputs until it ends."""
        binding = self.session.io_binding()
        for name, values in feed.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(values))
        for name in names:
            binding.bind_output(name, self._bound_to)
        try:
            self.session.run_with_iobinding(binding)
            outputs: list[np.ndarray] = binding.copy_outputs_to_cpu()
        except RuntimeError:  # one kind for all reasons; `run` tells a caller's value from the rest
            outputs = self.session.run(names, feed)
        return outputs


def _check_batches(specs: list[TensorSpec]) -> None:
    for spec in specs:
        if not spec.has_rows:
            raise CannotStart(
                f"KSERVEKIT_ONNX_BATCH_ROWS is set, and {spec.name!r} of the model has shape {list(spec.shape)}: "
                "batches need a first dimension that the file leaves open; export the model with one, or unset it"
            )


def _size_names(item: Any) -> list[str]:
    return [size if isinstance(size, str) else "" for size in item.shape]


def _named_dimensions(inputs: list[Any]) -> list[tuple[str, int, str]]:
    """Input, axis and name of each size that the file leaves open and has more than once."""
    found = [(item.name, axis, size) for item in inputs for axis, size in enumerate(item.shape) if size]
    names = [name for _, _, name in found]
    return [place for place in found if isinstance(place[2], str) and names.count(place[2]) > 1]


def _check_dimensions(dimensions: list[tuple[str, int, str]], tensors: Tensors) -> None:
    """ONNX: sizes of one name are one size. The runtime does not look, and breaks in the middle of the model."""
    first: dict[str, tuple[str, int, int]] = {}
    for name, axis, dimension in dimensions:
        size = tensors[name].shape[axis]
        other, other_axis, expected = first.setdefault(dimension, (name, axis, size))
        if size != expected:
            raise InvalidInput(
                f"input {name!r} has size {size} at dimension {axis}, and input {other!r} {expected} at dimension "
                f"{other_axis}: this model takes one size for both, {dimension!r}"
            )


def _reason(error: Exception) -> str:
    """Without the runtime's own code and the place in its sources."""
    text = str(error).rpartition("INVALID_ARGUMENT : ")[2].rpartition("Status Message: ")[2]
    return re.sub(r"^\S+\.(h|cc|cpp):\d+ ", "", text).strip()


def _text(name: str, values: np.ndarray) -> np.ndarray:
    """ONNX has strings and no bytes."""
    try:
        return np.array([value.decode() for value in values.ravel().tolist()], dtype=np.object_).reshape(values.shape)
    except UnicodeDecodeError:
        raise InvalidInput(f"input {name!r} holds bytes that are not UTF-8: this model takes text") from None


def _spec(item: Any) -> TensorSpec:
    if item.type == "tensor(bfloat16)":
        raise CannotStart(
            f"{item.name!r} of the model is BF16, which ONNX Runtime does not give as an array: "
            "export the model with FP16 or FP32 inputs and outputs; BF16 inside of it is fine"
        )
    # What is FLOAT in the file is `tensor(float)` to the runtime.
    datatype = DATATYPES.get(item.type.removeprefix("tensor(").removesuffix(")").upper())
    if datatype is None:
        raise CannotStart(f"{item.name!r} of the model is {item.type}, which the protocol has no datatype for")
    return TensorSpec(item.name, datatype, tuple(size if isinstance(size, int) else -1 for size in item.shape))
