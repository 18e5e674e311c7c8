"""What every pod of ours keeps: pinned images, limits, a drain within its grace period, little power, right flags."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from kservekit.manifests.finding import Finding
from kservekit.manifests.pods import Document, Pod, argument, gpus, is_ours, name, of_kind, pods

_PINNED = re.compile(r"@sha256:[0-9a-f]{64}$|:(?!latest$)[\w][\w.-]*$")

LAME_DUCK_MS, TIMEOUT_S = 5000, 60
"""Of our server, where no setting says otherwise."""


def check_pods(documents: Sequence[Document]) -> Iterator[Finding]:
    for pod in pods(documents):
        if not pod.containers and "model" not in pod.spec:
            what = "has no containers: a patch for the transformer came after the component that moves it (collocated)"
            yield Finding(pod.where, what)
        for container in pod.containers:
            where = f"{pod.where} {container.get('name')}"
            for check in (_image, _power, _resources, _gpu, _mounts, _environment):
                yield from (Finding(where, what) for what in check(container, pod))
            if is_ours(container):
                yield from (Finding(where, what) for what in _flags(container, pod))
        yield from (Finding(pod.where, what) for what in _grace(pod, documents))
        yield from (Finding(pod.where, what) for what in _neighbours(pod))
    for workload in of_kind(documents, "Deployment", "DaemonSet", "StatefulSet", "Job"):
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
    wanted = {
        "runAsNonRoot": asked.get("runAsNonRoot") is True,
        "allowPrivilegeEscalation: false": asked.get("allowPrivilegeEscalation") is False,
        "readOnlyRootFilesystem": asked.get("readOnlyRootFilesystem") is True,
        "capabilities.drop: [ALL]": (asked.get("capabilities") or {}).get("drop") == ["ALL"],
        "seccompProfile": (asked.get("seccompProfile") or {}).get("type") in ("RuntimeDefault", "Localhost"),
    }
    missing = [key for key, there in wanted.items() if not there]
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


def _gpu(container: dict[str, Any], pod: Pod) -> Iterator[str]:
    wants = "-gpu" in str(container.get("image"))
    if container.get("name") == "kserve-container":
        wants = wants or (pod.spec.get("model") or {}).get("modelFormat", {}).get("name") == "tensorrt"
    if wants and not gpus(container):
        yield "needs a GPU and has no limit nvidia.com/gpu: add the component gpu, gpu-mig or gpu-time-slicing"
    if len(gpus(container)) > 1:
        yield f"asks for {' and '.join(gpus(container))} at once: take one of the GPU components"


def _mounts(container: dict[str, Any], pod: Pod) -> Iterator[str]:
    volumes = {volume["name"] for volume in pod.volumes}
    mounts = container.get("volumeMounts") or []
    for mount in mounts:
        if mount["name"] not in volumes:
            yield f"mounts the volume {mount['name']!r}, which the pod has not"
    is_read_only = (container.get("securityContext") or {}).get("readOnlyRootFilesystem")
    if is_read_only and "/tmp" not in {mount["mountPath"] for mount in mounts}:  # noqa: S108
        yield "its root file system is read-only and nothing is mounted at /tmp"


def _environment(container: dict[str, Any], pod: Pod) -> Iterator[str]:
    if any(item["name"] == "PYTHONPATH" for item in container.get("env") or []):
        yield "KServe refuses PYTHONPATH since 0.18: set it in the image"


def _flags(container: dict[str, Any], pod: Pod) -> Iterator[str]:
    is_transformer = pod.component == "transformer" or container["name"] == "transformer-container"
    if not is_transformer or "Transformer" not in str(container.get("args")):
        return
    protocol = argument(container, "--predictor_protocol")
    if protocol is None:
        yield "has no --predictor_protocol: KServe does not add it, and the default is v1; write v2 or grpc-v2"
    model = pod.service["spec"]["predictor"].get("model") or {}
    if protocol == "v1" and model.get("modelFormat", {}).get("name") in ("triton", "tensorrt", "onnx"):
        yield "has --predictor_protocol=v1, which this predictor does not speak: write v2 or grpc-v2"
    if pod.component == "predictor" and not argument(container, "--predictor_host"):
        yield "has no --predictor_host: KServe adds it to a separate transformer alone; write localhost:8001"


def _grace(pod: Pod, documents: Sequence[Document]) -> Iterator[str]:
    settings: dict[str, str] = {}
    named = {source["configMapRef"]["name"] for source in _sources(pod) if "configMapRef" in source}
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


def _neighbours(pod: Pod) -> Iterator[str]:
    """Containers of one pod share its ports."""
    taken: dict[str, str] = {}
    for container in pod.containers:
        flags = ("--http_port", "--grpc_port", "--http-port", "--grpc-port", "--metrics-port")
        ports = {argument(container, flag) for flag in flags} | {
            str(port["containerPort"]) for port in container.get("ports") or []
        }
        for port in sorted(filter(None, ports)):
            if port in taken:
                yield f"{taken[port]} and {container['name']} both listen on {port}"
            taken.setdefault(port, container["name"])
