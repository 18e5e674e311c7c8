"""What a rule looks at: one object as a cluster would keep it, in a version and a mode, and the objects around it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from kservekit.manifests.pods import (
    FORMATS,
    MODE,
    Document,
    Pod,
    annotated,
    argument,
    is_ours,
    mode,
    model_of,
    name,
    pods_of,
)
from kservekit.manifests.schema import Place, kept

CLASS = "serving.kserve.io/autoscalerClass"
KNATIVE = "autoscaling.knative.dev/"

KSERVES_TRITON = "kserve-tritonserver"

TRITON_PORTS = {"http": 8080, "grpc": 9000}
"""Of KServe's own runtime for Triton."""

SERVERS_FLAGS = (
    *("--model_name", "--http_port", "--grpc_port", "--predictor_host", "--predictor_protocol", "--protocol"),
    *("--workers", "--enable_predictor_health_check"),
)
"""Of KServe's Python server."""

V2_FORMATS = ("triton", "tensorrt", "onnx")
"""Whose servers speak the Open Inference Protocol alone."""


class Around:
    """The objects that were given together, by kind, namespace and name."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self._found: dict[tuple[str, str, str], Document] = {}
        self._kinds: dict[str, list[Document]] = {}
        for document in documents:
            kind = str(document.get("kind"))
            self._found[kind, namespace(document), name(document)] = document
            self._kinds.setdefault(kind, []).append(document)

    def get(self, kind: str, called: str, within: str) -> Document | None:
        """The one of this name; an object that says no namespace is taken to be in any."""
        for space in (within, "", *([] if within else [namespace(found) for found in self.of(kind)])):
            if (kind, space, called) in self._found:
                return self._found[kind, space, called]
        return None

    def of(self, kind: str) -> list[Document]:
        return self._kinds.get(kind, [])

    def setting(self, key: str) -> dict[str, Any]:
        """One of the JSON texts in KServe's ConfigMap; empty where that is not here."""
        for document in self.of("ConfigMap"):
            data = document.get("data")
            if name(document) == "inferenceservice-config" and isinstance(data, dict) and key in data:
                with contextlib.suppress(ValueError, RecursionError):
                    found = json.loads(str(data[key]))
                    return found if isinstance(found, dict) else {}
        return {}


