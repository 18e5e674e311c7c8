"""CloudEvents around v1 bodies, as KServe takes and answers them: in headers (binary mode) or in JSON (structured)."""

from __future__ import annotations

from typing import Any

from kservekit.codec.json_values import dumps, loads
from kservekit.errors import InvalidInput

_STRUCTURED = "application/cloudevents+json"
_REQUIRED = ("ce-id", "ce-source", "ce-type")

Event = tuple[dict[str, Any], bool] | None
"""An event's attributes, and whether they came in headers."""


def opened(headers: dict[str, str], body: bytes) -> tuple[Event, bytes]:
    """The event that a request is, if it is one, and the payload inside it."""
    if "ce-specversion" in headers:
        missing = [name for name in _REQUIRED if name not in headers]
        if missing:
            raise InvalidInput(f"a CloudEvent without {', '.join(missing)}")
        attributes = {name[3:]: value for name, value in headers.items() if name.startswith("ce-")}
        return (attributes, True), body
    if headers.get("content-type", "").startswith(_STRUCTURED):
        event = loads(body)
        if not isinstance(event, dict) or not event.keys() >= {"specversion", "id", "source", "type", "data"}:
            raise InvalidInput("a structured CloudEvent needs specversion, id, source, type and data")
        data = event.pop("data")
        return (event, False), dumps(data)
    return None, body


def closed(
    event: Event, model: str, status: int, headers: dict[str, str], body: bytes
) -> tuple[int, dict[str, str], bytes]:
    """The answer as an event, where the request was one; KServe's own attributes (CE_TYPE, CE_SOURCE, CE_MERGE)."""
    if event is None:
        return status, headers, body
    from kserve.utils.utils import create_response_cloudevent  # its import takes time, and few send events

    attributes, binary = event
    attributes.setdefault("time", "")  # optional, and KServe's CE_MERGE counts on it
    data = loads(body) if headers["content-type"].startswith("application/json") else body
    event_headers, event_body = create_response_cloudevent(model, data, dict(attributes), binary)
    return status, headers | {key.lower(): value for key, value in event_headers.items()}, _as_bytes(event_body)


def _as_bytes(body: Any) -> bytes:
    return body if isinstance(body, bytes) else dumps(body)
