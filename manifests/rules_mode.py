"""What KServe ignores or refuses in one of its two modes: canaries, autoscaling, ports and pod fields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kservekit.manifests.finding import Finding
from kservekit.manifests.pods import MODE, Document, Pod, annotated, argument, mode, name, of_kind, pods

REFUSED_BY_KNATIVE = {
    "terminationGracePeriodSeconds": "the component's timeout is the grace period there",
    "lifecycle": "Knative's own proxy drains",
    "initContainers": "it needs the feature kubernetes.podspec-init-containers",
    "hostNetwork": "Knative has no such thing",
    "shareProcessNamespace": "Knative has no such thing",
}

KNATIVE_FEATURES = {
    "affinity": "kubernetes.podspec-affinity",
    "nodeSelector": "kubernetes.podspec-nodeselector",
    "tolerations": "kubernetes.podspec-tolerations",
    "runtimeClassName": "kubernetes.podspec-runtimeclassname",
    "securityContext": "kubernetes.podspec-securitycontext",
    "topologySpreadConstraints": "kubernetes.podspec-topologyspreadconstraints",
    "priorityClassName": "kubernetes.podspec-priorityclassname",
}
"""Fields of a pod that Knative takes only where its ConfigMap config-features says so."""


def check_modes(documents: Sequence[Document]) -> Iterator[Finding]:
    for service in of_kind(documents, "InferenceService"):
        where = f"InferenceService/{name(service)}"
        if not mode(service):
            said = annotated(service).get(MODE)
            yield Finding(f"{where} metadata.annotations", f"{MODE} is {said!r}: expected Standard or Knative")
        yield from _canary(service, where)
    for pod in pods(documents):
        yield from _scaling(pod)
        yield from (_knative(pod) if pod.mode == "Knative" else _standard(pod))


def knative_features(documents: Sequence[Document]) -> list[str]:
    """What has to be enabled in Knative's config-features for these to be taken."""
    needed = {
        feature
        for pod in pods(documents)
        if pod.mode == "Knative"
        for field, feature in KNATIVE_FEATURES.items()
        if field in pod.spec
    }
    return sorted(needed)


def _canary(service: Document, where: str) -> Iterator[Finding]:
    spec = service["spec"]
    for component in ("predictor", "transformer"):
        if "canaryTrafficPercent" in spec.get(component, {}) and mode(service) != "Knative":
            yield Finding(
                f"{where} spec.{component}.canaryTrafficPercent",
                "Standard mode ignores it: use spec.canary (KServe 0.20), or two InferenceServices and a route",
            )
    canaries = spec.get("canary") or []
    if canaries and mode(service) != "Standard":
        yield Finding(f"{where} spec.canary", "is for Standard mode alone: Knative has canaryTrafficPercent")
    if canaries and "transformer" in spec:
        yield Finding(
            f"{where} spec.canary",
            "a separate transformer calls the stable predictor, so the canary gets no traffic: use the component "
            "collocated, or two InferenceServices",
        )
    if sum(item.get("trafficPercent", 0) for item in canaries) > 100:
        yield Finding(f"{where} spec.canary", "asks for more than 100 percent in all")
    names = [item.get("predictor", {}).get("name") for item in canaries]
    if canaries and (None in names or len({*names, spec["predictor"].get("name")}) <= len(names)):
        yield Finding(f"{where} spec.canary", "each predictor needs a name of its own, the stable one included")


