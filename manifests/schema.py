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

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "int-or-string": (int, str),
}


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


def check_schema(document: dict[str, Any], kserve: str) -> list[Finding]:
    """What KServe `kserve` (such as 0.20), or the neighbour whose object it is, would refuse or drop."""
    name = f"{document.get('apiVersion')}/{document.get('kind')}"
    condensed = _condensed()
    # Local model caches were there before 0.20, but their schemas are known of main alone.
    number = {**condensed["kserve"]["main"], **condensed["kserve"][kserve], **condensed["others"]}.get(name)
    where = f"{document.get('kind')}/{document.get('metadata', {}).get('name')}"
    if number is None:
        return [Finding(where, f"{name} is no object that KServe {kserve} or its neighbours have")]
    return [Finding(f"{where} {path}", what) for path, what in _check(document, number, "")]


def _check(value: Any, number: int, path: str) -> Iterator[tuple[str, str]]:
    node = _condensed()["nodes"][number]
    expected = node.get("type")
    if expected and (not isinstance(value, _TYPES[expected]) or (isinstance(value, bool) and expected != "boolean")):
        yield path, f"is {_shown(value)}: expected {expected}"
    elif isinstance(value, dict):
        yield from _check_object(value, node, path)
    elif isinstance(value, list):
        yield from _check_list(value, node, path)
    else:
        yield from _check_scalar(value, node, path)


def _check_object(value: dict[str, Any], node: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    fields = node.get("fields", {})
    for name in node.get("required", ()):
        if name not in value:
            yield _below(path, name), "is missing, and must be there"
    for name, item in value.items():
        if name in fields:
            yield from _check(item, fields[name], _below(path, name))
        elif "values" in node:
            yield from _check(item, node["values"], _below(path, name))
        elif not node.get("open"):
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            yield _below(path, name), f"is no field of its schema: a cluster drops it without a word{hint}"


def _check_list(value: list[Any], node: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    if len(value) < node.get("minItems", 0) or len(value) > node.get("maxItems", len(value)):
        yield path, f"has {len(value)} items: expected {node.get('minItems', 0)} to {node.get('maxItems', 'any')}"
    for place, item in enumerate(value):
        if "items" in node:
            yield from _check(item, node["items"], f"{path}[{place}]")
    keys = node.get("keys", ())
    if keys and all(isinstance(item, dict) for item in value):
        named = [tuple(item.get(key) for key in keys) for item in value]
        for one in sorted({str(item) for item in named if named.count(item) > 1}):
            yield path, f"has two items with {', '.join(keys)} = {one}"


def _check_scalar(value: Any, node: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    if "enum" in node and value not in node["enum"]:
        yield path, f"is {_shown(value)}: expected one of {', '.join(map(str, node['enum']))}"
    if isinstance(value, str):
        if "pattern" in node and not re.search(node["pattern"], value):
            yield path, f"is {_shown(value)}: expected what matches {node['pattern']}"
        if not node.get("minLength", 0) <= len(value) <= node.get("maxLength", len(value)):
            yield path, f"has {len(value)} characters: expected up to {node.get('maxLength')}"
    elif isinstance(value, (int, float)) and not node.get("minimum", value) <= value <= node.get("maximum", value):
        yield path, f"is {value}: expected {node.get('minimum', 'any')} to {node.get('maximum', 'any')}"


def _below(path: str, name: str) -> str:
    name = f"[{name}]" if "." in name or "/" in name else name
    return f"{path}.{name}" if path and not name.startswith("[") else f"{path}{name}"


def _shown(value: Any) -> str:
    return repr(value)[:60]
