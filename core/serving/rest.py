"""REST: KServe's v1 and the Open Inference Protocol's v2 routes as one ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from prometheus_client import REGISTRY, CollectorRegistry, exposition, multiprocess

from kservekit.codec import events, rest_v1, rest_v2
from kservekit.codec.json_values import check_depth, dumps, loads
from kservekit.codec.message import Request, check_name
from kservekit.config import ServerSettings
from kservekit.errors import (
    Cancelled,
    InvalidInput,
    KServeKitError,
    ModelError,
    PayloadTooLarge,
    ServingError,
    Unavailable,
)
from kservekit.identity import Principal
from kservekit.serving import cloudevents, kserve_types, kserve_v1
from kservekit.serving.dataplane import DataPlane
from kservekit.serving.departure import SCOPE_KEY, Departure
from kservekit.serving.headers import as_dict, seconds
from kservekit.serving.unpacked import unpacked
from kservekit.telemetry import timing

log = logging.getLogger(__name__)

Headers = dict[str, str]
Held = contextlib.ExitStack
Reply = tuple[int, Headers, bytes | AsyncGenerator[bytes]]
"""Status, headers, and the body: whole, or its pieces as they come."""
Ways = dict[str, tuple[Callable[..., Coroutine[Any, Any, Reply]], dict[str, str]]]
"""What a path stands for, by method: the handler, and what it is told of the path."""

Hooks = Callable[[Any, Request], Coroutine[Any, Any, kserve_v1.Written]]
"""predict_v1 or explain_v1 of the data plane."""

_JSON = {"content-type": "application/json"}
_VERSION = r"(?:/versions/(?P<version>[^/]+))?"
_NAME = r"(?P<name>[^/:]+)"

LONG_PATH = 256
"""Shorter paths are taken apart once and remembered; there may be many, and no more than some."""

DISCARD_S = 2.0
"""How long the rest of a body that is too large is read, so that its sender comes to hear so."""


@dataclass(slots=True)
class Call:
    """What is known of a POST before its body is read."""

    headers: Headers
    principal: Principal | None
    tenant: str
    deadline: float

    def told(self, request: Request, model: str) -> Request:
        request.model, request.headers = model, self.headers
        request.principal, request.tenant, request.deadline = self.principal, self.tenant, self.deadline
        return request


class RestApp:
    """`revision` is what each answer's kservekit-revision header says, so that a canary can be told from its stable."""

    def __init__(self, dataplane: DataPlane, settings: ServerSettings, revision: str) -> None:
        self.dataplane = dataplane
        self.settings = settings
        self.revision = revision.encode("latin-1", "replace")
        self._most_body = settings.max_body_bytes
        self._most_json = min(settings.max_json_bytes, settings.max_body_bytes)
        self.routes: list[tuple[str, re.Pattern[str], Callable[..., Coroutine[Any, Any, Reply]]]] = [
            (method, re.compile(path), handler)
            for method, path, handler in (
                ("POST", rf"/v2/models/{_NAME}{_VERSION}/infer", self.infer_v2),
                ("POST", rf"/v1/models/{_NAME}:predict", self.predict_v1),
                ("POST", rf"/v1/models/{_NAME}:explain", self.explain_v1),
                ("GET", r"/v2/health/live", self.live),
                ("GET", r"/v2/health/ready", self.ready),
                ("GET", rf"/v2/models/{_NAME}{_VERSION}/ready", self.model_ready),
                ("GET", rf"/v1/models/{_NAME}", self.model_ready),
                ("GET", r"/metrics", self.metrics),
                ("GET", rf"/v2/models/{_NAME}{_VERSION}", self.metadata),
                ("GET", r"/v[12]/models", self.models),
                ("POST", r"/v2/repository/index", self.index),
                ("POST", rf"/v2/repository/models/{_NAME}/load", self.load),
                ("POST", rf"/v2/repository/models/{_NAME}/unload", self.unload),
                ("GET", r"/v2", self.server),
                ("GET", r"/", self.alive),
            )
        ]

        self._counted = {self.infer_v2, self.predict_v1, self.explain_v1}
        """What the limits on callers are for."""
        self._ways_before = lru_cache(256)(self._ways)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if not self.dataplane.limited:
            await self._answer(scope, receive, send)
            return
        with contextlib.ExitStack() as held:
            await self._answer(scope, receive, send, held)

    async def _answer(self, scope: dict[str, Any], receive: Any, send: Any, held: Held | None = None) -> None:
        """`held` is given the request's place within the limits, until its answer is sent."""
        stages = timing.measure() if self.settings.server_timing else None
        try:
            with timing.stage("total"):
                status, headers, body = await self._reply(scope, receive, held)
        except ServingError as error:
            status, headers, body = error_reply(error)
        except Exception:
            log.exception("a fault of the server itself: %s %s", scope["method"], scope["path"])
            status, headers, body = error_reply(ModelError("the server failed; its log has the reason"))
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        raw.append((b"kservekit-revision", self.revision))
        if isinstance(body, bytes):
            raw.append((b"content-length", b"%d" % len(body)))
        if stages is not None:
            raw.append((b"server-timing", timing.as_header(stages).encode()))
        if self.dataplane.draining:
            raw.append((b"connection", b"close"))  # so that a pool of connections finds another server in time
        await send({"type": "http.response.start", "status": status, "headers": raw})
        if not isinstance(body, bytes):
            departure: Departure = scope[SCOPE_KEY]
            try:
                await departure.ends(_send_each(body, send))
            except Cancelled:  # who went away needs no word of it
                pass
            except ServingError as error:
                log.warning("a stream broke off: %s: %s", scope["path"], error)
                return  # uvicorn closes the connection, so that the caller knows that this was not all
            body = b""
        await send({"type": "http.response.body", "body": body})

    async def _reply(self, scope: dict[str, Any], receive: Any, held: Held | None) -> Reply:
        # raw_path keeps %2F apart from /.
        path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
        ways = (self._ways_before if len(path) < LONG_PATH else self._ways)(path)
        method = scope["method"]
        way = ways.get("GET" if method == "HEAD" else method)
        if way is None:
            return _no_such(method, path, ways)
        handler, arguments = way
        if method != "POST":
            return await handler(**arguments)
        pairs = [(key.decode("latin-1"), value.decode("latin-1")) for key, value in scope["headers"]]
        headers = as_dict(pairs, self.dataplane.once)
        principal = self.dataplane.principal(headers)
        call = Call(
            headers, principal, self.dataplane.tenant(headers, principal), self.dataplane.deadline(seconds(headers))
        )
        if handler in self._counted:
            self.dataplane.model(arguments["name"])
            if held is not None:
                held.enter_context(self.dataplane.room(call.tenant))  # before memory is spent on the body
        # Only a v2 request may have a part that is not JSON.
        has_binary = handler == self.infer_v2 and rest_v2.JSON_LENGTH_HEADER in headers
        body = await self._body(headers, receive, self._most_body if has_binary else self._most_json)
        departure: Departure = scope[SCOPE_KEY]
        return await departure.ends(handler(**arguments, call=call, body=body))

    def _ways(self, path: str) -> Ways:
        # KServe's paths end without a slash; one too many is harmless.
        path = path.split("?")[0].rstrip("/") or "/"
        found: Ways = {}
        for method, pattern, handler in self.routes:
            match = pattern.fullmatch(path)
            if match is not None and method not in found:
                found[method] = handler, {key: unquote(value or "") for key, value in match.groupdict().items()}
        return found

    async def _body(self, headers: Headers, receive: Any, limit: int) -> bytes | bytearray:
        """The whole body; refused before it is read where it says that it is too large, and while it is."""
        if int(headers.get("content-length", 0)) > limit:
            if "expect" not in headers:  # one who waits for our word has sent nothing yet
                await self._discard(receive)
            raise self._too_large(limit)
        message = await receive()
        body: bytes | bytearray = message.get("body", b"")
        if message.get("more_body"):
            body = bytearray(body)
            await self._rest_of(body, receive, limit)
        if message["type"] == "http.disconnect":
            raise Cancelled("the caller went away before its request was whole")
        if len(body) > limit:
            raise self._too_large(limit)
        encoding = headers.get("content-encoding")
        if encoding is None:
            return body
        try:
            return await unpacked(body, encoding, limit)
        except PayloadTooLarge:
            raise self._too_large(limit, "unpacks to") from None

    async def _rest_of(self, body: bytearray, receive: Any, limit: int) -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Cancelled("the caller went away before its request was whole")
            body += message.get("body", b"")
            if len(body) > limit:
                body.clear()
                await self._discard(receive)
                raise self._too_large(limit)
            if not message.get("more_body"):
                return

    async def _discard(self, receive: Any) -> None:
        """Reads on, within reason: many clients hear no answer before they have sent everything."""
        left = self._most_body
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(DISCARD_S, self.settings.body_timeout_s / 2)):
                while left > 0:
                    message = await receive()
                    if not message.get("more_body"):
                        return
                    left -= len(message.get("body", b""))

    def _too_large(self, limit: int, what: str = "is") -> PayloadTooLarge:
        if limit < self._most_body:
            return PayloadTooLarge(
                f"the body {what} over {limit} bytes of JSON, the limit of this server (KSERVEKIT_MAX_JSON_BYTES): "
                "send tensors by v2 as binary data, or by gRPC"
            )
        return PayloadTooLarge(
            f"the body {what} over {limit} bytes, the limit of this server (KSERVEKIT_MAX_BODY_BYTES)"
        )

    async def infer_v2(self, name: str, version: str, call: Call, body: bytes) -> Reply:
        with timing.stage("read"):
            request = rest_v2.decode_request(
                body,
                call.headers.get(rest_v2.JSON_LENGTH_HEADER),
                max_tensors=self.settings.max_tensors,
                max_json_bytes=self.settings.max_json_bytes,
            )
        request.version, request.source = check_name(version, "the version"), (kserve_types.from_rest, body)
        if events.wanted(call.headers.get("accept", "")):
            return await self._events(call.told(request, name))
        answer = await self.dataplane.infer(call.told(request, name))
        with timing.stage("write"):
            spec = await self.dataplane.spec(name, call.deadline)
            parts, json_length = rest_v2.encode_answer(answer, request, spec)
            written = b"".join(parts)
        headers = rest_v2.headers(json_length)
        return 200, headers if answer.beside is None else answer.beside.headers | headers, written

    async def _events(self, request: Request) -> Reply:
        """Server-sent events. What goes wrong before the first answer has its own status."""
        request.binary_outputs = False
        for parameters in request.outputs.values():
            if parameters.pop("binary_data", False):
                raise InvalidInput("binary outputs do not go with text/event-stream, which is text")
        spec = await self.dataplane.spec(request.model, request.deadline)
        answers = self.dataplane.stream(request)
        first = await anext(answers, None)

        async def pieces() -> AsyncGenerator[bytes]:
            async with aclosing(answers):
                try:
                    answer = first
                    while answer is not None:
                        parts, _ = rest_v2.encode_answer(answer, request, spec)
                        yield events.encode(events.Event(b"".join(parts)))
                        answer = await anext(answers, None)
                except ServingError as error:
                    yield events.encode(events.Event(_as_event(error), events.ERROR))

        return 200, {"content-type": events.CONTENT_TYPE, "cache-control": "no-cache"}, pieces()

    async def predict_v1(self, name: str, call: Call, body: bytes) -> Reply:
        if not self.dataplane.takes_arrays(name):
            return await self._hooked_v1(self.dataplane.predict_v1, name, call, body)
        with timing.stage("read"):
            event, payload = cloudevents.opened(call.headers, body)
        spec = await self.dataplane.spec(name, call.deadline)
        with timing.stage("read"):
            request = rest_v1.request_from(payload, spec, max_tensors=self.settings.max_tensors)
        answer = await self.dataplane.infer(call.told(request, name))
        with timing.stage("write"):
            written = rest_v1.encode_answer(answer, spec)
        return cloudevents.closed(event, name, 200, dict(_JSON), written)

    async def explain_v1(self, name: str, call: Call, body: bytes) -> Reply:
        return await self._hooked_v1(self.dataplane.explain_v1, name, call, body)

    async def _hooked_v1(self, hooks: Hooks, name: str, call: Call, body: bytes) -> Reply:
        event, payload = cloudevents.opened(call.headers, body, lambda body: kserve_v1.payload_from(body, call.headers))
        check_depth(payload, "the body")
        headers, written = await hooks(payload, call.told(Request({}), name))
        if isinstance(written, bytes):
            return cloudevents.closed(event, name, 200, headers, written)
        return 200, headers, written

    async def metadata(self, name: str, version: str) -> Reply:
        return 200, dict(_JSON), dumps(await self.dataplane.metadata(name, version))

    async def model_ready(self, name: str, version: str = "") -> Reply:
        if version:
            await self.dataplane.metadata(name, version)
        if not await self.dataplane.model_ready(name):
            raise Unavailable(f"model {name!r} is not ready", retry_after=1)
        return 200, dict(_JSON), dumps({"name": name, "ready": True})

    async def models(self) -> Reply:
        return 200, dict(_JSON), dumps({"models": self.dataplane.names()})

    async def index(self, call: Call, body: bytes) -> Reply:
        asked = loads(body) if body else {}
        ready = isinstance(asked, dict) and asked.get("ready") is True
        return 200, dict(_JSON), dumps(self.dataplane.index(ready=ready))

    async def load(self, name: str, call: Call, body: bytes) -> Reply:
        await self.dataplane.load(name, call.principal)
        return 200, dict(_JSON), dumps({"name": name, "load": True})

    async def unload(self, name: str, call: Call, body: bytes) -> Reply:
        await self.dataplane.unload(name, call.principal)
        return 200, dict(_JSON), dumps({"name": name, "unload": True})

    async def alive(self) -> Reply:
        return 200, dict(_JSON), dumps({"status": "alive"})

    async def live(self) -> Reply:
        return 200, dict(_JSON), dumps({"live": True})

    async def ready(self) -> Reply:
        if not await self.dataplane.ready():
            text = "the server is not ready: a model is not loaded, or its backend is not there"
            raise Unavailable(text, retry_after=1)
        return 200, dict(_JSON), dumps({"ready": True})

    async def server(self) -> Reply:
        return 200, dict(_JSON), dumps(self.dataplane.server_metadata())

    async def metrics(self) -> Reply:
        encoder, content_type = exposition.choose_encoder("")
        registry = REGISTRY
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:  # set by the supervisor of several workers: all of theirs
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return 200, {"content-type": content_type}, await asyncio.to_thread(encoder, registry)


def _no_such(method: str, path: str, ways: Ways) -> Reply:
    path = path.split("?")[0][:200]
    if ways:
        allow = ", ".join(sorted(ways))
        return 405, _JSON | {"allow": allow}, dumps({"error": f"{method} is not for {path}: expected {allow}"})
    return 404, dict(_JSON), dumps({"error": f"no such path: {path}; look at /v2/models for what is served"})


async def _send_each(pieces: AsyncGenerator[bytes], send: Any) -> None:
    async with aclosing(pieces):
        async for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})


def _as_event(error: ServingError) -> bytes:
    """The body that it would have had, and the status that came too late for its place."""
    found = {"error": error.message, "status": error.http}
    return dumps(found | ({} if error.told_retry_after is None else {"retry_after": error.told_retry_after}))


def error_reply(error: KServeKitError) -> Reply:
    """`{"error": ...}` with the error's status, and Retry-After where it has one."""
    status = error.http if isinstance(error, ServingError) else 500
    headers = dict(_JSON)
    if isinstance(error, ServingError) and error.told_retry_after is not None:
        headers["retry-after"] = str(error.told_retry_after)
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if status == 413:
        headers["connection"] = "close"  # the rest of the body is still on its way
    return status, headers, dumps({"error": str(error)})
