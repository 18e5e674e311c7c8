"""CloudEvents around v1 bodies, as KServe takes and answers them: in headers (binary mode) or in JSON (structured)."""

from __future__ import annotations

import binascii
from collections.abc import Callable
from typing import Any

from kservekit.codec.json_values import check_depth, dumps, loads, shown
from kservekit.errors import InvalidInput, UnsupportedMedia

_STRUCTURED = "application/cloudevents+json"
_REQUIRED = ("id", "source", "type")
_VERSIONS = ("1.0", "0.3")

Event = tuple[dict[str, Any], bool] | None
"""An event's attributes, and whether they came in headers."""


def opened(
    headers: dict[str, str], body: bytes | bytearray, read: Callable[[bytes | bytearray], Any] = loads
) -> tuple[Event, Any]:
    """The event that a request is, if it is one, and what is inside it, which `read` reads where that is the body.

    InvalidInput for what is neither JSON nor an event, UnsupportedMedia for an event with anything but JSON inside.
    """
    if "ce-specversion" in headers:
        attributes = {name[3:]: value for name, value in headers.items() if name.startswith("ce-")}
        _check(attributes)
        return (attributes, True), read(body)
    if headers.get("content-type", "").startswith(_STRUCTURED):
        event = loads(body)
        if not isinstance(event, dict):
            raise InvalidInput("a structured CloudEvent is an object")
        _check(check_depth(event, "a CloudEvent"))
        return (event, False), _data(event)
    return None, read(body)


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


def _check(attributes: dict[str, Any]) -> None:
    missing = [name for name in ("specversion", *_REQUIRED) if name not in attributes]
    if missing:
        raise InvalidInput(f"a CloudEvent without {', '.join(missing)}")
    if attributes["specversion"] not in _VERSIONS:
        raise InvalidInput(f"a CloudEvent of specversion {shown(attributes['specversion'])}: expected '1.0' or '0.3'")


def _data(event: dict[str, Any]) -> Any:
    """A structured event's, taken out of it: as JSON, or JSON again in base64 (CloudEvents' JSON format, 3.1)."""
    if ("data" in event) == ("data_base64" in event):
        raise InvalidInput("a structured CloudEvent needs either data or data_base64")
    if "data" in event:
        return event.pop("data")
    kind = event.get("datacontenttype", "application/json")
    if not isinstance(kind, str) or not kind.partition(";")[0].strip().lower().endswith(("/json", "+json")):
        raise UnsupportedMedia(f"a CloudEvent's data_base64 is {shown(kind)}: expected application/json")
    text = event.pop("data_base64")
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except (TypeError, ValueError):
        raise InvalidInput(f"a CloudEvent's data_base64 is {shown(text)}: expected base64") from None
    return check_depth(loads(data), "a CloudEvent's data_base64")


def _as_bytes(body: Any) -> bytes:
    return body if isinstance(body, bytes) else dumps(body)
