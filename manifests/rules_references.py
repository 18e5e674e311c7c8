"""What names another object finds it, and what has to be filled in is filled in."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from kservekit.manifests.finding import Finding
from kservekit.manifests.pods import Document, name, of_kind, pods
from kservekit.manifests.schema import shown, within

LABEL = "serving.kserve.io/inferenceservice"
"""KServe gives it to the pods and Services of an InferenceService."""

_ASKED = re.compile(r'\bserving_kserve_io_inferenceservice="([^"]*)"')


def check_references(documents: Sequence[Document]) -> Iterator[Finding]:
    there = {(document.get("kind"), name(document)) for document in documents}
    for pod in pods(documents):
        model = pod.spec.get("model") or {}
        runtime = model.get("runtime", "")
        if "kservekit" in runtime and ("ServingRuntime", runtime) not in there:
            yield Finding(f"{pod.where}.model.runtime", f"there is no ServingRuntime {runtime!r} among these manifests")
        for kind, found in _named(pod.containers, pod.volumes, pod.spec):
            if (kind, found) not in there:
                yield Finding(
                    pod.where,
                    f"names the {kind} {found!r}, which is not among these manifests: a generated name has a hash, "
                    "which base/kustomizeconfig.yaml brings here",
                )
        yield from (Finding(f"{pod.where}.model.storageUri", what) for what in _claim(model, documents))
    for document in of_kind(documents, "InferenceService", "LocalModelCache", "LocalModelNamespaceCache"):
        where = f"{document['kind']}/{name(document)}"
        for place, value in within(document.get("spec"), ("spec",)):
            if place[-1] in ("storageUri", "uri", "sourceModelUri") and "://placeholder" in f"://{value}":
                what = f"is still the placeholder {value!r}: put in the URI of a model, such as s3://models/photo"
                yield Finding(f"{where} {shown(place)}", what)
    yield from _redis(documents)
    yield from _queries(documents)
    services = {name(service): service for service in of_kind(documents, "InferenceService")}
    for document in documents:
        for selected in _selected(document):
            if selected not in services:
                where = f"{document.get('kind')}/{name(document)}"
                yield Finding(where, f"selects the InferenceService {selected!r}, which is not among these manifests")
    backends = {f"{key}-{part}" for key, service in services.items() for part in service.get("spec") or {}}
    backends |= {name(document) for document in of_kind(documents, "Service")}
    for route in of_kind(documents, "HTTPRoute"):
        for backend in _backends(route):
            if backend not in backends:
                yield Finding(
                    f"HTTPRoute/{name(route)}",
                    f"goes to the Service {backend!r}, which none of these InferenceServices has: "
                    f"{', '.join(sorted(backends)) or 'there are none'}",
                )


def _claim(model: dict[str, Any], documents: Sequence[Document]) -> Iterator[str]:
    scheme, _, rest = str(model.get("storageUri", "")).partition("://")
    claims = {name(document) for document in of_kind(documents, "PersistentVolumeClaim")}
    if scheme == "pvc" and claims and rest.partition("/")[0] not in claims:
        yield f"is on the claim {rest.partition('/')[0]!r}, and the claims of these manifests are {sorted(claims)}"


def _redis(documents: Sequence[Document]) -> Iterator[Finding]:
    services = {name(document) for document in of_kind(documents, "Service")}
    for secret in of_kind(documents, "Secret"):
        coded = (secret.get("data") or {}).get("KSERVEKIT_RESPONSE_CACHE_REDIS_URL")
        host = urlsplit(base64.b64decode(coded).decode(errors="replace")).hostname if coded else None
        if host and "." not in host and host not in services:
            yield Finding(
                f"Secret/{name(secret)} KSERVEKIT_RESPONSE_CACHE_REDIS_URL",
                f"goes to {host!r}, which is no Service among these manifests: a namePrefix does not reach a URL",
            )


def _queries(documents: Sequence[Document]) -> Iterator[Finding]:
    services = {name(service) for service in of_kind(documents, "InferenceService")}
    for document in of_kind(documents, "InferenceService"):
        for place, value in within(document.get("spec"), ("spec",)):
            for asked in sorted({*_ASKED.findall(str(value))} - services) if place[-1] == "query" else ():
                yield Finding(
                    f"InferenceService/{name(document)} {shown(place)}",
                    f"asks Prometheus for {asked!r}, which is no InferenceService among these manifests: a namePrefix "
                    "does not reach a query",
                )


def _named(
    containers: list[dict[str, Any]], volumes: list[dict[str, Any]], spec: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    for container in containers:
        for source in container.get("envFrom") or []:
            for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if field in source and not source[field].get("optional"):
                    yield kind, str(source[field].get("name"))
    for volume in volumes:
        # A Secret that is mounted is made elsewhere: by cert-manager, or from files that are not in git.
        if "configMap" in volume and not volume["configMap"].get("optional"):
            yield "ConfigMap", volume["configMap"]["name"]
    if "serviceAccountName" in spec:
        yield "ServiceAccount", spec["serviceAccountName"]


def _selected(document: Document) -> list[str]:
    found = [item for place, item in within(document) if place[-1] == "matchLabels" and isinstance(item, dict)]
    return [str(item[LABEL]) for item in found if LABEL in item]


def _backends(route: Document) -> Iterator[str]:
    for place, item in within(route["spec"]):
        if place[-1] == "backendRefs":
            yield from (backend["name"] for backend in item)
        elif place[-1] == "backendRef":
            yield item["name"]
