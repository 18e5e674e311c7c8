"""A KServe predictor in front of Triton: one of Triton's models under KServe's protocols."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, cast

import grpc.aio

from kservekit import config
from kservekit.codec.message import Request
from kservekit.config import BackendSettings, TritonSettings
from kservekit.errors import InvalidInput, ModelNotFound, ServingError
from kservekit.oip import connect
from kservekit.oip.grpc import GrpcBackend
from kservekit.oip.resilient import ResilientBackend
from kservekit.oip.shared_memory import SharedMemoryBackend
from kservekit.oip.triton_messages import messages
from kservekit.serving import ModelSpec, Predictor, Tensors, current_request

SPEC_AGE_S = 10.0
"""How long Triton's metadata is believed without asking again. A request is never refused on its account alone."""


class TritonPredictor(Predictor):
    """Ready only while Triton's model is. What the model takes and gives is Triton's own metadata.

    Settings: KSERVEKIT_TRITON_URL, _MODEL, _VERSION, _TIMEOUT_S. Triton may come up later than this process, and may
    load other versions of the model while both run.
    """

    def __init__(
        self,
        name: str = "model",
        *,
        settings: TritonSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name)
        self.settings = settings or config.read(TritonSettings)
        self.triton_model = self.settings.model or name
        self.backend = connect(
            self.settings.url, "grpc-v2", timeout_s=self.settings.timeout_s, settings=config.read(BackendSettings)
        )
        self._clock = clock
        self._spec: ModelSpec | None = None
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
            return await super()._check_request(request)
        except (InvalidInput, ModelNotFound):
            if self._asked_at >= began:
                raise
        await self._spec_since(began)
        return await super()._check_request(request)

    async def infer(self, tensors: Tensors) -> Tensors:
        request = current_request()
        version = request.version or self.settings.version
        # Binary or not, all or some: that is between us and our caller; Triton gives everything.
        asked = dataclasses.replace(request, tensors=tensors, model=self.triton_model, version=version, outputs={})
        try:
            answer = await self.backend.infer(asked)
        except ServingError as error:
            # The id is ours as often as the caller's, and the answer has it anyway.
            message = error.message.replace(f"[request id: {request.id or '<id_unknown>'}] ", "")
            raise type(error)(message, retry_after=error.retry_after) from error
        request.version = answer.version
        if self._spec is not None and answer.version not in self._spec.versions:
            self._spec = None  # Triton has loaded another one since
        return answer.tensors

    async def close(self) -> None:
        await self.backend.close()

    async def _spec_since(self, moment: float) -> ModelSpec:
        """What Triton said of the model after that moment. Whoever needs it meanwhile waits for one question."""
        if self._spec is None or self._asked_at < moment:
            async with self._asking:
                if self._spec is None or self._asked_at < moment:
                    now = self._clock()
                    spec = await self.backend.spec(self.triton_model, self.settings.version)
                    self._spec = await self._with_optional_inputs(spec)
                    self._asked_at = now
        return self._spec

    async def _with_optional_inputs(self, spec: ModelSpec) -> ModelSpec:
        """Metadata does not say which inputs may be left out; the model's configuration does."""
        stub: Any = cast(GrpcBackend | SharedMemoryBackend, cast(ResilientBackend, self.backend).wire).stub()
        asked = messages.ModelConfigRequest(name=self.triton_model, version=self.settings.version)
        try:
            reply = await stub.ModelConfig(asked, timeout=self.settings.timeout_s)
        except grpc.aio.AioRpcError:
            # Triton can be told to keep it to itself; then it is left to Triton to say what is missing.
            optional = {item.name for item in spec.inputs}
        else:
            optional = {item.name for item in reply.config.input if item.optional}
        inputs = tuple(dataclasses.replace(item, optional=item.name in optional) for item in spec.inputs)
        return dataclasses.replace(spec, inputs=inputs)
