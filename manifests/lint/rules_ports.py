"""Ports, their names, and probes: what KServe's Service and Knative make of them."""

from __future__ import annotations

from typing import Any

from kservekit.manifests.lint.case import V2_FORMATS, Case, format_of, number
from kservekit.manifests.lint.rule import ERROR, NOTE, WARNING, Found, rule
from kservekit.manifests.lint.rules_wiring import TRITON_PORTS
from kservekit.manifests.pods import Pod, argument, is_ours
from kservekit.manifests.schema import Place

PROBES = ("livenessProbe", "readinessProbe", "startupProbe")

_FLAGS = ("--http_port", "--grpc_port", "--http-port", "--grpc-port", "--metrics-port")


@rule(
    "KSV301",
    ERROR,
    "more than one port in Knative",
    why="Knative takes one port a pod, in one of its containers: REST or gRPC, not both.",
    mend="Declare one; for the other protocol, a second InferenceService or Standard mode.",
    source="Knative's validation, #2601, website#464",
    modes=("Knative",),
    example="""
   predictor:
     containers:
       - name: kserve-container
         image: example.com/photo:1
         ports:
           - {name: http1, containerPort: 8080, protocol: TCP}
-          - {containerPort: 8081, protocol: TCP}
""",
)
def one_port_in_knative(case: Case) -> Found:
    for pod in case.pods:
        ports = [(container.get("name"), port) for container in pod.containers for port in container.get("ports") or []]
        if len(ports) > 1:
            listed = ", ".join(f"{port.get('containerPort')} of {where}" for where, port in ports)
            at = [container for container in pod.containers if container.get("ports")][-1]
            yield (*pod.place_of(at), "ports"), f"Knative takes one port a pod, here are {listed}: leave one"


@rule(
    "KSV302",
    ERROR,
    "a port's name that Knative does not take",
    why="The name of a port is its protocol there: http1, or h2c for gRPC.",
    mend="name: http1 or h2c.",
    source="Knative's runtime contract",
    modes=("Knative",),
    example="""
   predictor:
     containers:
       - name: kserve-container
         image: example.com/photo:1
-        ports: [{name: grpc, containerPort: 8081, protocol: TCP}]
+        ports: [{name: h2c, containerPort: 8081, protocol: TCP}]
""",
)
def ports_have_knatives_names(case: Case) -> Found:
    for _, container, place in case.containers():
        for count, port in enumerate(container.get("ports") or []):
            if port.get("name", "") not in ("", "http1", "h2c"):
                what = f"Knative takes http1 or h2c for a port's name, not {port['name']!r}"
                yield (*place, "ports", count), what


@rule(
    "KSV303",
    WARNING,
    "gRPC as the first port",
    why="The first port becomes port 80 of KServe's Service, so REST callers reach gRPC.",
    mend="Name REST first.",
    source="rec/service/service_reconciler.go",
    modes=("Standard",),
    example="""
   predictor:
     containers:
       - name: kserve-container
         image: example.com/photo:1
         ports:
-          - {name: grpc, containerPort: 8081, protocol: TCP}
-          - {name: http1, containerPort: 8080, protocol: TCP}
+          - {name: http1, containerPort: 8080, protocol: TCP}
+          - {name: grpc, containerPort: 8081, protocol: TCP}
""",
)
def rest_is_first(case: Case) -> Found:
    for pod in case.pods:
        for container in _in_the_service(pod):
            is_http2 = [_says_http2(port) for port in container.get("ports") or []]
            if is_http2 and is_http2[0] and not all(is_http2):
                place = (*pod.place_of(container), "ports", 0)
                yield place, "gRPC is its first port and becomes the Service's port 80: name REST first"


@rule(
    "KSV304",
    WARNING,
    "a port whose name says another protocol than it speaks",
    why="grpc or h2c in a port's name makes it HTTP/2 in the Service and in the route: gRPC fails without it, REST "
    "with it.",
    mend="grpc or h2c in the name of the gRPC port, and in no other.",
    source="rec/service/service_reconciler.go, #3790",
    modes=("Standard",),
    example="""
   predictor:
     containers:
       - name: kserve-container
         image: example.com/photo:1
         args: [--grpc_port=8081]
         ports:
           - {name: http1, containerPort: 8080, protocol: TCP}
-          - {name: second, containerPort: 8081, protocol: TCP}
+          - {name: grpc, containerPort: 8081, protocol: TCP}
""",
)
def names_say_the_protocol(case: Case) -> Found:
    for pod in case.pods:
        for container in _in_the_service(pod):
            grpc = argument(container, "--grpc_port") or argument(container, "--grpc-port")
            rest = argument(container, "--http_port") or argument(container, "--http-port")
            for count, port in enumerate(container.get("ports") or []):
                place, listens = (*pod.place_of(container), "ports", count), str(port.get("containerPort"))
                if grpc == listens and not _says_http2(port):
                    yield place, f"port {grpc} speaks gRPC, so its name must have grpc in it: it decides"
                if rest == listens and _says_http2(port):
                    yield place, f"port {rest} speaks HTTP/1.1, and its name {port['name']!r} says HTTP/2"


