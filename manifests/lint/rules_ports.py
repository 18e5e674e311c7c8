"""Ports and their names: what KServe's Service and Knative make of them."""

from __future__ import annotations

from typing import Any

from kservekit.manifests.lint.case import SERVERS_FLAGS, TRITON_PORTS, V2_FORMATS, Case, format_of, number
from kservekit.manifests.lint.rule import ERROR, WARNING, Found, rule
from kservekit.manifests.pods import Pod, argument

FLAGS = ("--http_port", "--grpc_port", "--http-port", "--grpc-port", "--metrics-port")


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
            is_http2 = [says_http2(port) for port in container.get("ports") or []]
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
                if grpc == listens and not says_http2(port):
                    yield place, f"port {grpc} speaks gRPC, so its name must have grpc in it: it decides"
                if rest == listens and says_http2(port):
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
            for port in sorted(listens(container) if not case.is_in_part(container) else ()):
                if port in taken:
                    yield pod.place_of(container), f"{taken[port]} and {container.get('name')} both listen on {port}"
                taken.setdefault(port, str(container.get("name")))


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


def says_http2(port: dict[str, Any]) -> bool:
    return "grpc" in port.get("name", "") or "h2c" in port.get("name", "")


def listens(container: dict[str, Any]) -> set[str]:
    """The ports that it declares or is told; KServe's server, known by its flags, has 8080 and 8081 where none says."""
    found = {str(number(container, flag)) for flag in FLAGS} - {"None"}
    found |= {str(port.get("containerPort")) for port in container.get("ports") or []}
    if container.get("name") == "transformer-container" and argument(container, "--http_port") is None:
        found |= {"8080"} if not container.get("ports") else set()
    if any(argument(container, flag) is not None for flag in SERVERS_FLAGS):
        found |= {"8080"} if argument(container, "--http_port") is None else set()
        has_grpc = str(argument(container, "--enable_grpc")).lower() != "false"
        found |= {"8081"} if has_grpc and argument(container, "--grpc_port") is None else set()
    return found
