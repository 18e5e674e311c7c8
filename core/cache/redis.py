"""A store in Redis, shared by all replicas. One that is slow or gone costs a bounded time, and then none."""

from __future__ import annotations

import asyncio
import logging
import struct
from typing import Any

from kservekit.codec import rest_v2
from kservekit.codec.message import Answer, Request
from kservekit.errors import CannotStart, InvalidInput, Unavailable
from kservekit.resilience import CircuitBreaker

log = logging.getLogger(__name__)

PREFIX = b"kservekit:answer:1:"
"""The number is the form of what is kept: another form, another number."""

MAX_ENTRY_BYTES = 16 * 2**20
"""What takes longer to fetch than most models take to answer."""

_LENGTH = struct.Struct("<I")


class RedisStore:
    """`url` as redis-py takes it (redis://, rediss://, unix://), with the password in it or in the environment.

    A call that takes over `timeout_s` is given up. After `failures` in a row Redis is left alone for `cooldown_s`.
    """

    def __init__(self, url: str, *, timeout_s: float = 0.1, failures: int = 3, cooldown_s: float = 5.0) -> None:
        try:
            import redis.asyncio
        except ImportError:
            raise CannotStart("the Redis client is not installed: pip install 'kservekit[redis]'") from None
        try:
            self._redis: Any = redis.asyncio.from_url(
                url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=None, retry_on_error=[]
            )
        except ValueError as error:
            raise CannotStart(f"the cache's Redis has no such address: {error}") from None
        self._timeout_s = timeout_s
        self._breaker = CircuitBreaker(failures, cooldown_s, on_change=_log_change)

    async def get(self, key: bytes) -> Answer | None:
        data = await self._call("GET", PREFIX + key)
        return None if data is None else _unpacked(data)

    async def put(self, key: bytes, answer: Answer, ttl_s: float) -> None:
        data = _packed(answer)
        if len(data) <= MAX_ENTRY_BYTES:
            await self._call("SET", PREFIX + key, data, "PX", max(1, round(ttl_s * 1000)))

    async def close(self) -> None:
        await self._redis.aclose()

    async def _call(self, *command: Any) -> Any:
        """What Redis says; None where it says nothing in time, or nothing of use."""
        try:
            self._breaker.check()
        except Unavailable:
            return None
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await self._redis.execute_command(*command)
        except asyncio.CancelledError:
            self._breaker.forgotten()
            raise
        except Exception as error:  # whatever it is, a cache is no reason to fail
            log.debug("the cache's Redis: %s: %s", type(error).__name__, error)
            self._breaker.failed()
            return None
        self._breaker.succeeded()
        return found


def _packed(answer: Answer) -> bytes:
    parts, json_length = rest_v2.encode_answer(answer, Request({}, binary_outputs=True))
    return b"".join((_LENGTH.pack(json_length or 0), *parts))


def _unpacked(data: Any) -> Answer | None:
    """None for what is no answer: somebody else writes into this Redis."""
    try:
        (json_length,) = _LENGTH.unpack_from(data)
        return rest_v2.decode_answer(data[_LENGTH.size :], json_length or None)
    except (InvalidInput, struct.error, TypeError):
        log.warning("the cache's Redis holds something under our keys that is no answer of ours")
        return None


def _log_change(state: str) -> None:
    log.warning("the cache's Redis: the breaker in front of it is %s", state)
