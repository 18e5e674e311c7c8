"""What users subclass: Predictor and Transformer, KServe models that take named arrays and give named arrays."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeGuard, TypeVar, cast

import kserve
from kserve.metrics import POST_HIST_TIME, PRE_HIST_TIME, PREDICT_HIST_TIME, get_labels

from kservekit import config, gpu_tensors
from kservekit.codec.message import Answer, Request
from kservekit.errors import CannotStart, KServeKitError, ModelError, ModelNotFound, NotSupported
from kservekit.oip import Backend, connect
from kservekit.serving import kserve_types
from kservekit.serving.kserve_errors import translated_errors
from kservekit.serving.pool import handler_pool
from kservekit.telemetry.timing import stage
from kservekit.tensors import ModelSpec, Tensors, TensorSpec, check_outputs

log = logging.getLogger(__name__)

Handler = Callable[[Tensors], Tensors | Awaitable[Tensors]]
Stream = Callable[[Tensors], AsyncIterator[Tensors] | Iterator[Tensors]]

T = TypeVar("T")

_END: Any = object()

_current: contextvars.ContextVar[Request] = contextvars.ContextVar("kservekit_request")


def current_request() -> Request:
    """The request that a handler is working for: its id, headers, parameters. LookupError outside of one."""
    return _current.get()


class ArrayModel(kserve.Model):  # type: ignore[misc]
    """The shared half of Predictor and Transformer.

    Under our server `answer` is called with arrays. Under a stock kserve.ModelServer KServe's own
    `predict` hook is, and turns KServe's payload into the same call.
    """

    inputs: Sequence[TensorSpec] = ()
    """What the model takes; requests are checked against it, and v1 values cast to it. Empty: not declared."""
    outputs: Sequence[TensorSpec] = ()
    """What the model gives, as its metadata says it."""

    def __init__(self, name: str = "model") -> None:
        super().__init__(name)

    @functools.cached_property
    def _observers(self) -> dict[str, Callable[[float], None]]:
        """KServe's own histograms for this model; finding one by its label takes longer than telling it."""
        histograms = {"pre": PRE_HIST_TIME, "predict": PREDICT_HIST_TIME, "post": POST_HIST_TIME}
        labels = get_labels(self.name)
        return {key: histogram.labels(**labels).observe for key, histogram in histograms.items()}

    version = ""
    """The one version that is served; a request may leave it out. Empty: not said."""

    async def spec(self) -> ModelSpec:
        inputs, outputs, version = declared = (tuple(self.inputs), tuple(self.outputs), self.version)
        if self._declared is None or self._declared[0] != declared:
            self._declared = (declared, ModelSpec(inputs, outputs, versions=(version,) if version else ()))
        return self._declared[1]

    _declared: tuple[tuple[Any, ...], ModelSpec] | None = None
    """What was declared when it was last asked for, and the spec of that."""

    async def answer(self, request: Request) -> Answer:
        """The named arrays for a request; a ServingError for anything else."""
        raise NotImplementedError

    async def answers(self, request: Request) -> AsyncGenerator[Answer]:
        """The named arrays for a request that may have several answers, each when it is there."""
        yield await self.answer(request)

    async def close(self) -> None:
        """Called once, after the last request."""

    async def predict(
        self, payload: Any, headers: dict[str, str] | None = None, response_headers: dict[str, str] | None = None
    ) -> Any:
        """KServe's hook: a v1 dict in and out, or KServe's InferRequest and InferResponse."""
        with translated_errors():
            spec = await self.spec()
            request = kserve_types.request_from(payload, spec, headers or {})
            request.model = self.name
            answer = (await self.answer(request)).only(request.outputs)
            return kserve_types.result_from(answer, payload, spec)

    def get_input_types(self) -> list[dict[str, Any]]:
        return [spec.as_metadata() for spec in self.inputs]

    def get_output_types(self) -> list[dict[str, Any]]:
        return [spec.as_metadata() for spec in self.outputs]

    async def _run(self, handler: Handler, request: Request, tensors: Tensors, check: Callable[[object, str], T]) -> T:
        """A user's handler: a coroutine on the loop, a plain function in the pool, so that probes never wait."""
        token = _current.set(request)
        try:
            if _is_async(getattr(handler, "__func__", handler)):
                outputs: Any = await cast(Awaitable[Tensors], handler(tensors))
            else:
                outputs = await handler_pool().run(handler, tensors)
            return check(outputs, f"{type(self).__name__}.{getattr(handler, '__name__', 'handler')}")
        except KServeKitError:
            raise
        except Exception as error:
            raise self._failed(request) from error
        finally:
            _current.reset(token)

    async def _steps(self, stream: Stream, request: Request) -> AsyncGenerator[Tensors]:
        """What a user's generator yields: an async one on the loop, a plain one step by step in the pool."""
        where = f"{type(self).__name__}.{getattr(stream, '__name__', 'stream')}"
        token = _current.set(request)
        try:
            found = stream(request.tensors)
        finally:
            _current.reset(token)
        if not isinstance(found, AsyncGenerator | Generator):
            raise ModelError(f"{where} returned {type(found).__name__}: expected a generator, a def that yields")
        try:
            while True:
                token = _current.set(request)
                try:
                    if isinstance(found, AsyncGenerator):
                        outputs = await anext(found, _END)
                    else:
                        outputs = await handler_pool().run(next, found, _END)
                finally:
                    _current.reset(token)
                if outputs is _END:
                    return
                yield check_outputs(outputs, where)
        except KServeKitError:
            raise
        except Exception as error:
            raise self._failed(request) from error
        finally:
            if isinstance(found, AsyncGenerator):
                await found.aclose()
            else:
                # One that still runs, because nobody waits for it any more, cannot be closed, and ends by itself.
                with contextlib.suppress(ValueError):
                    found.close()

    def _failed(self, request: Request) -> ModelError:
        by = request.principal and request.principal.name
        log.exception("model failed: model=%r id=%r by=%r", self.name, request.id, by)
        named = f" (request id {request.id})" if request.id else ""
        return ModelError(f"model {self.name!r} failed{named}; the server's log has the reason")


