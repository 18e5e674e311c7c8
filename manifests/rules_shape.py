"""What every object has, and no schema of ours says: rules take it for granted."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from kservekit.manifests.finding import Finding
from kservekit.manifests.pods import WORKLOADS, Document
from kservekit.manifests.schema import Place, shown

KINDS: dict[type, str] = {dict: "a map", list: "a list", str: "a text"}


def check_shape(document: Document) -> Iterator[Finding]:
    metadata = document.get("metadata")
    called = metadata.get("name") if isinstance(metadata, dict) else "?"
    for place, what in _faults(document):
        yield Finding(f"{document.get('kind')}/{called} {shown(place)}".rstrip(), what)


def _faults(document: Document) -> Iterator[tuple[Place, str]]:
    for key in ("apiVersion", "kind"):
        yield from _is(document.get(key), str, (key,))
    metadata = document.get("metadata")
    if not isinstance(metadata, dict):
        yield from _is(metadata, dict, ("metadata",))
        return
    yield from _is(metadata.get("name"), str, ("metadata", "name"))
    for key in ("annotations", "labels"):
        yield from _texts(metadata.get(key), ("metadata", key))
    kind = document.get("kind")
    if kind in WORKLOADS:
        yield from _containers(document)
    elif kind in ("ConfigMap", "Secret"):
        yield from _texts(document.get("data"), ("data",))
    if kind == "Secret":
        yield from _secret(document.get("data"))


def _containers(document: Document) -> Iterator[tuple[Place, str]]:
    value: Any = document
    place: Place = ()
    for step in ("spec", "template", "spec", "containers"):
        place, value = (*place, step), value.get(step)
        kind = list if step == "containers" else dict
        if not isinstance(value, kind):
            yield from _is(value, kind, place)
            return
    for number, container in enumerate(value):
        yield from _is(container, dict, (*place, number))
        if isinstance(container, dict):
            yield from _is(container.get("name"), str, (*place, number, "name"))
            yield from _is(container.get("image"), str, (*place, number, "image"))


def _secret(data: Any) -> Iterator[tuple[Place, str]]:
    for key, value in data.items() if isinstance(data, dict) else ():
        try:
            base64.b64decode(value, validate=True) if isinstance(value, str) else None
        except ValueError:
            yield ("data", key), "is no base64: what is not base64 belongs in stringData"


def _texts(value: Any, place: Place) -> Iterator[tuple[Place, str]]:
    if value is None:
        return
    if not isinstance(value, dict):
        yield from _is(value, dict, place)
        return
    for key, item in value.items():
        yield from _is(item, str, (*place, key))


def _is(value: Any, kind: type, place: Place) -> Iterator[tuple[Place, str]]:
    expected = KINDS[kind]
    if value is None:
        yield place, f"is missing, and must be there: expected {expected}"
    elif not isinstance(value, kind):
        yield place, f"is {value!r:.60}: expected {expected}"
