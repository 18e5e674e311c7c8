"""The response cache as the settings have it, and what it counts."""

from __future__ import annotations

from prometheus_client import Counter

from kservekit import config
from kservekit.cache import MemoryStore, ResponseCache, Store
from kservekit.errors import CannotStart

_ANSWERS = Counter(
    "kservekit_response_cache",
    "Answers by where they came from: hit (kept), miss (computed), joined (another's computation), bypass",
    ["model_name", "result"],
)


def response_cache(revision: str) -> ResponseCache | None:
    """None where it is not switched on; CannotStart for settings that would mix up answers."""
    settings = config.read(config.ResponseCacheSettings)
    if not settings.ttl_s:
        return None
    store: Store = MemoryStore(settings.max_bytes)
    if settings.redis_url:
        if not revision:
            raise CannotStart(
                "KSERVEKIT_RESPONSE_CACHE_REDIS_URL is set and KSERVEKIT_REVISION is not: expected a name for what "
                "is served here, other than a canary's, so that one is never answered with the other's answers"
            )
        from kservekit.cache.redis import RedisStore

        store = RedisStore(settings.redis_url, timeout_s=settings.redis_timeout_ms / 1000)
    return ResponseCache(
        store,
        ttl_s=settings.ttl_s,
        revision=revision,
        vary=tuple(map(str.lower, settings.vary)),
        on_event=lambda event, model: _ANSWERS.labels(model, event).inc(),
    )
