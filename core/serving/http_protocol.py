"""uvicorn's HTTP protocol with limits on a request's head: its size, and the time that its sender takes for it."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from kservekit.codec.json_values import dumps


def limited_protocol(max_header_bytes: int, header_timeout_s: float) -> type[HttpToolsProtocol]:
    """431 beyond `max_header_bytes`, 408 after `header_timeout_s`; the connection is closed with either."""

    class LimitedProtocol(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _silent = True
        _head_bytes = 0
        _in_head = True

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._timer = self.loop.call_later(header_timeout_s, self._too_slow)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._silent = False
            self._head_bytes = self._head_bytes + len(data) if self._in_head else 0
            super().data_received(data)
            if self._in_head and self._head_bytes > max_header_bytes and not self.transport.is_closing():
                text = f"the request's head is over {max_header_bytes} bytes (KSERVEKIT_MAX_HEADER_BYTES)"
                self._refuse(431, text)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_head, self._head_bytes = True, 0
            if self._timer is None:
                self._timer = self.loop.call_later(header_timeout_s, self._too_slow)

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._stop_timer()
            super().on_headers_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._head_bytes = 0

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "malformed HTTP request")

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _too_slow(self) -> None:
            if self._silent:  # opened ahead of need, and not needed
                self.transport.close()
            elif not self.transport.is_closing():
                self._refuse(408, f"the request's head took over {header_timeout_s:g} s (KSERVEKIT_HEADER_TIMEOUT_S)")

        def _refuse(self, status: int, text: str) -> None:
            self._stop_timer()
            body = dumps({"error": text})
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + body)
            self.transport.close()

    return LimitedProtocol
