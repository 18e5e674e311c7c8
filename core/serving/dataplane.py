"""What REST and gRPC both ask: which models there are, whether they are ready, and their answer to a request."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Any

import kserve

from kservekit import __version__
from kservekit.codec.message import Answer, Request
from kservekit.errors import ModelNotFound, NotSupported, Unavailable
from kservekit.serving import kserve_types
from kservekit.serving.model import ArrayModel, Transformer, hooks_are_ours
from kservekit.tensors import ModelSpec

log = logging.getLogger(__name__)


class DataPlane:
    """`check_predictors` is KServe's --enable_predictor_health_check: a transformer is ready when its predictor is."""

    def __init__(self, registry: kserve.ModelRepository, *, check_predictors: bool = False) -> None:
        self.registry = registry
        self.check_predictors = check_predictors
        self.draining = False

    def server_metadata(self) -> dict[str, Any]:
        return {"name": "kservekit", "version": __version__, "extensions": ["binary_tensor_data"]}

    def names(self) -> list[str]:
        return list(self.registry.get_models())

    def model(self, name: str) -> Any:
        model = self.registry.get_model(name)
        if model is None:
            raise ModelNotFound(
                f"unknown model {name!r}: this server has {', '.join(map(repr, self.names())) or 'none'}"
            )
        return model

    async def model_ready(self, name: str) -> bool:
        model = self.model(name)
        if self.draining or not model.ready or not await model.healthy():
            return False
        if self.check_predictors and isinstance(model, Transformer):
            return await model.predictor_ready()
        return True

    async def ready(self) -> bool:
        """Whether every model can answer: loaded, and its backend there."""
        return not self.draining and all(await asyncio.gather(*(self.model_ready(name) for name in self.names())))

    async def spec(self, name: str) -> ModelSpec:
        model = self.model(name)
        if isinstance(model, ArrayModel):
            return await model.spec()
        return ModelSpec()

    async def metadata(self, name: str) -> dict[str, Any]:
        """The protocol's model metadata."""
        model = self.model(name)
        if isinstance(model, ArrayModel):
            spec = await model.spec()
            inputs = [item.as_metadata() for item in spec.inputs]
            outputs = [item.as_metadata() for item in spec.outputs]
            platform, versions = spec.platform or "kservekit", list(spec.versions)
        else:
            inputs, outputs = model.get_input_types(), model.get_output_types()
            platform, versions = "", []
        return {"name": name, "versions": versions, "platform": platform, "inputs": inputs, "outputs": outputs}

    async def infer(self, request: Request) -> Answer:
        """The requested outputs; a ServingError for anything else."""
        model = self._loaded(request.model)
        given = request.id
        request.id = given or request.headers.get("x-request-id", "") or uuid.uuid4().hex
        if hooks_are_ours(model):
            answer = await model.answer(request)
        else:
            result = await self._through_hooks(model, kserve_types.infer_request_from(request), request)
            answer = kserve_types.answer_from(result, request)
        answer.id = given
        return answer.only(request.outputs)

    def takes_arrays(self, name: str) -> bool:
        """Whether a v1 body is for us to read; a model that overrides KServe's hooks gets the JSON itself."""
        return hooks_are_ours(self.model(name))

    async def predict_v1(self, payload: Any, request: Request) -> Any:
        """A v1 body, as JSON, through KServe's hooks."""
        return await self._through_hooks(self._loaded(request.model), payload, request)

    async def _through_hooks(self, model: Any, payload: Any, request: Request) -> Any:
        with kserve_types.our_errors(request.model, request.id):
            try:
                result, _ = await model(payload, headers=dict(request.headers))
            except Exception:
                log.exception("model failed: model=%s id=%s", request.model, request.id or "-")
                raise
        return result

    def _loaded(self, name: str) -> Any:
        model = self.model(name)
        if not model.ready:
            raise Unavailable(f"model {name!r} is not loaded yet", retry_after=1)
        if not callable(model):
            raise NotSupported(f"model {name!r} does not answer requests")
        return model
