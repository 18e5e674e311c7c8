"""uvicorn's HTTP protocol with limits: a head's size, and the time that a sender takes for head and body.

It also tells the request that is being answered when its caller goes away.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from kservekit.codec.json_values import dumps
from kservekit.serving.departure import SCOPE_KEY, Departure


def limited_protocol(max_header_bytes: int, header_timeout_s: float, body_timeout_s: float) -> type[HttpToolsProtocol]:
    """431 beyond `max_header_bytes`, 408 after `header_timeout_s` or `body_timeout_s`, and the end of the connection.

    What arrives in one piece, as small requests do, costs no timer.
    """

    class LimitedProtocol(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _silent = True
        _head_bytes = 0
        """Of what was parsed."""
        _unfinished_bytes = 0
        """Of pieces that did not end the head."""
        _in_head = False
        _in_body = False
        _refused = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._departure = Departure()
            self._timer = self.loop.call_later(header_timeout_s, self._head_too_slow)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            self._departure.happened()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._silent = False
            if self._refused:
                return
            if self._in_head:
                self._unfinished_bytes += len(data)
            super().data_received(data)
            if self._head_bytes > max_header_bytes or (self._in_head and self._unfinished_bytes > max_header_bytes):
                text = f"the request's head is over {max_header_bytes} bytes (KSERVEKIT_MAX_HEADER_BYTES)"
                self._refuse(431, text)
            elif self._timer is None and (self._in_head or self._in_body) and not self.transport.is_closing():
                wait, late = (
                    (header_timeout_s, self._head_too_slow) if self._in_head else (body_timeout_s, self._body_too_slow)
                )
                self._timer = self.loop.call_later(wait, late)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self.scope[SCOPE_KEY] = self._departure  # type: ignore[literal-required]
            self._in_head, self._head_bytes, self._unfinished_bytes = True, 0, 0

        def on_url(self, url: bytes) -> None:
            self._head_bytes += len(url)
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            """A trailer of a chunked body comes here, too."""
            self._head_bytes += len(name) + len(value) + 4
            if self._head_bytes <= max_header_bytes:
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._in_head, self._in_body = False, True
            self._stop_timer()
            if self._head_bytes > max_header_bytes:
                self._refused = True  # data_received says so, once the parser is done with this piece
            else:
                super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            if not self._refused:
                super().on_body(body)

        def on_message_complete(self) -> None:
            self._in_body = False
            self._stop_timer()
            if not self._refused:
                super().on_message_complete()

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "malformed HTTP request")

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _head_too_slow(self) -> None:
            if self._silent:  # opened ahead of need, and not needed
                self.transport.close()
            else:
                self._refuse(408, f"the request's head took over {header_timeout_s:g} s (KSERVEKIT_HEADER_TIMEOUT_S)")

        def _body_too_slow(self) -> None:
            if self.cycle.response_started:
                self.transport.close()
            else:
                self._refuse(408, f"the request's body took over {body_timeout_s:g} s (KSERVEKIT_BODY_TIMEOUT_S)")

        def _refuse(self, status: int, text: str) -> None:
            self._stop_timer()
            self._refused = True
            if self.transport.is_closing():
                return
            body = dumps({"error": text})
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + body)
            self.transport.close()

    return LimitedProtocol