class Predictor(ArrayModel):
    """A KServe predictor. Write `infer`; a plain `def` runs in a thread pool, an `async def` on the event loop.

    `load` (KServe's) may be written too: it runs in a thread before the model is ready.
    """

    version = "1"

    def infer(self, tensors: Tensors) -> Tensors | Awaitable[Tensors]:
        """Named input arrays to named output arrays. May raise any error of kservekit.errors."""
        if type(self).stream is not Predictor.stream:
            raise only_as_stream(self.name)
        raise NotImplementedError(f"{type(self).__name__} has no infer(self, tensors)")

    def stream(self, tensors: Tensors) -> AsyncIterator[Tensors] | Iterator[Tensors]:
        """Several answers to one request, such as tokens or frames: a generator, `async def` or plain, that yields
        each when it is there. Callers ask by ModelStreamInfer, or over REST for server-sent events. One that nobody
        wrote gives what `infer` gives."""
        raise NotImplementedError(f"{type(self).__name__} has no stream(self, tensors)")

    async def _check_request(self, request: Request) -> str:
        """The version that answers it; ModelNotFound or InvalidInput where it does not fit the model."""
        spec = await self.spec()
        versions = spec.versions or (self.version,)
        if request.version and request.version not in versions:
            raise ModelNotFound(f"model {self.name!r} has no version {request.version!r}: it has {', '.join(versions)}")
        spec.check_inputs(request.tensors)
        return request.version or versions[-1]

    async def answer(self, request: Request) -> Answer:
        version = await self._check_request(request)
        with stage("infer", self._observers["predict"]):
            outputs = await self._run(self.infer, request, request.tensors, check_outputs)
        # A handler that learns the version from its engine writes it into the request.
        return Answer(outputs, model=self.name, version=request.version or version, id=request.id)

    async def answers(self, request: Request) -> AsyncGenerator[Answer]:
        if type(self).stream is Predictor.stream:
            yield await self.answer(request)
            return
        version = await self._check_request(request)
        async with aclosing(self._steps(self.stream, request)) as steps:
            async for outputs in steps:
                yield Answer(outputs, model=self.name, version=request.version or version, id=request.id)


