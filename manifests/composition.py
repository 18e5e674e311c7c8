"""Which components a kustomization is made of, and whether they go together.

A component says it in its own kustomization.yaml, as annotations that kustomize does not read:

    kservekit/needs: gpu          each of these must be there
    kservekit/excludes: knative   none of these may be
    kservekit/after: knative      where these are there, they come first
    kservekit/kserve: "0.20"      the first version of KServe that has what it uses
    kservekit/other-mode: NAME    what does the same in the other mode, or does it as that mode takes it
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

from kservekit.errors import CannotStart
from kservekit.manifests.finding import Finding
from kservekit.manifests.schema import kserve_versions

MANIFESTS = Path(__file__).parent
FILES = ("kustomization.yaml", "kustomization.yml", "Kustomization")
RULES = ("needs", "excludes", "after", "kserve", "other-mode")
KNATIVE = "knative"
"""The component that makes the mode Knative."""


@dataclass(frozen=True)
class Component:
    name: str
    needs: tuple[str, ...]
    excludes: tuple[str, ...]
    after: tuple[str, ...]
    kserve: str
    other_mode: str = ""

    @property
    def mode(self) -> str:
        """The only mode that it is for; empty where it goes with both."""
        if KNATIVE in (self.name, *self.needs):
            return "Knative"
        return "Standard" if KNATIVE in self.excludes else ""

    def instead(self, mode: str) -> Component | None:
        """What a mode takes in its place, where it has something of its own."""
        other = named(self.other_mode)[-1] if self.other_mode else None
        return other if other and (other.mode == mode or self.mode not in ("", mode)) else None


def names() -> list[str]:
    """Of our components that a list can have."""
    folders = sorted(file.parent for file in (MANIFESTS / "components").glob("*/kustomization.yaml"))
    return [folder.name for folder in folders if "metadata" in _read(folder)]


def named(name: str) -> list[Component]:
    """One of ours, after those that it is made of."""
    folder = MANIFESTS / "components" / name
    return [*_walk(folder), _component(folder)]


def for_mode(wanted: Iterable[str], mode: str) -> list[str]:
    """The same in this mode: one of the other mode gives way to its counterpart; CannotStart where it has none."""
    found: list[str] = [KNATIVE] if mode == "Knative" else []
    for component in (named(name)[-1] for name in wanted):
        other = component.instead(mode)
        if other:
            found.append(other.name)
        elif component.mode in ("", mode):
            found.append(component.name)
        elif component.name != KNATIVE:
            raise CannotStart(f"component {component.name} is for {component.mode} mode alone: take it away")
    return list(dict.fromkeys(found))


def ordered(wanted: Iterable[str]) -> list[str]:
    """In an order in which each comes after what it needs and what it must follow."""
    parts = {name: named(name) for name in sorted(wanted)}
    providers = {part.name: name for name, found in parts.items() for part in found}
    graph = {
        name: sorted({providers[other] for part in found for other in (*part.needs, *part.after) if other in providers})
        for name, found in parts.items()
    }
    return list(TopologicalSorter(graph).static_order())


def components(folder: Path) -> list[Component]:
    """Those of `folder` and of all that it is built on, in the order in which kustomize applies them."""
    return list(_walk(folder.resolve()))


def base_of(folder: Path) -> Path | None:
    """The base that a kustomization is built on, where it is ours or a copy of it."""
    for entry in _read(folder).get("resources") or []:
        below = (folder / str(entry)).resolve()
        if (below.parent / "components" / KNATIVE).is_dir():
            return below
        found = base_of(below) if below.is_dir() else None
        if found:
            return found
    return None


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
    wrong = {*rules} - set(RULES)
    if wrong:
        raise CannotStart(f"{folder}: kservekit/{min(wrong)} is no rule: expected {', '.join(RULES)}")
    kserve = rules.get("kserve", kserve_versions()[0])
    if kserve not in kserve_versions():
        raise CannotStart(f"{folder}: kservekit/kserve is {kserve!r}: expected one of {', '.join(kserve_versions())}")
    return Component(
        folder.name,
        _list(rules.get("needs")),
        _list(rules.get("excludes")),
        _list(rules.get("after")),
        kserve,
        rules.get("other-mode", ""),
    )


def _list(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
