"""One execution context with a stream and buffers of its own: one run at a time.

Experimental: no GPU has run it yet.
"""

from __future__ import annotations

import contextlib
import logging
import math
from typing import Any

import numpy as np

from kservekit.cuda import Cuda, CudaError
from kservekit.errors import CannotStart, InvalidInput, ModelError
from kservekit.predictors.tensorrt_buffers import Buffers, layout
from kservekit.predictors.tensorrt_engine import Engine
from kservekit.predictors.tensorrt_profiles import Shape, choose
from kservekit.tensors import DATATYPES, Tensors, TensorSpec

log = logging.getLogger(__name__)


class Context:
    """Made once and run often: nothing is allocated on the GPU afterwards.

    `graphs`: a run is recorded as a CUDA graph and played from then on; by TensorRT where the engine takes one shape
    (the copies included), by TensorRT for RTX, which does it itself, for any. CannotStart and CudaError where the GPU
    has no memory for the context, or the engine does not run.
    """

    def __init__(self, engine: Engine, cuda: Cuda, *, graphs: bool) -> None:
        self.engine, self.cuda, self.runtime = engine, cuda, cuda.runtime
        self._graph: Any = None
        self._set_to: tuple[int, dict[str, Shape]] | None = None
        with contextlib.ExitStack() as undo:
            self._stream = cuda(self.runtime.cudaStreamCreateWithFlags, self.runtime.cudaStreamNonBlocking)
            undo.callback(cuda.release, self.runtime.cudaStreamDestroy, self._stream)
            self._handle = self._created(graphs)
            undo.callback(vars(self).update, _handle=None)
            self._buffers = Buffers(cuda, layout(self._sizes()))
            undo.callback(self._buffers.free)
            for item in (*engine.spec.inputs, *engine.spec.outputs):
                self._handle.set_tensor_address(item.name, self._buffers.device(item.name))
            for profile in engine.profiles:  # kernels are loaded, and those of RTX compiled, by a first run
                self.run({item.name: np.zeros(profile[item.name].opt, _dtype(item)) for item in engine.spec.inputs})
            if graphs and engine.fixed and not self._plays_graphs_itself:
                self._graph = self._recorded()
                undo.callback(self._forget_graph)
            self._undo = undo.pop_all()

    def run(self, tensors: Tensors) -> Tensors:
        """InvalidInput for shapes that the engine does not take; CudaError after which the GPU is of no more use."""
        shapes = {item.name: tensors[item.name].shape for item in self.engine.spec.inputs}
        self._set(choose(self.engine.profiles, shapes), shapes)
        outputs = self._outputs()
        for item in self.engine.spec.inputs:
            np.copyto(self._buffers.host(item.name, _dtype(item), shapes[item.name]), tensors[item.name])
        if self._graph is not None:
            self.cuda(self.runtime.cudaGraphLaunch, self._graph, self._stream)
        else:
            self._enqueue(shapes, outputs)
        self.cuda(self.runtime.cudaStreamSynchronize, self._stream)
        return {name: array.copy() for name, array in outputs.items()}

    def free(self) -> None:
        """Gives back what it holds of the GPU."""
        self._undo.close()

    @property
    def _plays_graphs_itself(self) -> bool:
        return hasattr(self.engine.library.api, "CudaGraphStrategy")

    def _created(self, graphs: bool) -> Any:
        if graphs and self._plays_graphs_itself:
            config = self.engine.handle.create_runtime_config()
            config.cuda_graph_strategy = self.engine.library.api.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            handle = self.engine.handle.create_execution_context(config)
        else:
            handle = self.engine.handle.create_execution_context()
        if handle is None:
            raise CannotStart(f"the engine gives no execution context: {self.engine.notes.reason()}")
        return handle

    def _sizes(self) -> dict[str, int]:
        """The most bytes of each tensor under any profile."""
        sizes: dict[str, int] = {}
        for index, profile in enumerate(self.engine.profiles):
            largest = {name: item.max for name, item in profile.items()}
            self._set(index, largest)
            for item in self.engine.spec.inputs:
                sizes[item.name] = max(_bytes(item, largest[item.name]), sizes.get(item.name, 0))
            for item in self.engine.spec.outputs:
                if -1 in self._handle.get_tensor_shape(item.name):
                    raise CannotStart(
                        f"the size of output {item.name!r} depends on the values that the engine is given, not on "
                        "their shapes alone, which this predictor does not serve; OnnxPredictor or Triton does"
                    )
                sizes[item.name] = max(self._handle.get_max_output_size(item.name), sizes.get(item.name, 0))
        return sizes

    def _set(self, index: int, shapes: dict[str, Shape]) -> None:
        """Which profile and shapes the next runs are of."""
        if self._set_to == (index, shapes):
            return
        before, self._set_to = self._set_to, None
        if before is None or before[0] != index:
            if not self._handle.set_optimization_profile_async(index, int(self._stream)):
                raise ModelError(f"the engine does not take its profile {index}: {self.engine.notes.reason()}")
            self.cuda(self.runtime.cudaStreamSynchronize, self._stream)
        if not self._takes(shapes):
            together = ", ".join(f"{name!r} {list(shape)}" for name, shape in shapes.items())
            log.warning("the engine does not take %s: %s", together, self.engine.notes.reason())
            raise InvalidInput(f"this engine does not take inputs of these shapes together: {together}")
        self._set_to = index, shapes

    def _takes(self, shapes: dict[str, Shape]) -> bool:
        try:
            return all(self._handle.set_input_shape(*item) for item in shapes.items()) and (
                not self._handle.infer_shapes()
            )
        except RuntimeError:  # sizes that contradict each other
            return False

    def _outputs(self) -> Tensors:
        """Where the outputs of the shapes that are set will be."""
        shapes = {item.name: tuple(self._handle.get_tensor_shape(item.name)) for item in self.engine.spec.outputs}
        return {
            item.name: self._buffers.host(item.name, _dtype(item), shapes[item.name])
            for item in self.engine.spec.outputs
        }

    def _enqueue(self, shapes: dict[str, Shape], outputs: Tensors) -> None:
        """The copies there, the computation and the copies back, in the stream's order."""
        kinds, copy = self.runtime.cudaMemcpyKind, self.runtime.cudaMemcpyAsync
        for item in self.engine.spec.inputs:
            device, host = self._buffers.device(item.name), self._buffers.host_address(item.name)
            count = _bytes(item, shapes[item.name])
            self.cuda(copy, device, host, count, kinds.cudaMemcpyHostToDevice, self._stream)
        if not self._handle.execute_async_v3(int(self._stream)):
            raise ModelError(f"the engine does not run: {self.engine.notes.reason()}")
        for name, array in outputs.items():
            device, host = self._buffers.device(name), self._buffers.host_address(name)
            self.cuda(copy, host, device, array.nbytes, kinds.cudaMemcpyDeviceToHost, self._stream)

    def _recorded(self) -> Any:
        """A graph of a run; None where the engine does something that no graph can hold."""
        shapes = {item.name: item.shape for item in self.engine.spec.inputs}
        # Of this thread alone: what others do meanwhile is no part of it, and does not break it.
        mode = self.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.cuda(self.runtime.cudaStreamBeginCapture, self._stream, mode)
        try:
            try:
                self._enqueue(shapes, self._outputs())
            finally:  # else the stream could do nothing else
                graph = self.cuda(self.runtime.cudaStreamEndCapture, self._stream)
            try:
                return self.cuda(self.runtime.cudaGraphInstantiate, graph, 0)
            finally:
                self.cuda.release(self.runtime.cudaGraphDestroy, graph)
        except (CudaError, ModelError) as error:
            log.warning("no CUDA graph of this engine, which runs without: %s", error)
            return None

    def _forget_graph(self) -> None:
        if self._graph is not None:
            self.cuda.release(self.runtime.cudaGraphExecDestroy, self._graph)
            self._graph = None


def _dtype(item: TensorSpec) -> np.dtype[Any]:
    return DATATYPES[item.datatype]


def _bytes(item: TensorSpec, shape: Shape) -> int:
    return math.prod(shape) * _dtype(item).itemsize
