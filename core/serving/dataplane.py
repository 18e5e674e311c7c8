"""What REST and gRPC both ask: which models there are, whether they are ready, and their answer to a request."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import re
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext
from typing import Any, TypeVar

import kserve
from kserve.model import InferenceVerb

from kservekit import __version__
from kservekit.cache import ResponseCache
from kservekit.codec.message import Answer, Request
from kservekit.config import IdentitySettings, ServerSettings
from kservekit.errors import (
    CannotStart,
    Forbidden,
    KServeKitError,
    ModelError,
    ModelNotFound,
    NotSupported,
    Unauthenticated,
    Unavailable,
)
from kservekit.identity import Authenticator, Principal, require_role
from kservekit.resilience import Limiter
from kservekit.serving import kserve_types, kserve_v1
from kservekit.serving.headers import ONCE, models_own
from kservekit.serving.in_time import in_time
from kservekit.serving.kserve_errors import our_errors
from kservekit.serving.model import ArrayModel, Transformer, hooks_are_ours
from kservekit.serving.pool import handler_pool
from kservekit.tensors import ModelSpec

log = logging.getLogger(__name__)

Result = TypeVar("Result")

LONGEST_ID = 128
"""Characters of a request's id in handlers, messages and logs, where it stays on its line; the answer has it whole."""

LOOK_S = 0.01
"""How often it is looked whether a model that is to be unloaded still has requests."""

_NO_LIMIT = nullcontext()

_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")

_END: Any = object()

_ids = map(f"{uuid.uuid4().hex[:16]}-{{:x}}".format, itertools.count(1))


