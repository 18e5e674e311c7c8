"""What every pod of ours keeps beyond what lint says of any: pinned images, limits, our own drain, little power."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from kservekit.manifests.finding import Finding
from kservekit.manifests.lint.rules_security import short_of_restricted
from kservekit.manifests.pods import WORKLOADS, Document, Pod, name, of_kind, pods

_PINNED = re.compile(r"@sha256:[0-9a-f]{64}$|:(?!latest$)[\w][\w.-]*$")

LAME_DUCK_MS, TIMEOUT_S = 5000, 60
"""Of our server, where no setting says otherwise."""


def check_pods(documents: Sequence[Document]) -> Iterator[Finding]:
    for pod in pods(documents):
        for container in pod.containers:
            where = f"{pod.where} {container.get('name')}"
            for check in (_image, _power, _resources):
                yield from (Finding(where, what) for what in check(container, pod))
        yield from (Finding(pod.where, what) for what in _grace(pod, documents))
    for workload in of_kind(documents, *WORKLOADS):
        for container in workload["spec"]["template"]["spec"]["containers"]:
            where = f"{workload['kind']}/{name(workload)} {container['name']}"
            yield from (Finding(where, what) for what in _image(container, None))


def _image(container: dict[str, Any], pod: Pod | None) -> Iterator[str]:
    image = container.get("image")
    if not image:
        yield "has no image: a merge patch has replaced the list of containers; use JSON6902 operations inside lists"
    elif not _PINNED.search(image):
        yield f"image {image} is not pinned: give it a tag or a digest in an overlay's images"


def _power(container: dict[str, Any], pod: Pod) -> Iterator[str]:
    asked = container.get("securityContext") or {}
    missing = short_of_restricted(asked, {})
    missing += ["readOnlyRootFilesystem"] if asked.get("readOnlyRootFilesystem") is not True else []
    if missing:
        yield f"its securityContext lacks {', '.join(missing)}"


def _resources(container: dict[str, Any], pod: Pod) -> Iterator[str]:
    resources = container.get("resources") or {}
    missing = [
        f"{kind}.{key}"
        for kind, key in (("requests", "cpu"), ("requests", "memory"), ("limits", "memory"))
        if key not in (resources.get(kind) or {})
    ]
    if missing:
        yield f"has no resources {', '.join(missing)}: KServe would put in its own defaults, 1 CPU and 2 GiB"


def _grace(pod: Pod, documents: Sequence[Document]) -> Iterator[str]:
    settings: dict[str, str] = {}
    named = {source["configMapRef"].get("name") for source in _sources(pod) if "configMapRef" in source}
    for document in of_kind(documents, "ConfigMap"):
        if name(document) in named:
            settings |= document.get("data") or {}
    try:
        lame_duck_s = int(settings.get("KSERVEKIT_LAME_DUCK_MS") or LAME_DUCK_MS) / 1000
        drain_s = lame_duck_s + float(settings.get("KSERVEKIT_TIMEOUT_S") or TIMEOUT_S)
    except ValueError:
        yield "KSERVEKIT_LAME_DUCK_MS or KSERVEKIT_TIMEOUT_S in its settings is no number"
        return
    field = "timeout" if pod.mode == "Knative" else "terminationGracePeriodSeconds"
    if pod.spec.get(field, 30) < drain_s:
        yield (
            f"{field} is {pod.spec.get(field, 'not set')}: expected at least {drain_s:g}, KSERVEKIT_LAME_DUCK_MS and "
            "KSERVEKIT_TIMEOUT_S together, or requests are cut off when a pod goes"
        )


def _sources(pod: Pod) -> list[dict[str, Any]]:
    return [source for container in pod.containers for source in container.get("envFrom") or []]
