"""What an API server would hold custom resources against: KServe's schemas by version, and those of its neighbours.

An API server drops a field that it does not know, and says nothing. Here that is a finding.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from kservekit.manifests.finding import Finding

SCHEMAS = Path(__file__).parent / "schemas/crds.json"

Fields = dict[str, int]
"""Names, and the numbers of their nodes."""

UNKNOWN_FIELD = "is no field of its schema"
"""How a finding begins that is about a field which a cluster drops."""

DROPPED = ": a cluster drops it without a word"

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "int-or-string": (int, str),
}


_RENAMED = {
    "routes": "steps",
    "service": "serviceName",
    "timeoutSeconds": "timeout",
    "modelUri": "storageUri",
    "parallelism": "containerConcurrency",
}
"""What KServe called a field before, or Knative calls it."""


@cache
def _condensed() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(SCHEMAS.read_text(encoding="utf-8"))
    return found


def kserve_versions() -> tuple[str, ...]:
    """The KServe versions whose schemas are known, in order; `main` is the newest."""
    return tuple(_condensed()["kserve"])


def has_schema(document: dict[str, Any]) -> bool:
    """Whether it is a custom resource that some version knows; a core object such as a ConfigMap is not."""
    name = f"{document.get('apiVersion')}/{document.get('kind')}"
    return name in _condensed()["others"] or any(name in kinds for kinds in _condensed()["kserve"].values())


Place = tuple[str | int, ...]
"""Where in an object: ("spec", "predictor", "containers", 0, "args")."""


def check_schema(document: dict[str, Any], kserve: str) -> list[Finding]:
    """What KServe `kserve` (such as 0.20), or the neighbour whose object it is, would refuse or drop."""
    where = f"{document.get('kind')}/{document.get('metadata', {}).get('name')}"
    return [Finding(f"{where} {shown(place)}".rstrip(), what) for place, what in schema_faults(document, kserve)]


def schema_faults(document: dict[str, Any], kserve: str) -> list[tuple[Place, str]]:
    """The same with the place of each."""
    number = _number(document, kserve)
    if number is None:
        name = f"{document.get('apiVersion')}/{document.get('kind')}"
        return [((), f"{name} is no object that KServe {kserve} or its neighbours have")]
    return list(_check(document, number, ()))


def kept(document: dict[str, Any], kserve: str) -> dict[str, Any]:
    """A copy without the values that a cluster would drop or refuse: every field of it has its schema's type."""
    copied: dict[str, Any] = _kept(document, _number(document, kserve))
    found = copied.get("metadata")
    metadata: dict[str, Any] = found if isinstance(found, dict) else {}
    copied["metadata"] = {key: value for key, value in metadata.items() if key not in ("annotations", "labels")}
    for field in ("annotations", "labels"):
        texts = metadata.get(field)
        if isinstance(texts, dict):
            copied["metadata"][field] = {key: value for key, value in texts.items() if isinstance(value, str)}
    return copied


def _kept(value: Any, number: int | None) -> Any:
    node = {} if number is None else _condensed()["nodes"][number]
    if isinstance(value, dict):
        fields = node.get("fields", {})
        is_open = number is None or node.get("open")
        return {
            key: _kept(item, fields.get(key, node.get("values")))
            for key, item in value.items()
            if item is not None
            and (key in fields or "values" in node or is_open)
            and _has_type(item, fields.get(key, node.get("values")))
        }
    if isinstance(value, list):
        below = node.get("items")
        return [_kept(item, below) for item in value] if all(_has_type(item, below) for item in value) else []
    return value


def _has_type(value: Any, number: int | None) -> bool:
    expected = None if number is None else _condensed()["nodes"][number].get("type")
    if expected is None:
        return True
    return isinstance(value, _TYPES[expected]) and (expected == "boolean" or not isinstance(value, bool))


def _number(document: dict[str, Any], kserve: str) -> int | None:
    condensed = _condensed()
    name = f"{document.get('apiVersion')}/{document.get('kind')}"
    # Local model caches were there before 0.20, but their schemas are known of main alone.
    found: int | None = {**condensed["kserve"]["main"], **condensed["kserve"][kserve], **condensed["others"]}.get(name)
    return found


