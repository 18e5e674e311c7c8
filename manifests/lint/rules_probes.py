"""Probes: on what is there, and in time."""

from __future__ import annotations

from kservekit.manifests.lint.case import V2_FORMATS, Case, format_of
from kservekit.manifests.lint.rule import ERROR, NOTE, WARNING, Found, rule
from kservekit.manifests.lint.rules_ports import listens, says_http2
from kservekit.manifests.pods import argument, is_ours

PROBES = ("livenessProbe", "readinessProbe", "startupProbe")


@rule(
    "KSV306",
    WARNING,
    "a probe on an endpoint that the server has not",
    why="Triton and its like answer /v2/health/live, /v2/health/ready and /v2/models/NAME/ready; anything else is "
    "404, so the pod never becomes ready or is killed for ever.",
    mend="/v2/health/live for liveness, /v2/health/ready for readiness.",
    source="the Open Inference Protocol, #1915",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     model:
       modelFormat: {name: triton}
       runtimeVersion: 25.08-py3
       storageUri: s3://models/photo
-      readinessProbe: {httpGet: {path: /v1/models/photo, port: 8080}}
+      readinessProbe: {httpGet: {path: /v2/health/ready, port: 8080}}
""",
)
def probes_ask_what_is_there(case: Case) -> Found:
    for key in ("model", "triton", "onnx"):
        model = case.predictor.get(key) or {}
        if model and case.speaks_v2_only and format_of(case.model) in V2_FORMATS:
            for probe in PROBES:
                path = ((model.get(probe) or {}).get("httpGet") or {}).get("path")
                if path is not None and not str(path).startswith("/v2/"):
                    what = f"asks {path}, which this server has not: /v2/health/live or /v2/health/ready"
                    yield ("spec", "predictor", key, probe), what


@rule(
    "KSV307",
    NOTE,
    "a transformer that is always ready",
    why="KServe's server answers /v2/health/ready with yes whatever its models and its predictor do, unless "
    "--enable_predictor_health_check is given.",
    mend="The flag, or /v2/models/NAME/ready.",
    source="python/kserve/kserve/protocol/dataplane.py, #1416, PR #3348",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
   transformer:
     containers:
       - name: kserve-container
         image: example.com/photo:1
-        args: [--predictor_protocol=v1]
+        args: [--predictor_protocol=v1, --enable_predictor_health_check]
         ports: [{containerPort: 8080, protocol: TCP}]
         readinessProbe: {httpGet: {path: /v2/health/ready, port: 8080}}
""",
)
def ready_means_something(case: Case) -> Found:
    for _, container, place in case.transformers():
        path = ((container.get("readinessProbe") or {}).get("httpGet") or {}).get("path")
        is_told = argument(container, "--enable_predictor_health_check") is not None
        if path == "/v2/health/ready" and not is_told and not is_ours(container):
            yield (*place, "readinessProbe"), "is always yes without --enable_predictor_health_check"


