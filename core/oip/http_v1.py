"""KServe's v1 protocol, for predictors that speak nothing else; it carries every tensor as JSON."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from urllib.parse import quote

from kservekit import errors
from kservekit.codec import rest_v1
from kservekit.codec.message import Answer, Request
from kservekit.oip.backend import backend_failed, on_host
from kservekit.oip.http import HttpBackend
from kservekit.tensors import ModelSpec


class HttpV1Backend(HttpBackend):
    async def infer(self, request: Request) -> Answer:
        request = await on_host(request) if request.gpu_tensors else request
        parts = [rest_v1.encode_request(request.tensors)]
        path = f"/v1/models/{quote(request.model, safe='')}:predict"
        _, body = await self.call("POST", path, request, parts, {"content-type": "application/json"})
        try:
            answer = rest_v1.decode_answer(body)
        except errors.InvalidInput as error:
            raise backend_failed(request, f"malformed answer: {error}") from error
        answer.model, answer.id = request.model, request.id
        return answer

    async def stream(self, request: Request) -> AsyncGenerator[Answer]:
        raise errors.NotSupported(
            f"the backend of model {request.model!r} is reached by v1, which has no streams: --predictor_protocol v2"
        )
        yield  # what makes it a generator

    async def ready(self, model: str, version: str = "") -> bool:
        return await self.answers(f"/v1/models/{quote(model, safe='')}", model)

    async def spec(self, model: str, version: str = "") -> ModelSpec:
        """v1 has no metadata: nothing is declared."""
        return ModelSpec()
