"""A KServe predictor in front of Triton: its models under KServe's protocols."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, cast

import numpy as np

from kservekit import config, gpu_tensors
from kservekit.codec.message import Answer, Request
from kservekit.codec.parameters import check_known
from kservekit.config import BackendSettings, TritonSettings
from kservekit.errors import CannotStart, InvalidInput, ModelNotFound, ServingError
from kservekit.oip import Backend, connect
from kservekit.oip.resilient import ResilientBackend
from kservekit.oip.triton_config import TritonBackend, model_config
from kservekit.resilience import time_left
from kservekit.serving import ModelSpec, Predictor, Tensors, current_request
from kservekit.serving.model import only_as_stream
from kservekit.tensors import DATATYPES

SPEC_AGE_S = 10.0
"""How long Triton's metadata is believed without asking again. A request is never refused on its account alone."""

_SCHEMES = {"grpc": ("grpc-v2", False), "grpcs": ("grpc-v2", True), "http": ("v2", False), "https": ("v2", True)}


def models(name: str) -> list[TritonPredictor]:
    """The models that KSERVEKIT_TRITON_MODELS names, each under its own name, on one connection."""
    settings = config.read(TritonSettings)
    if not settings.models:
        raise CannotStart(
            "KSERVEKIT_TRITON_MODELS is not set: expected Triton's models, such as `resnet,fraud=fraud_xgb`; for "
            "a single one serve kservekit.predictors.triton:TritonPredictor"
        )
    backend, found = _connected(settings), []
    for item in settings.models:
        served, equals, triton_model = item.partition("=")
        if not served or (equals and not triton_model):
            raise CannotStart(f"KSERVEKIT_TRITON_MODELS has {item!r}: expected a model's name, or served=name")
        of_this_one = dataclasses.replace(settings, model=triton_model or served)
        found.append(TritonPredictor(served, settings=of_this_one, backend=backend))
    return found


def _connected(settings: TritonSettings) -> Backend:
    scheme, separator, host = settings.url.rpartition("://")
    if separator and scheme not in _SCHEMES:
        raise CannotStart(
            f"KSERVEKIT_TRITON_URL is {settings.url!r}: expected name:port, or one of "
            f"{', '.join(f'{known}://' for known in _SCHEMES)} before it"
        )
    protocol, use_ssl = _SCHEMES[scheme or "grpc"]
    backend_settings = config.read(BackendSettings)
    return connect(host, protocol, use_ssl=use_ssl, timeout_s=settings.timeout_s, settings=backend_settings)