@rule(
    "KSV308",
    WARNING,
    "a probe on a port that nobody has",
    why="A probe at a port that the container neither declares nor is told to listen on fails for ever; an HTTP probe "
    "at a gRPC port does, too.",
    mend="The port of REST.",
    source="Kubernetes' probes; #3113",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     containers:
       - name: kserve-container
         image: example.com/photo:1
         args: [--http_port=8080, --grpc_port=8081]
         ports: [{containerPort: 8080, protocol: TCP}]
-        readinessProbe: {httpGet: {path: /v2/health/ready, port: 8081}}
+        readinessProbe: {httpGet: {path: /v2/health/ready, port: 8080}}
""",
)
def probes_have_a_port(case: Case) -> Found:
    for _, container, place in case.containers():
        ports = container.get("ports") or []
        names = {str(port.get("name")) for port in ports if port.get("name")}
        grpc = {argument(container, "--grpc_port"), argument(container, "--grpc-port")} - {None}
        grpc |= {str(port.get("containerPort")) for port in ports if says_http2(port)}
        known = listens(container)
        for probe in PROBES:
            asked = (container.get(probe) or {}).get("httpGet") or {}
            if "port" not in asked:
                continue
            port = str(asked["port"])
            if port in grpc:
                yield (*place, probe), f"asks port {port} over HTTP, which speaks gRPC: ask the port of REST"
            elif not port.isdecimal() and port not in names:
                yield (*place, probe), f"asks the port {port!r}, and no port is called so"
            elif port.isdecimal() and port != "0" and ports and port not in known:
                yield (*place, probe), f"asks port {port}, and the container has {', '.join(sorted(known))}"


@rule(
    "KSV313",
    ERROR,
    "a probe without a port, in Standard mode",
    why="Knative gives a probe the container's port, and KServe's schema wants none; a Deployment is refused with the "
    "port 0, and the service has no pods.",
    mend="port beside path.",
    source="Kubernetes' validation of probes; docs/samples/v1beta1/advanced/probes.yaml",
    modes=("Standard",),
    example="""
   predictor:
     model:
       modelFormat: {name: tensorflow}
       storageUri: s3://models/photo
-      readinessProbe: {httpGet: {path: /v1/models/photo}}
+      readinessProbe: {httpGet: {path: /v1/models/photo, port: 8080}}
""",
)
def probes_say_a_port(case: Case) -> Found:
    for place, part in case.parts():
        for probe in PROBES:
            for kind in ("httpGet", "tcpSocket", "grpc"):
                asked = (part.get(probe) or {}).get(kind)
                if asked is not None and asked.get("port") in (None, 0):
                    yield (*place, probe), f"{kind} has no port: a Deployment is refused without one"


@rule(
    "KSV309",
    ERROR,
    "probes of a container without a port, in Knative",
    why="Knative refuses probes in a second container without its feature multi-container-probing.",
    mend="Take them away, or enable the feature in config-features.",
    source="Knative's validation",
    modes=("Knative",),
    example="""
   predictor:
     containers:
       - name: kserve-container
         image: example.com/photo:1
         ports: [{containerPort: 8080, protocol: TCP}]
       - name: redis
         image: example.com/redis:1
-        livenessProbe: {tcpSocket: {port: 6379}}
""",
)
def second_containers_have_no_probes(case: Case) -> Found:
    for pod in case.pods:
        if not any(container.get("ports") for container in pod.containers) or len(pod.containers) < 2:
            continue
        for container in pod.containers:
            if not container.get("ports") and {*PROBES} & {*container}:
                what = "has probes and no port: Knative refuses that without the feature multi-container-probing"
                yield pod.place_of(container), what


@rule(
    "KSV310",
    WARNING,
    "liveness that waits for a model",
    why="A model's readiness is no while it loads, is unloaded or waits for its predictor: as a liveness probe that "
    "kills the pod instead of taking it out of the Service.",
    mend="Liveness asks /v2/health/live; a startupProbe gives a large model its time.",
    source="#3795, #3950",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     model:
       modelFormat: {name: triton}
       runtimeVersion: 25.08-py3
       storageUri: s3://models/photo
-      livenessProbe: {httpGet: {path: /v2/models/photo/ready, port: 8080}}
+      livenessProbe: {httpGet: {path: /v2/health/live, port: 8080}}
""",
)
def liveness_asks_the_process(case: Case) -> Found:
    for place, part in case.parts():
        path = str(((part.get("livenessProbe") or {}).get("httpGet") or {}).get("path", ""))
        if path.endswith("/ready"):
            yield (*place, "livenessProbe"), f"asks {path}, and kills the pod while a model loads: /v2/health/live"


@rule(
    "KSV311",
    WARNING,
    "a start that takes longer than KServe waits",
    why="A Standard Deployment's progress deadline is 600 s and cannot be set; Knative's is 600 s where "
    "serving.knative.dev/progress-deadline says nothing else. After that the rollout has failed.",
    mend="In Knative the annotation; in Standard, a model that loads faster (a cache, an image, fewer bytes).",
    source="rec/deployment/deployment_reconciler.go, #3795",
    modes=("Standard",),
    example="""
   predictor:
     model:
       modelFormat: {name: sklearn}
       storageUri: s3://models/photo
-      startupProbe: {httpGet: {path: /v2/health/live, port: 8080}, periodSeconds: 10, failureThreshold: 180}
+      startupProbe: {httpGet: {path: /v2/health/live, port: 8080}, periodSeconds: 10, failureThreshold: 60}
""",
)
def start_is_within_the_deadline(case: Case) -> Found:
    for place, part in case.parts():
        probe = part.get("startupProbe") or {}
        tries = probe.get("failureThreshold", 3)
        waits = probe.get("initialDelaySeconds", 0) + probe.get("periodSeconds", 10) * tries
        if waits > 600:
            yield (*place, "startupProbe"), f"waits up to {waits} s, and KServe's Deployment has failed after 600"
