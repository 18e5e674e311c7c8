"""A KServe predictor in front of Triton: one of Triton's models under KServe's protocols."""

from __future__ import annotations

import dataclasses

from kservekit import config
from kservekit.config import BackendSettings, TritonSettings
from kservekit.oip import connect
from kservekit.serving import ModelSpec, Predictor, Tensors, current_request


class TritonPredictor(Predictor):
    """Ready only while Triton's model is. What the model takes and gives is Triton's own metadata.

    Settings: KSERVEKIT_TRITON_URL, _MODEL, _VERSION, _TIMEOUT_S. Triton may come up later than this process.
    """

    def __init__(self, name: str = "model", *, settings: TritonSettings | None = None) -> None:
        super().__init__(name)
        self.settings = settings or config.read(TritonSettings)
        self.triton_model = self.settings.model or name
        self.backend = connect(
            self.settings.url, "grpc-v2", timeout_s=self.settings.timeout_s, settings=config.read(BackendSettings)
        )
        self._spec: ModelSpec | None = None

    async def healthy(self) -> bool:
        ready = await self.backend.ready(self.triton_model, self.settings.version)
        if not ready:
            self._spec = None  # it may come back as another model
        return ready

    async def spec(self) -> ModelSpec:
        if self._spec is None:
            self._spec = await self.backend.spec(self.triton_model, self.settings.version)
        return self._spec

    async def infer(self, tensors: Tensors) -> Tensors:
        request = current_request()
        version = request.version or self.settings.version
        # Binary or not, all or some: that is between us and our caller; Triton gives everything.
        asked = dataclasses.replace(request, tensors=tensors, model=self.triton_model, version=version, outputs={})
        return (await self.backend.infer(asked)).tensors

    async def close(self) -> None:
        await self.backend.close()