class DataPlane:
    """`check_predictors` is KServe's --enable_predictor_health_check: a transformer is ready when its predictor is."""

    def __init__(
        self,
        registry: kserve.ModelRepository,
        settings: ServerSettings,
        identity: IdentitySettings | None = None,
        *,
        check_predictors: bool = False,
        cache: ResponseCache | None = None,
    ) -> None:
        self.cache = cache
        identity = identity or IdentitySettings()
        self._authenticator = Authenticator.read(identity)
        self._admin_role = identity.admin_role
        self._someone_is_known = bool(identity.trust_headers or identity.jwt_keys or identity.api_keys)
        self._tenant_header = settings.tenant_header.lower()
        given_by_proxies = {identity.principal_header.lower(), identity.roles_header.lower(), self._tenant_header}
        self.once = ONCE | given_by_proxies
        """Headers that may not be repeated."""
        self.registry = registry
        self.settings = settings
        self.check_predictors = check_predictors
        self._running: Counter[Any] = Counter()
        """Requests in flight, by model."""
        self.anew: Callable[[str], Any] = lambda name: None
        """Makes a model once more, to be loaded beside the one that serves; None where nobody knows how."""
        self._changing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._unloaded: set[str] = set()
        """Models that are not here on request."""
        self._loads: dict[str, str] = {}
        """Tells answers of a model that was loaded on request from those before; by name, none for the first load."""
        self.draining = False
        """Not ready any more, and still serving."""
        self.closing = False
        """About to end."""
        self.all_callers = Limiter(settings.max_concurrency, "this server (KSERVEKIT_MAX_CONCURRENCY)")
        self.per_tenant = Limiter(settings.tenant_max_concurrency, "this tenant (KSERVEKIT_TENANT_MAX_CONCURRENCY)")
        self.limited = bool(settings.max_concurrency or settings.tenant_max_concurrency)
        """Whether there is a limit on callers at all."""

    def server_metadata(self) -> dict[str, Any]:
        extensions = ["binary_tensor_data", *(["model_repository"] if self.settings.repository_api else [])]
        return {"name": "kservekit", "version": __version__, "extensions": extensions}

    def names(self) -> list[str]:
        return list(self.registry.get_models())

    def model(self, name: str) -> Any:
        model = self.registry.get_model(name)
        if model is None:
            names = ", ".join(map(repr, self.names())) or "none"
            raise ModelNotFound(f"unknown model {name[:100]!r}: this server has {names}")
        return model

    async def model_ready(self, name: str) -> bool:
        model = self.model(name)
        if self.draining or not model.ready or not await model.healthy():
            return False
        if self.check_predictors and isinstance(model, Transformer):
            return await model.predictor_ready()
        return True

    async def ready(self) -> bool:
        """Whether every model can answer: loaded, and its backend there. One that was unloaded on request need not."""
        names = [name for name in self.names() if name not in self._unloaded]
        return not self.draining and all(await asyncio.gather(*map(self.model_ready, names)))

    async def spec(self, name: str, deadline: float) -> ModelSpec:
        """What the model takes and gives; a backend may have to be asked."""
        model = self.model(name)
        if not isinstance(model, ArrayModel):
            return ModelSpec()
        if type(model).spec is ArrayModel.spec:  # declared by the class: nobody is asked
            return await model.spec()
        return await in_time(model.spec(), deadline, f"model {name!r}")

    async def metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """The protocol's model metadata; ModelNotFound for a version that there is not."""
        model = self.model(name)
        if isinstance(model, ArrayModel):
            spec = await model.spec()
            inputs = [item.as_metadata() for item in spec.inputs]
            outputs = [item.as_metadata() for item in spec.outputs]
            platform, versions = spec.platform or "kservekit", list(spec.versions)
        else:
            inputs, outputs = model.get_input_types(), model.get_output_types()
            platform, versions = "", []
        if version and versions and version not in versions:
            raise ModelNotFound(f"model {name!r} has no version {version[:40]!r}: it has {', '.join(versions)}")
        return {"name": name, "versions": versions, "platform": platform, "inputs": inputs, "outputs": outputs}

    def index(self, *, ready: bool = False) -> list[dict[str, str]]:
        """The repository index, as Triton's model repository extension has it; `ready`: of models that are, alone."""
        return [
            {"name": name, "state": "READY" if model.ready else "UNAVAILABLE", "reason": ""}
            for name, model in self.registry.get_models().items()
            if model.ready or not ready
        ]

    def principal(self, headers: Mapping[str, str]) -> Principal | None:
        """Who asks; Unauthenticated where nobody is proven and somebody must be, or a credential is wrong."""
        return self._authenticator.principal(headers)

    def tenant(self, headers: Mapping[str, str], principal: Principal | None) -> str:
        """Who is counted for the limits: whom the header names where there is one for it, else the principal."""
        if self._tenant_header:
            return headers.get(self._tenant_header, "")
        return "" if principal is None else principal.name

    def room(self, tenant: str) -> AbstractContextManager[None]:
        """A place within the limits on callers, taken before a request is read; TooManyRequests where there is none."""
        return self._room(tenant) if self.limited else _NO_LIMIT

    @contextmanager
    def _room(self, tenant: str) -> Iterator[None]:
        with self.all_callers.slot(), self.per_tenant.slot(tenant):
            yield

    async def load(self, name: str, principal: Principal | None) -> None:
        """Loads a model that was unloaded, or loads it anew: the one that serves goes on until the new one is there,
        and where that does not load, too."""
        self._repository_is_open_to(principal)
        self.model(name)
        async with self._changing[name]:
            old = self.model(name)
            new = await self._loaded_anew(name, old)
            self.registry.update(new)
            self._loads[name] = uuid.uuid4().hex
            self._unloaded.discard(name)
            log.info("loaded on request: model=%r by=%r", name, principal and principal.name)
            if new is not old:
                await asyncio.shield(asyncio.create_task(self._retired(old)))

    async def _loaded_anew(self, name: str, old: Any) -> Any:
        served = old.ready
        try:
            new = await handler_pool().run(self.anew, name) or old
            await load_model(name, new, again=new is old)
        except Exception as error:
            old.ready = served
            log.error("%s", error, exc_info=not isinstance(error, KServeKitError))
            raise ModelError(f"model {name!r} does not load; the server's log has the reason") from error
        return new

    async def _retired(self, model: Any) -> None:
        if model.ready:
            await self._out_of_use(model)
        if isinstance(model, ArrayModel):
            await model.close()

    async def unload(self, name: str, principal: Principal | None) -> None:
        """Takes a model out of service once what is in flight is answered; its place is kept, to be loaded again. The
        server stays ready for its other models."""
        self._repository_is_open_to(principal)
        self.model(name)
        async with self._changing[name]:
            self._unloaded.add(name)
            log.info("unloaded on request: model=%r by=%r", name, principal and principal.name)
            await self._out_of_use(self.model(name))

    async def _out_of_use(self, model: Any) -> None:
        model.ready = False
        async with asyncio.timeout(self.settings.timeout_s):  # no request takes longer
            while self._running[model]:  # noqa: ASYNC110 - a count costs a request less than an event
                await asyncio.sleep(LOOK_S)
        del self._running[model]
        await asyncio.to_thread(model.stop)

    def _repository_is_open_to(self, principal: Principal | None) -> None:
        if not self.settings.repository_api:
            raise Forbidden("this server does not load or unload models on request (KSERVEKIT_REPOSITORY_API)")
        if not self._someone_is_known:
            return
        try:
            require_role(principal, self._admin_role)
        except (Unauthenticated, Forbidden):
            log.warning("refused to load or unload a model: by=%r", principal and principal.name)
            raise

    def deadline(self, asked_s: float | None) -> float:
        """The moment until which a request may take: the caller's time or the server's, whichever is less."""
        limit = self.settings.timeout_s
        return time.monotonic() + (limit if asked_s is None else min(limit, asked_s))

    async def infer(self, request: Request) -> Answer:
        """The requested outputs; a ServingError for anything else."""
        given = _named(request)
        answer = await self._guarded(request, self._answer)
        own = answer.beside and answer.beside.id
        answer.id = own if own and own != request.id else given
        return answer.only(request.outputs)

    async def stream(self, request: Request) -> AsyncGenerator[Answer]:
        """The answers of a model that may have several, each with the requested outputs; one of any other."""
        model = self._loaded(request.model)
        if not hooks_are_ours(model):
            yield await self.infer(request)
            return
        given = _named(request)
        self._running[model] += 1
        try:
            async with aclosing(model.answers(request)) as answers:
                while (each := await in_time(_next(answers), request.deadline, f"model {request.model!r}")) is not None:
                    each.id = given
                    yield each.only(request.outputs)
        finally:
            self._running[model] -= 1

    async def _answer(self, request: Request) -> Answer:
        model = self._loaded(request.model)
        if hooks_are_ours(model):
            if self.cache is None:
                return await model.answer(request)
            load = self._loads.get(request.model, "")
            versions = (await model.spec()).versions
            version = request.version or (versions[-1] if versions else "")
            return await self.cache.answer(request, version, lambda: model.answer(request), load=load)
        with our_errors(request.model, request.id):
            payload = kserve_types.infer_request_from(request)
            if payload.id:
                payload.id = request.id  # as logs have it
            result, headers = await model(payload, headers=_with_id(request))
            return kserve_types.answer_from(result, headers, request)

    def takes_arrays(self, name: str) -> bool:
        """Whether a v1 body is for us to read; a model that overrides KServe's hooks gets the JSON itself."""
        return hooks_are_ours(self.model(name))

    async def predict_v1(self, payload: Any, request: Request) -> kserve_v1.Written:
        """A v1 payload through KServe's hooks."""
        return await self._v1(self._loaded(request.model), payload, request, InferenceVerb.PREDICT)

    async def explain_v1(self, payload: Any, request: Request) -> kserve_v1.Written:
        """The same for KServe's explain hook; NotSupported for a model without one."""
        model = self._loaded(request.model)
        if getattr(type(model), "explain", kserve.Model.explain) is kserve.Model.explain:
            raise NotSupported(f"model {request.model!r} does not explain: it has no explain hook")
        return await self._v1(model, payload, request, InferenceVerb.EXPLAIN)

    async def _v1(self, model: Any, payload: Any, request: Request, verb: InferenceVerb) -> kserve_v1.Written:
        _named(request)

        async def through_hooks(request: Request) -> tuple[Any, Any]:
            with our_errors(request.model, request.id):
                result, headers = await model(payload, headers=_with_id(request), verb=verb)
                if isinstance(result, AsyncIterator):
                    return models_own(headers, request.model), result
                return kserve_v1.written(result, headers, request)

        headers, body = await self._guarded(request, through_hooks)
        if isinstance(body, bytes):
            return headers, body
        pieces = self._pieces(body, request, model)
        first = await anext(pieces, None)  # what goes wrong before it has its own status

        async def whole() -> AsyncGenerator[bytes]:
            async with aclosing(pieces):
                if first is not None:
                    yield first
                async for piece in pieces:
                    yield piece

        return {"content-type": "application/octet-stream"} | headers, whole()

    async def _pieces(self, found: AsyncIterator[Any], request: Request, model: Any) -> AsyncGenerator[bytes]:
        """What a hook's own stream yields, within the request's deadline."""

        async def step() -> Any:
            with our_errors(request.model, request.id):
                value = await anext(found, _END)
                return None if value is _END else kserve_v1.piece(value, request.model)

        self._running[model] += 1
        try:
            while (piece := await in_time(step(), request.deadline, f"model {request.model!r}")) is not None:
                yield piece
        finally:
            self._running[model] -= 1
            if isinstance(found, AsyncGenerator):
                await found.aclose()

    async def _guarded(self, request: Request, work: Callable[[Request], Coroutine[Any, Any, Result]]) -> Result:
        """Within the request's deadline."""
        model = self.model(request.model)
        self._running[model] += 1
        try:
            return await in_time(work(request), request.deadline, f"model {request.model!r}")
        finally:
            self._running[model] -= 1

    def _loaded(self, name: str) -> Any:
        model = self.model(name)
        if not model.ready:
            raise Unavailable(f"model {name!r} is not loaded", retry_after=1)
        if not callable(model):
            raise NotSupported(f"model {name!r} does not answer requests")
        return model


