"""The pods that KServe makes of an InferenceService: its own fields over those of the ServingRuntime that it names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kservekit.manifests.schema import Place, shown

Document = dict[str, Any]

MODE = "serving.kserve.io/deploymentMode"
MODES = {"Serverless": "Knative", "RawDeployment": "Standard", "Knative": "Knative", "Standard": "Standard"}
"""KServe's words for its modes, the old ones too, and what it writes instead of them since 0.16."""

MODELS = "kserve-container"

TRANSFORMER = "transformer-container"
"""A collocated transformer, by which name KServe merges a runtime's with the InferenceService's."""

WORKLOADS = ("Deployment", "DaemonSet", "StatefulSet", "Job")

FORMATS = (
    *("huggingface", "lightgbm", "onnx", "paddle", "pmml"),
    *("pytorch", "sklearn", "tensorflow", "triton", "xgboost"),
)
"""The older forms of `model`, each named by its format; KServe rewrites them."""


@dataclass(frozen=True)
class Pod:
    service: Document
    """The InferenceService."""
    component: str
    """predictor, transformer or explainer."""
    place: Place
    """Where it stands: ("spec", "predictor")."""
    spec: dict[str, Any]
    """The component as it is written."""
    containers: list[dict[str, Any]]
    volumes: list[dict[str, Any]]

    @property
    def where(self) -> str:
        return f"InferenceService/{name(self.service)} {shown(self.place)}"

    def place_of(self, container: dict[str, Any]) -> Place:
        """Where a container stands; one that is merged with its runtime's, at the model."""
        for number, own in enumerate(self.spec.get("containers") or []):
            if own is container or own.get("name") == container.get("name") == TRANSFORMER:
                return (*self.place, "containers", number)
        return (*self.place, *filter(None, [model_of(self.spec)[0]]))

    @property
    def mode(self) -> str:
        return mode(self.service)


def name(document: Document) -> str:
    return str(document.get("metadata", {}).get("name"))


def of_kind(documents: Sequence[Document], *kinds: str) -> list[Document]:
    return [document for document in documents if document.get("kind") in kinds]


def annotated(document: Document) -> dict[str, str]:
    found: dict[str, str] = document.get("metadata", {}).get("annotations") or {}
    return found


def mode(service: Document) -> str:
    """Knative or Standard; empty where the annotation is missing or something else."""
    return MODES.get(annotated(service).get(MODE, ""), "")


def model_of(spec: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The key and the fields of `model`, or of one of its older forms; empty where there is none."""
    if "model" in spec:
        return "model", spec["model"] or {}
    for key in FORMATS:
        if key in spec:
            return key, {"modelFormat": {"name": key}, **(spec[key] or {})}
    return "", {}


def pods(documents: Sequence[Document]) -> Iterator[Pod]:
    runtimes = {name(document): document for document in of_kind(documents, "ServingRuntime", "ClusterServingRuntime")}
    for service in of_kind(documents, "InferenceService"):
        yield from pods_of(service, runtimes)


def pods_of(service: Document, runtimes: dict[str, Document]) -> Iterator[Pod]:
    """Those of one InferenceService, among these runtimes by name."""
    for component in ("predictor", "transformer", "explainer"):
        spec = service.get("spec", {}).get(component)
        if spec is not None:
            yield _pod(service, component, spec, runtimes)


def _pod(service: Document, component: str, spec: dict[str, Any], runtimes: dict[str, Document]) -> Pod:
    containers, volumes = list(spec.get("containers") or []), list(spec.get("volumes") or [])
    key, model = model_of(spec)
    if key:
        runtime = runtimes.get(model.get("runtime", ""), {}).get("spec", {})
        volumes += runtime.get("volumes") or []
        for container in runtime.get("containers") or []:
            called = container.get("name")
            own = [number for number, item in enumerate(containers) if item.get("name") == called == TRANSFORMER]
            if own:
                containers[own[0]] = _merged(container, containers[own[0]])
            else:
                containers.append(_merged(container, model) if called == MODELS else container)
    return Pod(service, component, ("spec", component), spec, containers, volumes)


def _merged(container: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """As KServe merges: arguments of both, the InferenceService's entries over the runtime's."""
    merged = {**container, **{key: value for key, value in model.items() if key not in ("args", "resources")}}
    merged["name"] = container["name"]
    merged["args"] = [*(container.get("args") or []), *(model.get("args") or [])]
    for field in ("env", "envFrom", "ports", "volumeMounts"):
        merged[field] = [*(container.get(field) or []), *(model.get(field) or [])]
    ours, theirs = container.get("resources") or {}, model.get("resources") or {}
    merged["resources"] = {
        kind: {**(ours.get(kind) or {}), **(theirs.get(kind) or {})}
        for kind in {"limits", "requests"} & {*ours, *theirs}
    }
    return merged


def argument(container: dict[str, Any], flag: str) -> str | None:
    """The value of `--flag=value` or `--flag value`, the last one as servers take it."""
    found = None
    words = [*(container.get("command") or []), *(container.get("args") or [])]
    for place, word in enumerate(words):
        key, equals, value = str(word).partition("=")
        if key == flag:
            found = value if equals else str(words[place + 1]) if place + 1 < len(words) else ""
    return found


def is_ours(container: dict[str, Any]) -> bool:
    """Whether `kservekit serve` runs in it."""
    return "kservekit" in str(container.get("command") or [container.get("image", "")])


def gpus(container: dict[str, Any], kind: str = "limits") -> dict[str, Any]:
    """The limits, or requests, that ask for a GPU or for a part of one."""
    asked = (container.get("resources") or {}).get(kind) or {}
    return {key: value for key, value in asked.items() if key.startswith(("nvidia.com/", "amd.com/"))}


def amount(quantity: Any) -> float:
    """Kubernetes' 500m, 2Gi or 1 as a number; 0 for what is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(m|[kMGTP]|[KMGTP]i)?", str(quantity))
    factors = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
    factors |= {f"{unit}i": 2.0 ** (10 * power) for power, unit in enumerate("KMGTP", 1)}
    return float(found[1]) * factors.get(found[2] or "", 1.0) if found else 0.0