class TritonPredictor(Predictor):
    """Ready only while Triton's model is. What the model takes and gives is Triton's own metadata and configuration.

    Settings: KSERVEKIT_TRITON_URL, _MODEL, _VERSION, _TIMEOUT_S. Triton may come up later than this process, and may
    load other versions of the model while both run.

    A request's parameters travel on: `sequence_id`, `sequence_start`, `sequence_end`, `priority`, and the model's own;
    a requested output's, too, such as `classification`.
    Where the model's queue policy takes a request's time-out (allow_timeout_override), it is what is left of the
    deadline: Triton drops what nobody waits for.

    A subclass may give its `infer` what it has made on a GPU: any array there of PyTorch, CuPy, CV-CUDA, or another
    library with DLPack or the CUDA array interface. See kservekit.serving.Transformer.
    """

    def __init__(
        self,
        name: str = "model",
        *,
        settings: TritonSettings | None = None,
        backend: Backend | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name)
        self.settings = settings or config.read(TritonSettings)
        self.triton_model = self.settings.model or name
        self.backend = backend or _connected(self.settings)
        self._clock = clock
        self._spec: ModelSpec | None = None
        self._max_batch_size = 0
        self._takes_timeout = self._decoupled = False
        self._asked_at = -math.inf
        self._asking = asyncio.Lock()

    async def healthy(self) -> bool:
        ready = await self.backend.ready(self.triton_model, self.settings.version)
        if not ready:
            self._spec = None  # it may come back as another model
        return ready

    async def spec(self) -> ModelSpec:
        return await self._spec_since(self._clock() - SPEC_AGE_S)

    async def _check_request(self, request: Request) -> str:
        """Before a request is refused Triton is asked again: it may have loaded what the request is for."""
        began = self._clock()
        try:
            return await self._fitting(request)
        except (InvalidInput, ModelNotFound):
            if self._asked_at >= began:
                raise
        await self._spec_since(began)
        return await self._fitting(request)

    async def _fitting(self, request: Request) -> str:
        version = await super()._check_request(request)
        spec = await self.spec()
        if spec.outputs and (unknown := [name for name in request.outputs if spec.output(name) is None]):
            names = ", ".join(repr(item.name) for item in spec.outputs)
            raise InvalidInput(f"unknown output {', '.join(map(repr, unknown))}: this model gives {names}")
        for name, parameters in request.outputs.items():
            if parameters and (memory := [key for key in parameters if key.startswith("shared_memory")]):
                raise InvalidInput(
                    f"output {name!r} has the parameter {memory[0]!r}: this server answers in its reply, and not in "
                    "shared memory of the caller's; leave it out"
                )
        if most := self._max_batch_size:
            rows = {array.shape[0] for array in request.tensors.values() if array.ndim}
            if len(rows) > 1:
                counts = ", ".join(f"{name!r} {list(array.shape)}" for name, array in request.tensors.items())
                raise InvalidInput(f"inputs of one batch share their first dimension; these do not: {counts}")
            if rows == {0} and ("sequence_id" in request.parameters or _no_rows(spec) is None):
                raise InvalidInput(f"a batch of 0 rows: model {self.name!r} takes at least 1")
            if rows and max(rows) > most:
                raise InvalidInput(f"a batch of {max(rows)} rows: model {self.name!r} takes at most {most}")
        return version

    async def infer(self, tensors: Tensors) -> Tensors:
        if self._decoupled:
            raise only_as_stream(self.name)
        if (empty := await self._without_rows(tensors)) is not None:
            return empty
        request = current_request()
        try:
            answer = await self.backend.infer(self._asked(request, tensors))
        except ServingError as error:
            raise _without_id(error, request) from error
        self._learn(answer, request)
        return answer.tensors

    async def stream(self, tensors: Tensors) -> AsyncGenerator[Tensors]:
        """Triton's ModelStreamInfer, for decoupled models and for all others."""
        if not self._decoupled and (empty := await self._without_rows(tensors)) is not None:
            yield empty
            return
        request = current_request()
        try:
            async with aclosing(self.backend.stream(self._asked(request, tensors))) as answers:
                async for answer in answers:
                    self._learn(answer, request)
                    yield answer.tensors
        except ServingError as error:
            raise _without_id(error, request) from error

    def _asked(self, request: Request, tensors: Tensors) -> Request:
        host, gpu = gpu_tensors.apart(tensors)
        return dataclasses.replace(
            request,
            tensors=host,
            gpu_tensors=gpu,
            model=self.triton_model,
            version=request.version or self.settings.version,
            # Binary or not is between us and our caller.
            outputs={
                name: {key: value for key, value in parameters.items() if key != "binary_data"}
                for name, parameters in request.outputs.items()
            },
            parameters=self._with_timeout(request),
        )

    async def _without_rows(self, tensors: Tensors) -> Tensors | None:
        """The answer to a batch without rows, which Triton does not take; None where there are some, or no batches."""
        arrays = tensors.values()
        if not self._max_batch_size or not arrays:
            return None
        if any(not isinstance(array, np.ndarray) or array.shape[:1] != (0,) for array in arrays):
            return None
        return _no_rows(await self.spec())

    def _learn(self, answer: Answer, request: Request) -> None:
        request.version = answer.version
        if self._spec is not None and answer.version not in self._spec.versions:
            self._spec = None  # Triton has loaded another one since

    async def close(self) -> None:
        await self.backend.close()

    def _with_timeout(self, request: Request) -> dict[str, Any]:
        """In microseconds, as Triton has it; a caller may say less."""
        if not self._takes_timeout or request.deadline == math.inf:
            return request.parameters
        check_known(request.parameters)  # before what is wrong is written over
        left = max(1, int(time_left(request.deadline) * 1e6))
        return {**request.parameters, "timeout": min(request.parameters.get("timeout") or left, left)}

    async def _spec_since(self, moment: float) -> ModelSpec:
        """What Triton said of the model after that moment. Whoever needs it meanwhile waits for one question."""
        if self._spec is None or self._asked_at < moment:
            async with self._asking:
                if self._spec is None or self._asked_at < moment:
                    now = self._clock()
                    spec = await self.backend.spec(self.triton_model, self.settings.version)
                    self._spec = await self._configured(spec)
                    self._asked_at = now
        return self._spec

    async def _configured(self, spec: ModelSpec) -> ModelSpec:
        backend = cast(TritonBackend, cast(ResilientBackend, self.backend).wire)
        found = await model_config(backend, self.triton_model, self.settings.version)
        if found is None:  # then it is left to Triton to say what is missing, or too much
            optional = {item.name for item in spec.inputs}
            self._max_batch_size, self._takes_timeout, self._decoupled = 0, False, False
        else:
            optional = {item.name for item in found.input if item.optional}
            self._max_batch_size = found.max_batch_size
            self._decoupled = found.model_transaction_policy.decoupled
            batching = found.dynamic_batching
            policies = [batching.default_queue_policy, *batching.priority_queue_policy.values()]
            self._takes_timeout = any(policy.allow_timeout_override for policy in policies)
        inputs = tuple(dataclasses.replace(item, optional=item.name in optional) for item in spec.inputs)
        return dataclasses.replace(spec, inputs=inputs)


def _no_rows(spec: ModelSpec) -> Tensors | None:
    """Outputs of 0 rows; None where their other sizes are open."""
    if not spec.outputs or any(-1 in item.shape[1:] for item in spec.outputs):
        return None
    return {item.name: np.zeros((0, *item.shape[1:]), DATATYPES[item.datatype]) for item in spec.outputs}


def _without_id(error: ServingError, request: Request) -> ServingError:
    """The id is ours as often as the caller's, and the answer has it anyway."""
    message = error.message.replace(f"[request id: {request.id or '<id_unknown>'}] ", "")
    return type(error)(message, retry_after=error.retry_after)
