"""Packed bodies and messages, unpacked without holding up the loop."""

from __future__ import annotations

import asyncio

from kservekit.codec.compression import unpack

IN_THREAD_BYTES = 32_768
"""Those from this size are unpacked in a thread: zlib lets go of the GIL, and the loop stays free."""


async def unpacked(body: bytes | bytearray, encoding: str, limit: int) -> bytes | bytearray:
    """As `kservekit.codec.compression.unpack`, with its errors."""
    if len(body) < IN_THREAD_BYTES:
        return unpack(body, encoding, limit)
    return await asyncio.to_thread(unpack, body, encoding, limit)