def _named(request: Request) -> str:
    """Gives a request the id that handlers and logs have of it. What the caller gave, which the answer has whole."""
    given = request.id
    named = given or request.headers.get("x-request-id")
    request.id = _UNPRINTABLE.sub("?", named[:LONGEST_ID]) if named else next(_ids)
    return given


def _with_id(request: Request) -> dict[str, str]:
    """Its headers for KServe's hooks, which have its id from there, and hand it on to a predictor."""
    return {"x-request-id": request.id, **request.headers}


async def _next(answers: AsyncGenerator[Answer]) -> Answer | None:
    return await anext(answers, None)


async def load_model(name: str, model: Any, *, again: bool = False) -> None:
    """KServe's start and load hooks in a thread; CannotStart says why they did not make the model ready. One that is
    ready is loaded where it is to be loaded `again`, and not otherwise."""
    try:
        if getattr(type(model), "start", kserve.Model.start) is not kserve.Model.start:
            await handler_pool().run(model.start)
        if model.ready and not again:
            return
        # Not asyncio's own threads: Python waits for those when it ends, and a load may take minutes.
        loaded = await handler_pool().run(model.load)
        if inspect.isawaitable(loaded):
            await loaded
    except KServeKitError:
        raise
    except Exception as error:
        raise CannotStart(f"model {name!r} does not load: {type(error).__name__}: {error}") from error
    if not model.ready:
        raise CannotStart(f"model {name!r} does not load: its load() left ready at False")