@dataclass
class Case:
    written: Document
    """As it is in the file."""
    document: Document
    """Without what a cluster would drop or refuse, so that every field has its type."""
    kserve: str
    around: Around = field(default_factory=lambda: Around(()))
    _in_part: set[int] = field(default_factory=set)

    @property
    def name(self) -> str:
        return name(self.document)

    @property
    def namespace(self) -> str:
        return namespace(self.document)

    @property
    def mode(self) -> str:
        return mode(self.document)

    @property
    def annotations(self) -> dict[str, str]:
        return annotated(self.document)

    @property
    def autoscaler(self) -> str | None:
        return self.annotations.get(CLASS)

    def all_annotations(self) -> Iterator[tuple[Place, str, str]]:
        """Those of the service and of its components, with their places."""
        for key, value in self.annotations.items():
            yield ("metadata", "annotations", key), key, value
        for pod in self.pods:
            for key, value in (pod.spec.get("annotations") or {}).items():
                yield (*pod.place, "annotations", key), key, value

    @property
    def spec(self) -> dict[str, Any]:
        found: dict[str, Any] = self.document.get("spec") or {}
        return found

    @cached_property
    def pods(self) -> list[Pod]:
        used = {}
        for component in ("predictor", "transformer", "explainer"):
            called = model_of(self.spec.get(component) or {})[1].get("runtime")
            if called and (runtime := self.runtime(called)):
                used[called] = runtime
        found = list(pods_of(self.document, used))
        for pod in found:
            key, model = model_of(pod.spec)
            if key and model.get("runtime") not in used:
                pod.containers.append({**model, "name": "kserve-container"})
                self._in_part.add(id(pod.containers[-1]))
        return found

    def is_in_part(self, container: dict[str, Any]) -> bool:
        """Whether it is a model's, and what its runtime adds to it is not known."""
        return id(container) in self._in_part

    @property
    def predictor(self) -> dict[str, Any]:
        found: dict[str, Any] = self.spec.get("predictor") or {}
        return found

    @property
    def model(self) -> dict[str, Any]:
        """The predictor's model, in its new form or an old one."""
        return model_of(self.predictor)[1]

    def runtime(self, called: str) -> Document | None:
        return self.around.get("ServingRuntime", called, self.namespace) or self.around.get(
            "ClusterServingRuntime", called, ""
        )

    def runtime_of(self, model: dict[str, Any]) -> dict[str, Any]:
        """The spec of the runtime that a model names; empty where it names none, or these files have it not."""
        called = model.get("runtime")
        runtime = self.runtime(called) if called else None
        return (runtime or {}).get("spec") or {}

    @property
    def is_kserves_triton(self) -> bool:
        """Whether KServe's own runtime for Triton serves the model, as far as it says."""
        return self.model.get("runtime") in (None, KSERVES_TRITON) and format_of(self.model) in V2_FORMATS

    def containers(self) -> Iterator[tuple[Pod, dict[str, Any], Place]]:
        """Each with its pod and its place."""
        for pod in self.pods:
            for container in pod.containers:
                yield pod, container, pod.place_of(container)

    def parts(self) -> Iterator[tuple[Place, dict[str, Any]]]:
        """Models and containers as they are written, each with its place."""
        for pod in self.pods:
            for key in ("model", *FORMATS):
                if key in pod.spec:
                    yield (*pod.place, key), pod.spec[key]
            for number, container in enumerate(pod.spec.get("containers") or []):
                yield (*pod.place, "containers", number), container

    def transformers(self) -> Iterator[tuple[Pod, dict[str, Any], Place]]:
        """The containers that call a predictor: the transformer's first, or the one collocated."""
        for pod, container, place in self.containers():
            if is_ours(container) and "Transformer" not in str(container.get("args")):
                continue  # a predictor of ours, which calls Triton by settings
            is_first = pod.component == "transformer" and container is pod.containers[0]
            if is_first or (pod.component == "predictor" and container.get("name") == "transformer-container"):
                yield pod, container, place

    def collocated(self) -> Iterator[tuple[dict[str, Any], Place]]:
        """Collocated transformers that are KServe's server, as far as their flags say: others have other flags."""
        for pod, container, place in self.transformers():
            if pod.component == "predictor" and any(argument(container, flag) is not None for flag in SERVERS_FLAGS):
                yield container, place

    @property
    def speaks_v2_only(self) -> bool:
        """Whether the predictor is one that has no v1, as far as these files say."""
        protocol = self.model.get("protocolVersion")
        if protocol:
            return protocol in ("v2", "grpc-v2")
        listed = self.runtime_of(self.model).get("protocolVersions")
        if listed:
            return "v1" not in listed
        return self.is_kserves_triton or format_of(self.model) in ("triton", "tensorrt")


def namespace(document: Document) -> str:
    return str((document.get("metadata") or {}).get("namespace") or "")


def format_of(model: dict[str, Any]) -> str:
    return str((model.get("modelFormat") or {}).get("name", ""))


def environment(container: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {str(item.get("name")): item for item in container.get("env") or []}


def number(container: dict[str, Any], flag: str) -> int | None:
    """The value of a flag, where it is a whole number."""
    found = argument(container, flag)
    return int(found) if found and found.isdecimal() and len(found) < 10 else None


def flag_place(container: dict[str, Any], place: Place, flag: str) -> Place:
    """Where the flag stands in the container's own arguments, or the container."""
    for key in ("args", "command"):
        for count, word in reversed(list(enumerate(container.get(key) or []))):
            if str(word).partition("=")[0] == flag:
                return (*place, key, count)
    return place


def case_of(written: Document, kserve: str, default_mode: str) -> Case:
    document = kept(written, kserve)
    if default_mode and document.get("kind") == "InferenceService" and MODE not in annotated(document):
        metadata = document["metadata"]
        metadata["annotations"] = {**annotated(document), MODE: default_mode}
    return Case(written, document, kserve)
