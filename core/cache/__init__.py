"""Answers that were given before, kept in memory or in a Redis that all replicas share."""

from kservekit.cache.memory import MemoryStore
from kservekit.cache.response import ResponseCache, Store

__all__ = ["MemoryStore", "ResponseCache", "Store"]
