"""uvicorn's HTTP protocol with limits: a head's size, the time that a sender takes for head and body, and that which a
caller takes to read his answer.

It also tells the request that is being answered when its caller goes away.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from kservekit.codec.json_values import dumps
from kservekit.serving.departure import SCOPE_KEY, Departure

log = logging.getLogger(__name__)

LAST_S = 5.0
"""How long one who takes nothing of his answer may hold up the server's end."""


def limited_protocol(
    max_header_bytes: int, header_timeout_s: float, body_timeout_s: float, reply_timeout_s: float, revision: bytes
) -> type[HttpToolsProtocol]:
    """431 beyond `max_header_bytes`, 408 after `header_timeout_s` or `body_timeout_s`, and the end of the connection;
    its end, too, for a caller who takes nothing of his answer for `reply_timeout_s`.

    What arrives in one piece, as small requests do, and what leaves in one, costs no timer.
    """

    class LimitedProtocol(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _reading: asyncio.TimerHandle | None = None
        """Looks whether the caller reads; there while something waits for him."""
        _patience_s = reply_timeout_s
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
            self._stop_looking()
            self._departure.happened()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._look_later()

        def resume_writing(self) -> None:
            super().resume_writing()
            if not self.transport.is_closing():
                self._stop_looking()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.transport.is_closing():
                self._look_later()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._look_later()

        def shutdown(self) -> None:
            super().shutdown()
            self._patience_s = min(LAST_S, reply_timeout_s)
            if self.flow.write_paused or self.transport.is_closing():
                self._look_later()

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

        def _look_later(self) -> None:
            self._stop_looking()
            left = self.transport.get_write_buffer_size()
            self._reading = self.loop.call_later(self._patience_s, self._look, left)

        def _stop_looking(self) -> None:
            if self._reading is not None:
                self._reading.cancel()
                self._reading = None

        def _look(self, before: int) -> None:
            left = self.transport.get_write_buffer_size()
            if left < before:
                self._look_later()
            elif left:  # else only TLS has not said good-bye, which has a time-out of its own
                log.warning("a caller took nothing of its answer in %s s", self._patience_s)
                self.transport.abort()

        def _head_too_slow(self) -> None:
            if self._silent:  # opened ahead of need, and not needed
                self.transport.close()
            else:
                self._refuse(408, f"the request's head took over {header_timeout_s:g} s (KSERVEKIT_HEADER_TIMEOUT_S)")

        def _body_too_slow(self) -> None:
            if self.cycle.response_started:
                self.transport.close()
                self._look_later()
            else:
                self._refuse(408, f"the request's body took over {body_timeout_s:g} s (KSERVEKIT_BODY_TIMEOUT_S)")

        def _refuse(self, status: int, text: str) -> None:
            self._stop_timer()
            self._refused = True
            if self.transport.is_closing():
                return
            body = dumps({"error": text})
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n" % len(body)
            named = b"kservekit-revision: %b\r\n\r\n" % revision
            self.transport.write(STATUS_LINE[status] + head + named + body)
            self.transport.close()
            self._look_later()

    return LimitedProtocol
