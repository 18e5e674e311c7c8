"""What each request is called, so that a slow one is found again in a server's logs, and in its traces. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import NamedTuple

REQUEST_ID, TRACEPARENT = "x-request-id", "traceparent"


class RequestId(NamedTuple):
    request_id: str
    """32 hexadecimal digits; empty where the user's own headers have one for all."""
    traceparent: str
    """W3C's, with the flag that asks for spans and the request's id as the trace's; empty where none are asked for."""

    @property
    def trace_id(self) -> str:
        return self.traceparent[3:35]


class RequestIds:
    """`headers`: the user's own, which are left as they are. `trace_share`: of the requests, from 0 to 1."""

    def __init__(self, headers: Mapping[str, str], trace_share: float) -> None:
        self._named = REQUEST_ID not in headers
        self._trace_share = 0.0 if TRACEPARENT in headers else trace_share
        self._draw = random.Random()  # noqa: S311  no secret, and not the same in the next run

    def next(self) -> RequestId:
        name = f"{self._draw.getrandbits(128):032x}"
        traceparent = ""
        if self._trace_share and self._draw.random() < self._trace_share:
            traceparent = f"00-{name}-{self._draw.getrandbits(64):016x}-01"
        return RequestId(name if self._named else "", traceparent)
