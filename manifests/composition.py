"""Which components a kustomization is made of, and whether they go together.

A component says it in its own kustomization.yaml, as annotations that kustomize does not read:

    kservekit/needs: gpu          each of these must be there
    kservekit/excludes: knative   none of these may be
    kservekit/after: knative      where these are there, they come first
    kservekit/kserve: "0.20"      the first version of KServe that has what it uses
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kservekit.errors import CannotStart
from kservekit.manifests.finding import Finding
from kservekit.manifests.schema import kserve_versions

MANIFESTS = Path(__file__).parent
FILES = ("kustomization.yaml", "kustomization.yml", "Kustomization")


@dataclass(frozen=True)
class Component:
    name: str
    needs: tuple[str, ...]
    excludes: tuple[str, ...]
    after: tuple[str, ...]
    kserve: str


def components(folder: Path) -> list[Component]:
    """Those of `folder` and of all that it is built on, in the order in which kustomize applies them."""
    return list(_walk(folder.resolve()))


def versions(found: list[Component]) -> tuple[str, ...]:
    """The KServe versions that have all of it."""
    known = kserve_versions()
    return known[max((known.index(component.kserve) for component in found), default=0) :]


def check_composition(found: list[Component]) -> Iterator[Finding]:
    names = [component.name for component in found]
    for place, component in enumerate(found):
        where = f"component {component.name}"
        for other in component.needs:
            if other not in names:
                yield Finding(where, f"needs {other}, which is not there: add it before this one")
        for other in component.excludes:
            if other in names:
                yield Finding(where, f"does not go with {other}: take one of the two")
        for other in component.after:
            if other in names[place + 1 :] and other not in names[:place]:
                yield Finding(where, f"comes before {other}, and must come after it: move it down the list")


def _walk(folder: Path) -> Iterator[Component]:
    kustomization = _read(folder)
    for entry in kustomization.get("resources") or []:
        if (folder / entry).is_dir():
            yield from _walk((folder / entry).resolve())
    for entry in kustomization.get("components") or []:
        local = (folder / entry).resolve()
        # A remote one, https://host/repository//manifests/components/gpu?ref=v1, counts as ours of that name.
        ours = MANIFESTS / "components" / str(entry).partition("?")[0].rstrip("/").rpartition("/")[2]
        component = local if local.is_dir() else ours
        if component.is_dir():
            yield from _walk(component)
            yield _component(component)


def _read(folder: Path) -> dict[str, Any]:
    for file in FILES:
        if (folder / file).is_file():
            try:
                found = yaml.safe_load((folder / file).read_text(encoding="utf-8"))
            except yaml.YAMLError as error:
                raise CannotStart(f"{folder / file} is not YAML: {' '.join(str(error).split())}") from None
            if not isinstance(found, dict):
                raise CannotStart(f"{folder / file} holds no kustomization: expected a mapping with kind and resources")
            return found
    raise CannotStart(f"{folder} has no kustomization.yaml: expected a folder that `kubectl kustomize` renders")


def _component(folder: Path) -> Component:
    said = (_read(folder).get("metadata") or {}).get("annotations") or {}
    rules = {key.removeprefix("kservekit/"): str(value) for key, value in said.items() if key.startswith("kservekit/")}
    wrong = {*rules} - {"needs", "excludes", "after", "kserve"}
    if wrong:
        raise CannotStart(f"{folder}: kservekit/{min(wrong)} is no rule: expected needs, excludes, after or kserve")
    kserve = rules.get("kserve", kserve_versions()[0])
    if kserve not in kserve_versions():
        raise CannotStart(f"{folder}: kservekit/kserve is {kserve!r}: expected one of {', '.join(kserve_versions())}")
    return Component(
        folder.name,
        _list(rules.get("needs")),
        _list(rules.get("excludes")),
        _list(rules.get("after")),
        kserve,
    )


def _list(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
