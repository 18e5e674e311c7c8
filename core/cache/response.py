"""The cache itself: what may be kept, and one computation for all who ask the same at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from kservekit.cache.digest import digest
from kservekit.codec.message import Answer, Request
from kservekit.errors import Cancelled, DeadlineExceeded

Event = Literal["hit", "miss", "joined", "bypass"]
"""How a request was answered: from the store, by computing, by another's computation, or past the cache."""


class Store(Protocol):
    async def get(self, key: bytes) -> Answer | None: ...

    async def put(self, key: bytes, answer: Answer, ttl_s: float) -> None: ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class _Flight:
    task: asyncio.Task[Answer]
    passengers: int = 0


class ResponseCache:
    """`revision` tells models apart that answer differently under one name and version: a canary and its stable.
    `vary` names the headers that an answer depends on besides the request itself. `on_event` is told of each answer,
    and the model's name.

    A request says `Cache-Control: no-cache` to be computed anew, `no-store` to be kept nowhere either (RFC 9111,
    section 5.2.1); one that belongs to a sequence is never kept. Errors are not kept.
    """

    def __init__(
        self,
        store: Store,
        *,
        ttl_s: float,
        revision: str = "",
        vary: tuple[str, ...] = (),
        on_event: Callable[[Event, str], None] = lambda event, model: None,
    ) -> None:
        self.store, self.ttl_s, self.revision, self.vary, self.on_event = store, ttl_s, revision, vary, on_event
        self._flights: dict[bytes, _Flight] = {}

    async def answer(
        self, request: Request, version: str, compute: Callable[[], Awaitable[Answer]], *, load: str = ""
    ) -> Answer:
        """The kept answer, or the computed one; an answer's arrays may be read-only, and its id is the request's.
        `load` tells loads of the model apart, among all replicas."""
        wanted = request.headers.get("cache-control", "").lower()
        if "no-store" in wanted or request.parameters.get("sequence_id"):
            self.on_event("bypass", request.model)
            return await compute()
        varying = (request.headers.get(name, "") for name in self.vary)
        key = digest(request, self.revision, request.model, version, load, *varying)
        if "no-cache" in wanted:
            self.on_event("bypass", request.model)
            answer = await compute()
            await self.store.put(key, answer, self.ttl_s)
            return answer
        kept = await self.store.get(key)
        if kept is not None:
            self.on_event("hit", request.model)
            kept.id = request.id
            return kept
        return await self._shared(key, request, compute)

    async def close(self) -> None:
        await self.store.close()

    async def _shared(self, key: bytes, request: Request, compute: Callable[[], Awaitable[Answer]]) -> Answer:
        while True:
            flight = self._flights.get(key)
            leads = flight is None
            if flight is None:
                flight = _Flight(asyncio.create_task(self._computed(key, compute)))
                self._flights[key] = flight
            flight.passengers += 1
            try:
                answer = await asyncio.shield(flight.task)
            except (DeadlineExceeded, Cancelled):
                if leads:
                    raise
                continue  # the other had less time, or went away
            except asyncio.CancelledError:
                if not leads and flight.task.cancelled() and not _is_being_cancelled():
                    continue
                raise
            finally:
                flight.passengers -= 1
                if not flight.passengers and not flight.task.done():
                    self._flights.pop(key, None)
                    flight.task.cancel()
            self.on_event("miss" if leads else "joined", request.model)
            return replace(answer, tensors=dict(answer.tensors), id=request.id)

    async def _computed(self, key: bytes, compute: Callable[[], Awaitable[Answer]]) -> Answer:
        try:
            answer = await compute()
            await self.store.put(key, answer, self.ttl_s)
            return answer
        finally:
            # Another's flight may stand there by now.
            flight = self._flights.get(key)
            if flight is not None and flight.task is asyncio.current_task():
                del self._flights[key]


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
