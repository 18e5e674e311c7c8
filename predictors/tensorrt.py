"""A KServe predictor with TensorRT, or TensorRT for RTX, in its own process. Experimental: no GPU has run it yet."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import signal
from pathlib import Path

import kservekit.cuda
from kservekit import config
from kservekit.config import TensorRTSettings
from kservekit.cuda import Cuda, CudaError
from kservekit.errors import CannotStart, ServingError, Unavailable
from kservekit.predictors import tensorrt_cache, tensorrt_runtime
from kservekit.predictors.batching import MicroBatcher
from kservekit.predictors.shared_runs import MOST_ROWS, check_shared_runs
from kservekit.predictors.tensorrt_build import Options, build, options
from kservekit.predictors.tensorrt_context import Context
from kservekit.predictors.tensorrt_engine import Engine, deserialize
from kservekit.predictors.tensorrt_runtime import Gpu, Library
from kservekit.serving import Predictor, Tensors
from kservekit.serving.pool import HandlerPool

log = logging.getLogger(__name__)


class TensorRTPredictor(Predictor):
    """Takes and gives what the engine declares; dynamic sizes are -1, within its optimization profiles.

    Serves an engine (.plan, .engine), or an ONNX file that it builds an engine from, once. Each of
    KSERVEKIT_TENSORRT_CONTEXTS runs is on a stream of its own. Callers who come at about the same time share a run
    where KSERVEKIT_TENSORRT_BATCH_ROWS is set. The rest of its settings is in kservekit.config.TensorRTSettings.

    An engine is code: serve those of people whom you trust.
    """

    def __init__(self, name: str = "model", *, settings: TensorRTSettings | None = None) -> None:
        super().__init__(name)
        self.settings = settings or config.read(TensorRTSettings)
        # As many threads as contexts: whoever has a thread finds a context, and keeps it until his run is over, also
        # where his caller is gone.
        waiting = config.read(config.ServerSettings).handler_queue
        self._threads = HandlerPool(max(1, self.settings.contexts), waiting)
        self._idle: queue.SimpleQueue[Context] = queue.SimpleQueue()
        self._contexts = 0
        self._batcher: MicroBatcher | None = None

    def load(self) -> bool:
        self.stop()
        settings, path = self.settings, Path(self.settings.model_path)
        _check(settings)
        wanted = options(settings)
        if not path.is_file():
            raise CannotStart(f"KSERVEKIT_TENSORRT_MODEL_PATH is {str(path)!r}: no such file")
        library, cuda = tensorrt_runtime.tensorrt(), kservekit.cuda.load("tensorrt")
        gpu = tensorrt_runtime.gpu(cuda)
        log.warning("TensorRTPredictor is experimental: its tests have had no GPU. This is %s on %s", library, gpu)
        engine = (
            _built(library, gpu, path, wanted, settings.engine_cache)
            if path.suffix == ".onnx"
            else deserialize(library, path.read_bytes(), str(path), gpu)
        )
        if settings.batch_rows:
            _check_batches(engine, settings.batch_rows)
        self._make_contexts(engine, cuda)
        if settings.batch_rows:
            self._check_rows(engine)
        self.inputs, self.outputs = engine.spec.inputs, engine.spec.outputs
        if settings.batch_rows:
            delay_s = settings.batch_delay_ms / 1000
            self._batcher = MicroBatcher(
                self._in_thread, max_cost=settings.batch_rows, max_delay_s=delay_s, concurrency=settings.contexts
            )
        self.ready = True
        return self.ready

    async def infer(self, tensors: Tensors) -> Tensors:
        if self._batcher is not None:
            return await self._batcher.infer(tensors)
        return await self._in_thread(tensors)

    async def close(self) -> None:
        if self._batcher is not None:
            await self._batcher.close()
        await asyncio.to_thread(self.stop)

    def stop(self) -> None:
        """Gives the GPU back, once the runs that have begun are over."""
        contexts, self._contexts = self._contexts, 0
        for _ in range(contexts):
            self._idle.get().free()

    def _make_contexts(self, engine: Engine, cuda: Cuda) -> None:
        try:
            for _ in range(self.settings.contexts):
                self._idle.put(Context(engine, cuda, graphs=self.settings.cuda_graphs))
                self._contexts += 1
        except (CudaError, ServingError) as error:
            made = self._contexts
            self.stop()
            raise CannotStart(
                f"the engine's context {made + 1} of {self.settings.contexts} cannot be made: {error}; where memory is "
                "short, set KSERVEKIT_TENSORRT_CONTEXTS or _MAX_BATCH to less"
            ) from error
        except BaseException:
            self.stop()
            raise

    def _check_rows(self, engine: Engine) -> None:
        spec, rows = engine.spec, min(self.settings.batch_rows, MOST_ROWS)
        profile = max(engine.profiles, key=lambda one: min(item.max[0] for item in one.values()))
        sizes = {f"{name}[{axis}]": size for name, item in profile.items() for axis, size in enumerate(item.opt)}
        names = {item.name: [""] * len(item.shape) for item in (*spec.inputs, *spec.outputs)}
        try:
            check_shared_runs("KSERVEKIT_TENSORRT_BATCH_ROWS", spec, names, self._outputs, sizes, rows)
        except CannotStart:
            self.stop()
            raise
        except Unavailable as error:
            self.stop()
            raise CannotStart(f"the engine cannot be run: {error.__cause__}") from error

    async def _in_thread(self, tensors: Tensors) -> Tensors:
        outputs: Tensors = await self._threads.run(self._outputs, tensors)
        return outputs

    def _outputs(self, tensors: Tensors) -> Tensors:
        try:
            context = self._idle.get_nowait()
        except queue.Empty:
            raise Unavailable("this model is being taken out of service", retry_after=1) from None
        try:
            return context.run(tensors)
        except CudaError as error:
            if self.ready:
                self.ready = False
                log.critical(
                    "the GPU failed, which this process cannot use any more: it ends, to be started anew: %s", error
                )
                # As Kubernetes ends it: what else it serves is drained.
                os.kill(os.getpid(), signal.SIGTERM)
            raise Unavailable("this server's GPU failed", retry_after=1) from error
        finally:
            self._idle.put(context)


def _check(settings: TensorRTSettings) -> None:
    suffix = Path(settings.model_path).suffix
    if suffix not in (".onnx", ".plan", ".engine"):
        raise CannotStart(
            f"KSERVEKIT_TENSORRT_MODEL_PATH is {settings.model_path!r}: expected .onnx, .plan or .engine at its end"
        )
    if not settings.contexts:
        raise CannotStart("KSERVEKIT_TENSORRT_CONTEXTS is 0: expected 1 or more")
    if suffix != ".onnx" and (settings.precision or settings.sizes):
        log.warning("KSERVEKIT_TENSORRT_PRECISION and _SIZES say how an engine is built: this one is, and has its own")


def _built(library: Library, gpu: Gpu, path: Path, wanted: Options, cache: str) -> Engine:
    """From the cache where it holds an engine for all this, else built, and kept if it can be run."""
    folder = tensorrt_cache.folder(cache)
    if folder is None:
        return deserialize(library, build(library, path, wanted), str(path), gpu)
    name = tensorrt_cache.engine_name(library, gpu, path, wanted)
    with tensorrt_cache.one_builds(folder):
        if (kept := tensorrt_cache.read(folder, name)) is not None:
            try:
                return deserialize(library, kept, str(folder / name), gpu)
            except CannotStart as error:
                log.warning("an engine in the cache is no good, and built anew: %s", error)
        built = build(library, path, wanted)
        engine = deserialize(library, built, str(path), gpu)
        tensorrt_cache.keep(folder, name, built)
        return engine


def _check_batches(engine: Engine, rows: int) -> None:
    if not engine.batches:
        shapes = ", ".join(f"{item.name!r} {list(item.shape)}" for item in (*engine.spec.inputs, *engine.spec.outputs))
        raise CannotStart(
            f"KSERVEKIT_TENSORRT_BATCH_ROWS is set, and the engine has {shapes}: batches need a first dimension that "
            "it leaves open in all of them; build it with one, or unset it"
        )
    if rows > engine.batches:
        raise CannotStart(f"KSERVEKIT_TENSORRT_BATCH_ROWS is {rows}: this engine takes {engine.batches} at most")