@rule(
    "KSV305",
    ERROR,
    "two containers of a pod on one port",
    why="Containers of a pod share its ports, and the second to come ends with 'address already in use'. KServe's "
    "Triton has 8080, 9000 and 8002; its Python server takes 8080 and 8081 where no flag says otherwise.",
    mend="Another --http_port and --grpc_port for the transformer, such as 8090 and 8091.",
    source="test/e2e/transformer/test_collocation.py, #4463",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     model: {modelFormat: {name: triton}, runtimeVersion: 25.08-py3, storageUri: s3://models/photo}
     containers:
       - name: transformer-container
         image: example.com/photo:1
         args:
           - --model_name=photo
           - --predictor_protocol=v2
           - --predictor_host=localhost:8080
+          - --http_port=8090
""",
)
def neighbours_have_ports_of_their_own(case: Case) -> Found:
    for pod in case.pods:
        taken: dict[str, str] = {}
        if not case.model.get("runtime") and pod.component == "predictor" and format_of(case.model) in V2_FORMATS:
            taken = {str(port): "KServe's Triton" for port in (*TRITON_PORTS.values(), 8002)}
        for container in pod.containers:
            for port in sorted(_listens(container) if not case.is_in_part(container) else ()):
                if port in taken:
                    yield pod.place_of(container), f"{taken[port]} and {container.get('name')} both listen on {port}"
                taken.setdefault(port, str(container.get("name")))


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
        grpc |= {str(port.get("containerPort")) for port in ports if _says_http2(port)}
        listens = _listens(container)
        for probe in PROBES:
            asked = (container.get(probe) or {}).get("httpGet") or {}
            if "port" not in asked:
                continue
            port = str(asked["port"])
            if port in grpc:
                yield (*place, probe), f"asks port {port} over HTTP, which speaks gRPC: ask the port of REST"
            elif not port.isdecimal() and port not in names:
                yield (*place, probe), f"asks the port {port!r}, and no port is called so"
            elif port.isdecimal() and port != "0" and ports and port not in listens:
                yield (*place, probe), f"asks port {port}, and the container has {', '.join(sorted(listens))}"


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
    for component in ("predictor", "transformer", "explainer"):
        spec = case.spec.get(component) or {}
        parts: list[tuple[tuple[str | int, ...], dict[str, Any]]] = [
            (("spec", component, key), spec[key])
            for key in ("model", "triton", "onnx")
            if isinstance(spec.get(key), dict)
        ]
        parts += [(("spec", component, "containers", n), item) for n, item in enumerate(spec.get("containers") or [])]
        for place, part in parts:
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
    for pod in case.pods:
        key, model = next(
            ((k, pod.spec[k]) for k in ("model", "triton") if isinstance(pod.spec.get(k), dict)), ("", {})
        )
        parts: list[tuple[Place, dict[str, Any]]] = [((*pod.place, key), model)] if key else []
        parts += [((*pod.place, "containers", n), item) for n, item in enumerate(pod.spec.get("containers") or [])]
        for place, part in parts:
            probe = part.get("startupProbe") or {}
            waits = probe.get("initialDelaySeconds", 0) + probe.get("periodSeconds", 10) * probe.get(
                "failureThreshold", 3
            )
            if waits > 600:
                what = f"waits up to {waits} s, and KServe's Deployment has failed after 600"
                yield (*place, "startupProbe"), what


@rule(
    "KSV312",
    ERROR,
    "a port's protocol that there is none of",
    why="KServe's schema takes any word; Kubernetes takes TCP, UDP and SCTP and refuses the Deployment, so the "
    "service is there and has no pods. Serving is TCP.",
    mend="protocol: TCP, in capitals.",
    source="Kubernetes' validation, #2349",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     containers:
       - name: kserve-container
         image: example.com/photo:1
-        ports: [{containerPort: 8080, protocol: http}]
+        ports: [{containerPort: 8080, protocol: TCP}]
""",
)
def port_protocols_are_tcp(case: Case) -> Found:
    for _, container, place in case.containers():
        for count, port in enumerate(container.get("ports") or []):
            if port.get("protocol", "TCP") != "TCP":
                yield (*place, "ports", count), f"has the protocol {str(port['protocol'])[:20]!r}: expected TCP"


def _in_the_service(pod: Pod) -> list[dict[str, Any]]:
    """The Service has the transformer's ports, else the first container's."""
    if len(pod.containers) > 1:
        return [item for item in pod.containers if item.get("name") == "transformer-container"] or pod.containers[:1]
    return pod.containers


def _says_http2(port: dict[str, Any]) -> bool:
    return "grpc" in port.get("name", "") or "h2c" in port.get("name", "")


def _listens(container: dict[str, Any]) -> set[str]:
    """The ports that it declares or is told; a transformer of KServe's kind that is told nothing takes 8080."""
    found = {str(number(container, flag)) for flag in _FLAGS} - {"None"}
    found |= {str(port.get("containerPort")) for port in container.get("ports") or []}
    if container.get("name") == "transformer-container" and argument(container, "--http_port") is None:
        found |= {"8080"} if not container.get("ports") else set()
    return found