def _scaling(pod: Pod) -> Iterator[Finding]:
    spec, metric = pod.spec, pod.spec.get("scaleMetric")
    scaler = annotated(pod.service).get("serving.kserve.io/autoscalerClass")
    told = {**annotated(pod.service), **(spec.get("annotations") or {})}
    for key in ("autoscaling.knative.dev/min-scale", "autoscaling.knative.dev/max-scale"):
        if key in told:
            yield Finding(f"{pod.where}.annotations", f"KServe strips {key}: use minReplicas and maxReplicas")
    if spec.get("maxReplicas") and spec.get("minReplicas", 1) > spec["maxReplicas"]:
        yield Finding(pod.where, f"minReplicas {spec['minReplicas']} is above maxReplicas {spec['maxReplicas']}")
    if pod.mode == "Knative":
        hpa = told.get("autoscaling.knative.dev/class", "").startswith("hpa")
        if metric in ("cpu", "memory") and not hpa:
            yield Finding(f"{pod.where}.scaleMetric", f"{metric} is not for Knative's autoscaler: concurrency or rps")
        if scaler or "autoScaling" in spec:
            yield Finding(pod.where, "autoscalerClass and autoScaling are for Standard mode: Knative ignores them")
        return
    if metric in ("concurrency", "rps"):
        yield Finding(f"{pod.where}.scaleMetric", f"{metric} is for Knative: in Standard mode cpu, memory, or KEDA")
    for key in told:
        if key.startswith("autoscaling.knative.dev/"):
            yield Finding(f"{pod.where}.annotations", f"{key} has no effect in Standard mode")
    if scaler == "keda" and metric:
        yield Finding(f"{pod.where}.scaleMetric", "KServe refuses it with KEDA: use autoScaling.metrics")
    if scaler == "keda" and not (spec.get("autoScaling") or {}).get("metrics"):
        yield Finding(f"{pod.where}.autoScaling", "KEDA is asked for and told no metric to scale by")
    if scaler != "keda" and any(item.get("type") != "Resource" for item in _metrics(spec)):
        yield Finding(f"{pod.where}.autoScaling", "external metrics need serving.kserve.io/autoscalerClass: keda")
    if scaler != "keda" and "behavior" in (spec.get("autoScaling") or {}):
        yield Finding(f"{pod.where}.autoScaling.behavior", "KServe's HPA ignores it")
    if scaler not in ("keda", "external", "none") and spec.get("minReplicas") == 0:
        yield Finding(f"{pod.where}.minReplicas", "0 becomes 1 in Standard mode: nothing there wakes a service")


def _metrics(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return (spec.get("autoScaling") or {}).get("metrics") or []


def _knative(pod: Pod) -> Iterator[Finding]:
    for field, instead in REFUSED_BY_KNATIVE.items():
        for place, part in [(pod.where, pod.spec), *((f"{pod.where} {c['name']}", c) for c in pod.containers)]:
            if field in part:
                yield Finding(place, f"Knative refuses {field}: {instead}")
    ports = [(container["name"], port) for container in pod.containers for port in container.get("ports") or []]
    if len(ports) > 1:
        listed = ", ".join(f"{port['containerPort']} of {where}" for where, port in ports)
        yield Finding(
            pod.where,
            f"Knative takes one port a pod, here are {listed}: put the component knative before collocated, and give "
            "a runtime of your own one port",
        )
    for where, port in ports:
        if port.get("name", "") not in ("", "http1", "h2c"):
            yield Finding(f"{pod.where} {where}", f"Knative takes http1 or h2c for a port's name, not {port['name']!r}")
    for container in pod.containers:
        for item in container.get("env") or []:
            if "fieldRef" in (item.get("valueFrom") or {}):
                what = f"{item['name']}: fieldRef needs Knative's feature kubernetes.podspec-fieldref"
                yield Finding(f"{pod.where} {container['name']}", what)
    with_port = {where for where, _ in ports}
    for container in pod.containers:
        if container["name"] not in with_port and {"livenessProbe", "readinessProbe", "startupProbe"} & {*container}:
            what = "has probes and no port: Knative refuses that without the feature multi-container-probing"
            yield Finding(f"{pod.where} {container['name']}", what)


def _standard(pod: Pod) -> Iterator[Finding]:
    if len(pod.containers) > 1:  # the Service has the transformer's ports
        containers = [item for item in pod.containers if item["name"] == "transformer-container"] or pod.containers[:1]
    else:
        containers = pod.containers
    for container in containers:
        where, ports = f"{pod.where} {container['name']}", container.get("ports") or []
        is_http2 = ["grpc" in port.get("name", "") or "h2c" in port.get("name", "") for port in ports]
        if is_http2 and is_http2[0] and not all(is_http2):
            yield Finding(where, "gRPC is its first port and becomes the Service's port 80: name REST first")
        grpc = argument(container, "--grpc_port") or argument(container, "--grpc-port")
        rest = argument(container, "--http_port") or argument(container, "--http-port")
        for port, http2 in zip(ports, is_http2, strict=True):
            if grpc == str(port["containerPort"]) and not http2:
                yield Finding(where, f"port {grpc} speaks gRPC, so its name must have grpc in it: it decides")
            if rest == str(port["containerPort"]) and http2:
                yield Finding(where, f"port {rest} speaks HTTP/1.1, and its name {port['name']!r} says HTTP/2")
