"""A values file: a service of one's own that is made of the manifests here, without a kustomization of one's own.

It chooses components and fills in what is left open. Which of them a mode takes, and in which order, follows from what
the components say of themselves. What it has no word for belongs into a kustomization.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

import yaml

from kservekit.errors import CannotStart
from kservekit.manifests.composition import MANIFESTS, check_composition, for_mode, named, names, ordered
from kservekit.manifests.kustomize import kustomized
from kservekit.manifests.lint.reading import Entry, Unreadable
from kservekit.manifests.pods import Document
from kservekit.manifests.schema import DROPPED, Place, kserve_versions, schema_faults, shown

VERSION, KIND = "kservekit/v1", "Values"

Patch = list[dict[str, Any]]
"""JSON6902 operations."""


def is_values(document: Document) -> bool:
    return document["kind"] == KIND and str(document["apiVersion"]).partition("/")[0] == "kservekit"


def faults(values: Entry) -> list[Unreadable]:
    """What is wrong with it, each with its line and column."""
    return [Unreadable(values.source, values.at(place), what) for place, what in _faults(values.document)]


def rendered(values: Entry, mode: str = "") -> str:
    """What kustomize makes of it, in the file's own mode or in another one."""
    said = values.document
    in_mode = mode or said.get("mode") or "Standard"
    try:
        chosen = ordered(for_mode(said.get("components") or [], in_mode))
        wrong = [*check_composition([part for name in chosen for part in named(name)])]
        if wrong:
            raise CannotStart("; ".join(map(str, wrong)))
        wanted = kustomization(said, chosen, in_mode)
    except CannotStart as error:
        raise Unreadable(values.source, values.at(("components",)), f"in {in_mode} mode: {error}") from None
    return kustomized(wanted, values.source)


def kustomization(values: Document, chosen: list[str], mode: str) -> Document:
    target = {"kind": "InferenceService"}
    patches = [{"target": target, "patch": yaml.safe_dump(found)} for found in _patches(values, chosen, mode) if found]
    wanted: Document = {
        "resources": [MANIFESTS / "base"],
        "components": [MANIFESTS / "components" / name for name in chosen],
        **{key: values[key] for key in ("namespace", "namePrefix") if values.get(key)},
        "patches": patches,
        "images": [_image(name, image) for name, image in (values.get("images") or {}).items()],
    }
    settings = [f"{key}={_word(value)}" for key, value in (values.get("settings") or {}).items()]
    if settings:
        wanted["configMapGenerator"] = [{"name": "photo-settings", "behavior": "merge", "literals": settings}]
    return wanted


def _faults(values: Document) -> Iterator[tuple[Place, str]]:
    if values["apiVersion"] != VERSION:
        yield ("apiVersion",), f"apiVersion is {values['apiVersion']!r}: expected {VERSION}"
        return
    wrong = [(place, what.replace(DROPPED, "")) for place, what in schema_faults(values, kserve_versions()[-1])]
    yield from ((place, f"{shown(place)} {what}") for place, what in wrong)
    if wrong:
        return
    for key, value in (values.get("settings") or {}).items():
        if isinstance(value, (dict, list)) or value is None or "\n" in str(value):
            yield ("settings", key), f"settings.{key} is {value!r:.60}: expected one line of text"
    known = names()
    for number, name in enumerate(values.get("components") or []):
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(known)}"
            yield ("components", number), f"there is no component {name!r}: {hint}"


def _patches(values: Document, chosen: list[str], mode: str) -> Iterator[Patch | Document]:
    parts = {name for chosen_one in chosen for name in (part.name for part in named(chosen_one))}
    canary = values.get("canary") or {}
    if canary and not parts & {"canary-knative", "canary-standard"}:
        raise CannotStart("canary says what the component canary-knative or canary-standard does: add it")
    model = values.get("model") or {}
    # Knative's canary is the service's newest revision, and the one before it is there already.
    uri = canary.get("storageUri") if mode == "Knative" else None
    if uri or model.get("storageUri"):
        yield [_put("/spec/predictor/model/storageUri", uri or model["storageUri"])]
    if canary:
        at = "/spec/predictor/canaryTrafficPercent" if mode == "Knative" else "/spec/canary/0/trafficPercent"
        yield [_put(at, canary["trafficPercent"])] if "trafficPercent" in canary else []
        yield [_put("/spec/canary/0/predictor/model/storageUri", canary["storageUri"])] if mode == "Standard" else []
    predictor, transformer = values.get("predictor") or {}, values.get("transformer") or {}
    yield _scale("predictor", predictor)
    if predictor.get("resources"):
        model = {"resources": predictor["resources"]}
        head = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": {"name": "any"}}
        yield {**head, "spec": {"predictor": {"model": model}}}
    scaled = _scale("transformer", transformer)
    if scaled and "collocated" in parts:
        raise CannotStart("the transformer is in the predictor's pod (collocated), and they scale together: predictor")
    yield scaled
    pod = "predictor" if "collocated" in parts else "transformer"
    yield [
        _put(f"/spec/{pod}/containers/0/resources/{kind}/{key.replace('~', '~0').replace('/', '~1')}", amount)
        for kind, amounts in (transformer.get("resources") or {}).items()
        for key, amount in (amounts or {}).items()
    ]


def _scale(part: str, said: Document) -> Patch:
    return [_put(f"/spec/{part}/{key}", value) for key, value in said.items() if key != "resources"]


def _put(path: str, value: Any) -> dict[str, Any]:
    return {"op": "add", "path": path, "value": value}


def _image(name: str, image: str) -> dict[str, str]:
    whole, _, digest = image.partition("@")
    new, _, tag = whole.rpartition(":")
    if not new or "/" in tag:
        new, tag = whole, ""
    given = {"name": name, "newName": new, "newTag": tag, "digest": digest}
    return {key: value for key, value in given.items() if value}


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
