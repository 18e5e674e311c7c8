"""Packed bodies (RFC 9110, Content-Encoding), with a limit on what they unpack to."""

from __future__ import annotations

import zlib

from kservekit.errors import InvalidInput, PayloadTooLarge, UnsupportedMedia

# zlib's "wbits": gzip's frame, or for deflate the zlib frame that RFC 9110 means, else the bare stream that some send.
_GZIP, _ZLIB, _BARE = 31, 15, -15


def unpack(body: bytes | bytearray, encoding: str, limit: int) -> bytes | bytearray:
    """The body as it was before it was packed.

    Raises UnsupportedMedia for an encoding other than gzip, deflate or identity, PayloadTooLarge before more
    than `limit` bytes are unpacked, InvalidInput for a damaged body.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding in ("gzip", "x-gzip"):
        return _inflate(body, _GZIP, limit, encoding)
    if encoding == "deflate":
        # The zlib frame begins with 8 (deflate) and a check of its two bytes.
        framed = len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
        return _inflate(body, _ZLIB if framed else _BARE, limit, encoding)
    raise UnsupportedMedia(f"the body is encoded as {encoding[:40]!r}: expected gzip, deflate or none")


def _inflate(body: bytes | bytearray, wbits: int, limit: int, encoding: str) -> bytes:
    stream = zlib.decompressobj(wbits)
    try:
        # One byte more than the limit tells whether there is more.
        unpacked = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidInput(f"the body is not {encoding}: {error}") from None
    if len(unpacked) > limit:
        raise PayloadTooLarge(f"the body unpacks to over {limit} bytes, the limit of this server")
    if not stream.eof:
        raise InvalidInput(f"the {encoding} body ends too soon")
    if stream.unused_data:  # a second gzip member, say, which nobody sends and which could be one of a million
        raise InvalidInput(f"{len(stream.unused_data)} bytes follow the end of the {encoding} body")
    return unpacked
