"""Objects in the form in which KServe keeps them, so that GitOps sees no difference, and always in the same order."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from typing import Any

import yaml

from kservekit.manifests.pods import FORMATS, MODE, MODES, Document, name
from kservekit.manifests.schema import UNKNOWN_FIELD, Place, has_schema, schema_faults, shown

V2_BY_DEFAULT = ("triton", "onnx", "huggingface")
"""Older forms of `model` to which KServe adds protocolVersion v2."""

ORDER = (
    *("Namespace", "ServiceAccount", "Secret", "ConfigMap", "PersistentVolumeClaim", "Service", "Deployment"),
    *("ClusterStorageContainer", "LocalModelNodeGroup", "LocalModelCache", "LocalModelNamespaceCache"),
    *("ClusterServingRuntime", "ServingRuntime", "InferenceService", "InferenceGraph"),
)
"""What others need comes first; kinds that are not here come last, by name."""

_ODD = re.compile(r"[-+.]?\d[\w.:+-]*|y|Y|n|N|~|=|<<")
"""Texts that some reader of YAML takes for something else."""


def kept_form(documents: Iterable[Document], kserve: str, mode: str = "") -> tuple[list[Document], list[str]]:
    """The objects as KServe `kserve` keeps them, and what was left out on the way. A mode replaces the file's own."""
    done: list[Document] = []
    left_out: list[str] = []
    for document in documents:
        found = copy.deepcopy(document)
        if found.get("kind") == "InferenceService":
            _service(found, mode)
        if has_schema(found):
            for place, what in schema_faults(found, kserve):
                if what.startswith(UNKNOWN_FIELD):
                    _remove(found, place)
                    left_out.append(f"{found['kind']}/{name(found)} {shown(place)}: KServe {kserve} has no such field")
        done.append(found)
    return in_order(done), left_out


def in_order(documents: Iterable[Document]) -> list[Document]:
    return sorted(documents, key=_place)


def as_yaml(documents: Iterable[Document]) -> str:
    return "---\n".join(
        yaml.dump(document, Dumper=_Dumper, default_flow_style=False, width=10**6, allow_unicode=True)
        for document in documents
    )


def _service(service: Document, mode: str) -> None:
    metadata = service.setdefault("metadata", {})
    annotations = metadata.get("annotations") or {}
    said = mode or MODES.get(annotations.get(MODE, ""), annotations.get(MODE))
    if said:
        metadata["annotations"] = {**annotations, MODE: said}
    predictor = (service.get("spec") or {}).get("predictor")
    if not isinstance(predictor, dict):
        return
    for key in FORMATS:
        if isinstance(predictor.get(key), dict) and "model" not in predictor:
            older = predictor.pop(key)
            predictor["model"] = {"modelFormat": {"name": key}, **older}
            if key in V2_BY_DEFAULT:
                predictor["model"].setdefault("protocolVersion", "v2")
    model = predictor.get("model")
    if isinstance(model, dict) and (model.get("modelFormat") or {}).get("name") == "triton":
        model.setdefault("protocolVersion", "v2")


def _remove(document: Document, place: Place) -> None:
    part: Any = document
    for step in place[:-1]:
        part = part[step]
    del part[place[-1]]


def _place(document: Document) -> tuple[int, str, str, str]:
    kind = str(document.get("kind"))
    space = str((document.get("metadata") or {}).get("namespace") or "")
    return (ORDER.index(kind) if kind in ORDER else len(ORDER), kind, space, name(document))


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Keys in order, no aliases, long texts as they were written."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else '"' if _ODD.fullmatch(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