class Transformer(ArrayModel):
    """A KServe transformer. Write `to_tensors` (request to model inputs) and `from_tensors` (outputs to answer).

    The predictor is the one that KServe's flags name (--predictor_host, --predictor_protocol), or
    `backend` where it is set by hand. Errors of the predictor pass through with their status.
    """

    def __init__(self, name: str = "model", *, backend: Backend | None = None, predictor_model: str = "") -> None:
        super().__init__(name)
        self._backend = backend
        self.predictor_model = predictor_model or config.read(config.ServerSettings).predictor_model or name

    def to_tensors(self, tensors: Tensors) -> Tensors | Awaitable[Tensors]:
        """The request's arrays to the predictor's inputs.

        A large one that fills `self.backend.empty(shape, dtype)` reaches a Triton in the same pod without a copy.

        What was made on a GPU may stay there (experimental): any array of PyTorch, CuPy, CV-CUDA, or another library
        with DLPack or the CUDA array interface, row-major, made on the default stream or finished on its own. A Triton
        in the same pod (gRPC at localhost) gets it by CUDA shared memory, all others by way of the host.
        """
        return tensors

    def from_tensors(self, tensors: Tensors) -> Tensors | Awaitable[Tensors]:
        """The predictor's outputs to the answer's arrays."""
        return tensors

    @property
    def backend(self) -> Backend:
        if self._backend is None:
            found = self.predictor_config
            if found is None or not found.predictor_host:
                raise CannotStart(
                    f"transformer {self.name!r} has no predictor: give --predictor_host name[:port] "
                    "and --predictor_protocol grpc-v2, v2 or v1 (KServe injects the first, not the second)"
                )
            settings = config.read(config.BackendSettings)
            self._backend = connect(
                found.predictor_host,
                found.predictor_protocol,
                use_ssl=found.predictor_use_ssl,
                timeout_s=float(found.predictor_request_timeout_seconds),
                settings=dataclasses.replace(settings, retries=found.predictor_request_retries or settings.retries),
            )
        return self._backend

    async def predictor_ready(self) -> bool:
        return await self.backend.ready(self.predictor_model)

    async def answer(self, request: Request) -> Answer:
        hop = await self._hop(request)
        with stage("predictor", self._observers["predict"]):
            answer = await self.backend.infer(hop)
        return await self._told(answer, request)

    async def answers(self, request: Request) -> AsyncGenerator[Answer]:
        """`from_tensors` is called for each of the predictor's answers."""
        async with aclosing(self.backend.stream(await self._hop(request))) as answers:
            async for answer in answers:
                yield await self._told(answer, request)

    async def _hop(self, request: Request) -> Request:
        """What the predictor is asked."""
        (await self.spec()).check_inputs(request.tensors)
        with stage("to_tensors", self._observers["pre"]):
            host, gpu = request.tensors, dict[str, Any]()
            if _is_written(self.to_tensors, Transformer.to_tensors):
                host, gpu = await self._run(self.to_tensors, request, request.tensors, _to_predictor)
        # Which outputs were asked for is said of the transformer's, so the predictor gives all of its own.
        return Request(
            host,
            gpu_tensors=gpu,
            model=self.predictor_model,
            version=request.version,
            id=request.id,
            parameters=request.parameters,
            headers=request.headers,
            tenant=request.tenant,
            principal=request.principal,
            deadline=request.deadline,
        )

    async def _told(self, answer: Answer, request: Request) -> Answer:
        """What the caller gets of it."""
        with stage("from_tensors", self._observers["post"]):
            outputs = answer.tensors
            if _is_written(self.from_tensors, Transformer.from_tensors):
                outputs = await self._run(self.from_tensors, request, outputs, check_outputs)
        return Answer(outputs, model=self.name, version=answer.version, id=request.id)

    async def close(self) -> None:
        if self._backend is not None:
            await self._backend.close()


def _is_written(hook: Handler, ours: Any) -> bool:
    """One that nobody wrote gives back what it is given: no thread need find that out."""
    return getattr(hook, "__func__", hook) is not ours


def _to_predictor(outputs: object, where: str) -> tuple[Tensors, dict[str, Any]]:
    """What a handler returned, by where it lies; ModelError as check_outputs."""
    host, gpu = gpu_tensors.apart(outputs) if isinstance(outputs, Mapping) else (outputs, {})
    return check_outputs(host, where), gpu


def only_as_stream(name: str) -> NotSupported:
    return NotSupported(
        f"model {name!r} gives several answers to one request: ask by ModelStreamInfer (gRPC), or by v2 REST with "
        "Accept: text/event-stream"
    )


@functools.lru_cache(maxsize=256)
def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function)


def hooks_are_ours(model: kserve.Model) -> TypeGuard[ArrayModel]:
    """Whether nobody overrode KServe's hooks, so that arrays may go to `answer` directly."""
    kind: Any = type(model)
    return _hooks_are_ours(kind)


@functools.lru_cache(maxsize=256)
def _hooks_are_ours(kind: Any) -> bool:
    theirs: Mapping[str, Any] = vars(kserve.Model)
    return (
        issubclass(kind, ArrayModel)
        and kind.predict is ArrayModel.predict
        and kind.preprocess is theirs["preprocess"]
        and kind.postprocess is theirs["postprocess"]
        and kind.__call__ is theirs["__call__"]
    )