def _check(value: Any, number: int, path: Place, above: Fields | None = None) -> Iterator[tuple[Place, str]]:
    """`above` are the fields of the object that this one is in."""
    node = _condensed()["nodes"][number]
    if not _has_type(value, number):
        yield path, f"is {_quoted(value)}: expected {node['type']}"
    elif isinstance(value, dict):
        yield from _check_object(value, node, path, above or {})
    elif isinstance(value, list):
        yield from _check_list(value, node, path)
    else:
        yield from _check_scalar(value, node, path)


def _check_object(
    value: dict[str, Any], node: dict[str, Any], path: Place, above: Fields
) -> Iterator[tuple[Place, str]]:
    fields = node.get("fields", {})
    for name in node.get("required", ()):
        if value.get(name) is None:
            yield (*path, name), "is missing, and must be there"
    for name, item in value.items():
        if item is None:  # a cluster takes it for absent
            continue
        if name in fields:
            yield from _check(item, fields[name], (*path, name), fields)
        elif "values" in node:
            yield from _check(item, node["values"], (*path, name))
        elif not node.get("open"):
            close = _likely(name, fields)
            hint = f"; did you mean {close}?" if close else ""
            if not close and name in above:
                hint = f"; it belongs one level higher, beside {path[-1]}"
            yield (*path, name), f"{UNKNOWN_FIELD}{DROPPED}{hint}"


def _likely(name: str, fields: Fields) -> str:
    """The field that was meant: an old name's new one, one below, or one that is spelt nearly so."""
    if _RENAMED.get(name) in fields:
        return _RENAMED[name]
    nodes = _condensed()["nodes"]
    for below in ("model", "containers", "predictor", "metric", "spec"):
        if below in fields:
            node = nodes[fields[below]]
            node = nodes[node["items"]] if "items" in node else node
            if name in node.get("fields", {}):
                return f"{below}.{name}"
    return next(iter(difflib.get_close_matches(name, fields, n=1, cutoff=0.7)), "")


def _check_list(value: list[Any], node: dict[str, Any], path: Place) -> Iterator[tuple[Place, str]]:
    if len(value) < node.get("minItems", 0) or len(value) > node.get("maxItems", len(value)):
        yield path, f"has {len(value)} items: expected {node.get('minItems', 0)} to {node.get('maxItems', 'any')}"
    for place, item in enumerate(value):
        if "items" in node:
            yield from _check(item, node["items"], (*path, place))
    keys = node.get("keys", ())
    if keys and all(isinstance(item, dict) for item in value):
        named = [tuple(item.get(key) for key in keys) for item in value]
        for one in sorted({str(item) for item in named if named.count(item) > 1}):
            yield path, f"has two items with {', '.join(keys)} = {one}"


def _check_scalar(value: Any, node: dict[str, Any], path: Place) -> Iterator[tuple[Place, str]]:
    if "enum" in node and value not in node["enum"]:
        yield path, f"is {_quoted(value)}: expected one of {', '.join(map(str, node['enum']))}"
    if isinstance(value, str):
        if "pattern" in node and not re.search(node["pattern"], value):
            yield path, f"is {_quoted(value)}: expected what matches {node['pattern']}"
        if len(value) < node.get("minLength", 0):
            yield path, f"has {len(value)} characters: expected {node['minLength']} or more"
        if len(value) > node.get("maxLength", len(value)):
            yield path, f"has {len(value)} characters: expected up to {node['maxLength']}"
    elif isinstance(value, (int, float)) and not node.get("minimum", value) <= value <= node.get("maximum", value):
        yield path, f"is {value}: expected {node.get('minimum', 'any')} to {node.get('maximum', 'any')}"


def within(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value inside of one, with its place."""
    for step, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*place, step), item
        yield from within(item, (*place, step))


def shown(place: Place) -> str:
    """`spec.predictor.containers[0].args`."""
    text = ""
    for step in place:
        in_brackets = isinstance(step, int) or "." in step or "/" in step
        text += f"[{step}]" if in_brackets else f".{step}" if text else str(step)
    return text


def _quoted(value: Any) -> str:
    return repr(value)[:60]
