"""Condenses the CRDs of ../shared/crds and the schema of values files into manifests/schemas/crds.json.

`python tests/condense_crds.py`.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import kserve.models
import yaml

ROOT = Path(__file__).absolute().parent.parent
CRDS = ROOT.parent / "shared/crds"
CONDENSED = ROOT / "manifests/schemas/crds.json"
VALUES = ROOT / "manifests/schemas/values.yaml"

VERSIONS = {"0.18": "kserve-0.18", "0.19": "kserve-0.19", "0.20": "kserve-0.20", "main": "kserve-main"}
KEPT = ("type", "enum", "required", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems")


class Nodes:
    """Schemas as numbered nodes. One that occurs often, as a PodSpec does, is there once."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []
        self._numbers: dict[str, int] = {}

    def add(self, schema: dict[str, Any]) -> int:
        node = {key: schema[key] for key in KEPT if key in schema}
        if schema.get("x-kubernetes-int-or-string"):
            node = {"type": "int-or-string"}
        if schema.get("x-kubernetes-preserve-unknown-fields"):
            node["open"] = True
        if schema.get("properties"):
            node["fields"] = {name: self.add(item) for name, item in sorted(schema["properties"].items())}
        if isinstance(schema.get("additionalProperties"), dict):
            node["values"] = self.add(schema["additionalProperties"])
        if schema.get("items"):
            node["items"] = self.add(schema["items"])
        if schema.get("x-kubernetes-list-map-keys"):
            node["keys"] = sorted(schema["x-kubernetes-list-map-keys"])
        return self._number(node)

    def _number(self, node: dict[str, Any]) -> int:
        text = json.dumps(node, sort_keys=True)
        if text not in self._numbers:
            self._numbers[text] = len(self.nodes)
            self.nodes.append(node)
        return self._numbers[text]

    def with_field(self, number: int, path: list[str], schema: dict[str, Any]) -> int:
        """The node of `number` with one more field below it."""
        node = json.loads(json.dumps(self.nodes[number]))
        if len(path) == 1:
            node["fields"][path[0]] = self.add(schema)
        else:
            node["fields"][path[0]] = self.with_field(node["fields"][path[0]], path[1:], schema)
        return self._number(node)


@cache
def crds(folder: Path) -> dict[str, dict[str, Any]]:
    """`apiVersion/Kind` to its schema, of what users write: without status, and with Kubernetes' own metadata open."""
    found = {}
    for file in sorted(folder.glob("*.yaml")):
        for crd in yaml.load_all(file.read_text(encoding="utf-8"), yaml.CSafeLoader):
            if not crd or crd["kind"] != "CustomResourceDefinition":
                continue
            for version in crd["spec"]["versions"]:
                schema = version["schema"]["openAPIV3Schema"]
                schema["properties"] = {
                    name: item for name, item in schema["properties"].items() if name in ("apiVersion", "kind", "spec")
                }
                schema["properties"]["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
                found[f"{crd['spec']['group']}/{version['name']}/{crd['spec']['names']['kind']}"] = schema
    return found


def tracing_of_0_21() -> dict[str, Any]:
    """`spec.tracing`, which 0.21 adds to 0.20's schema: taken from the models of KServe's Python package."""
    types = {"str": "string", "int": "integer", "bool": "boolean", "float": "number"}

    def schema(name: str) -> dict[str, Any]:
        if name in types:
            return {"type": types[name]}
        if name.startswith("list["):
            return {"type": "array", "items": schema(name[5:-1])}
        if name.startswith("dict("):
            return {"type": "object", "additionalProperties": schema(name[5:-1].split(", ")[1])}
        model = getattr(kserve.models, name, None)
        if model is None:
            return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        fields = {model.attribute_map[field]: schema(kind) for field, kind in model.openapi_types.items()}
        return {"type": "object", "properties": fields}

    return schema("V1beta1TracingSpec")


def condensed() -> dict[str, Any]:
    nodes = Nodes()
    kinds = {
        version: {name: nodes.add(schema) for name, schema in crds(CRDS / folder).items()}
        for version, folder in VERSIONS.items()
    }
    service = "serving.kserve.io/v1beta1/InferenceService"
    with_tracing = nodes.with_field(kinds["0.20"][service], ["spec", "tracing"], tracing_of_0_21())
    kinds["0.21"] = kinds["0.20"] | {service: with_tracing}
    others = {name: nodes.add(schema) for name, schema in crds(CRDS / "deps").items()}
    others["kservekit/v1/Values"] = nodes.add(yaml.safe_load(VALUES.read_text(encoding="utf-8")))
    return {
        "kserve": dict(sorted(kinds.items())),
        "others": others,
        "nodes": nodes.nodes,
    }


def text() -> str:
    """A node a line, so that a change of the schemas can be read in a diff."""
    found = condensed()
    nodes = ",\n".join(json.dumps(node, sort_keys=True, separators=(",", ":")) for node in found.pop("nodes"))
    head = json.dumps(found, indent=1, sort_keys=True)
    return f'{head[:-2]},\n "nodes": [\n{nodes}\n]}}\n'


if __name__ == "__main__":
    CONDENSED.write_text(text(), encoding="utf-8")
    print(f"{CONDENSED}: {CONDENSED.stat().st_size} bytes", file=sys.stderr)  # noqa: T201
