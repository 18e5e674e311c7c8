"""InferenceGraphs: what the router does with nodes and steps."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

from kservekit.manifests.lint.case import Case, namespace
from kservekit.manifests.lint.rule import ERROR, WARNING, Found, rule
from kservekit.manifests.pods import name
from kservekit.manifests.schema import Place

GRAPH = ("InferenceGraph",)
TARGETS = ("serviceName", "serviceUrl", "nodeName")


def _example(nodes: str) -> str:
    head = (
        " apiVersion: serving.kserve.io/v1alpha1",
        " kind: InferenceGraph",
        " metadata: {name: chain}",
        " spec:",
        "   nodes:",
    )
    return "\n".join([*head, nodes.strip("\n")])


@rule(
    "KSV701",
    ERROR,
    "a graph without root",
    why="The router begins at the node called root; the webhook refuses a graph without one.",
    mend="Call the first node root.",
    source="v1alpha1/inference_graph_validation.go",
    kinds=GRAPH,
    example=_example("""
-    start:
+    root:
       routerType: Sequence
       steps: [{serviceName: photo}]
"""),
)
def has_a_root(case: Case) -> Found:
    if "nodes" in case.spec and "root" not in case.spec["nodes"]:
        yield ("spec", "nodes"), f"has no node called root: {', '.join(sorted(case.spec['nodes'])) or 'there are none'}"


@rule(
    "KSV702",
    ERROR,
    "a step with no target, or with two",
    why="A step goes to a serviceName, a serviceUrl or a nodeName: the webhook refuses none and two.",
    mend="Exactly one of the three.",
    source="v1alpha1/inference_graph_validation.go",
    kinds=GRAPH,
    example=_example("""
     root:
       routerType: Sequence
       steps:
-        - {serviceName: photo, serviceUrl: "http://photo.team"}
+        - {serviceName: photo}
"""),
)
def steps_have_a_target(case: Case) -> Found:
    for _, _, place, step in _steps(case):
        having = [key for key in TARGETS if step.get(key)]
        if len(having) != 1:
            yield place, f"goes to {' and '.join(having) or 'nothing'}: expected one of {', '.join(TARGETS)}"


@rule(
    "KSV703",
    ERROR,
    "a Splitter whose weights are not 100",
    why="The webhook wants a weight in each step, and 100 in all.",
    mend="Make them 100.",
    source="v1alpha1/inference_graph_validation.go",
    kinds=GRAPH,
    example=_example("""
     root:
       routerType: Splitter
       steps:
         - {serviceName: photo-a, weight: 80}
-        - {serviceName: photo-b, weight: 10}
+        - {serviceName: photo-b, weight: 20}
"""),
)
def weights_are_a_hundred(case: Case) -> Found:
    for key, node in _nodes(case):
        steps = node.get("steps") or []
        if node.get("routerType") == "Splitter" and steps:
            found = [step.get("weight") for step in steps]
            if None in found:
                yield ("spec", "nodes", key, "steps", found.index(None)), "has no weight, which a Splitter needs"
            elif sum(found) != 100:
                yield ("spec", "nodes", key, "steps"), f"has weights of {sum(found)} in all: expected 100"


@rule(
    "KSV704",
    WARNING,
    "a Switch's step without a condition",
    why="A step is taken where its condition matches the request's body; without a condition nothing matches, so it "
    "is no default, and the router answers 404.",
    mend='A condition; "@this" matches every body.',
    source="cmd/router/main.go (pickupRouteByCondition)",
    kinds=GRAPH,
    example=_example("""
     root:
       routerType: Switch
       steps:
         - {serviceName: photo-a, condition: "instances.#(kind==1)"}
-        - {serviceName: photo-b}
+        - {serviceName: photo-b, condition: "@this"}
"""),
)
def switches_have_conditions(case: Case) -> Found:
    for _, node, place, step in _steps(case):
        if node.get("routerType") == "Switch" and not step.get("condition"):
            yield place, 'has no condition, so it is never taken: "@this" matches every request'


@rule(
    "KSV705",
    ERROR,
    "a node that is not there, or that comes back to itself",
    why="A step's nodeName is another key of spec.nodes. The router looks it up at each request, and a circle never "
    "ends.",
    mend="The name of a node further on.",
    source="cmd/router/main.go",
    kinds=GRAPH,
    example=_example("""
     root:
       routerType: Sequence
       steps:
-        - {nodeName: clasify}
+        - {nodeName: classify}
     classify:
       routerType: Switch
       steps: [{serviceName: photo, condition: "@this"}]
"""),
)
def nodes_are_there(case: Case) -> Found:
    nodes = dict(_nodes(case))
    for _, _, place, step in _steps(case):
        called = step.get("nodeName")
        if called and called not in nodes:
            close = difflib.get_close_matches(called, nodes, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            yield (*place, "nodeName"), f"is {called!r}, and there is no such node{hint}"
        elif called and called in _reached(called, nodes):
            yield (*place, "nodeName"), f"goes to {called!r}, from which it comes back: the request never ends"


@rule(
    "KSV706",
    ERROR,
    "two steps of one name",
    why="Names of steps are unique in a node: the webhook refuses two, and an Ensemble's answer has one key for both.",
    mend="Another name.",
    source="v1alpha1/inference_graph_validation.go",
    kinds=GRAPH,
    example=_example("""
     root:
       routerType: Ensemble
       steps:
         - {name: first, serviceName: photo-a}
-        - {name: first, serviceName: photo-b}
+        - {name: second, serviceName: photo-b}
"""),
)
def steps_have_names_of_their_own(case: Case) -> Found:
    for key, node in _nodes(case):
        seen: set[str] = set()
        for number, step in enumerate(node.get("steps") or []):
            if step.get("name") in seen:
                yield ("spec", "nodes", key, "steps", number, "name"), f"is {step['name']!r} for the second time"
            seen |= {step["name"]} if "name" in step else set()


@rule(
    "KSV707",
    WARNING,
    "a step's field that its router ignores",
    why="weight is a Splitter's alone; a Splitter and an Ensemble look at no condition; data is a Sequence's.",
    mend="Take it away, or choose the routerType that reads it.",
    source="cmd/router/main.go",
    kinds=GRAPH,
    example=_example("""
     root:
-      routerType: Sequence
+      routerType: Splitter
       steps:
         - {serviceName: photo-a, weight: 50}
         - {serviceName: photo-b, weight: 50}
"""),
)
def fields_are_read(case: Case) -> Found:
    ignored = {
        "Sequence": ("weight",),
        "Switch": ("weight", "data"),
        "Splitter": ("condition", "data"),
        "Ensemble": ("weight", "condition", "data"),
    }
    for _, node, place, step in _steps(case):
        for field in ignored.get(str(node.get("routerType")), ()):
            if field in step:
                yield (*place, field), f"is ignored in a {node['routerType']}"


@rule(
    "KSV708",
    WARNING,
    "data that is neither $request nor $response",
    why="The router compares the word; anything else counts as the request, without a word.",
    mend="$response for the step before's answer, $request for what the caller sent.",
    source="cmd/router/main.go",
    kinds=GRAPH,
    example=_example("""
     root:
       routerType: Sequence
       steps:
         - {serviceName: detect}
-        - {serviceName: photo, data: response}
+        - {serviceName: photo, data: $response}
"""),
)
def data_is_known(case: Case) -> Found:
    for _, node, place, step in _steps(case):
        if node.get("routerType") == "Sequence" and step.get("data") not in (None, "", "$request", "$response"):
            yield (*place, "data"), f"is {str(step['data'])[:40]!r}: expected $request or $response"


@rule(
    "KSV709",
    WARNING,
    "a graph's step to a service that is not among these, and nearly is",
    why="serviceName is an InferenceService of the same namespace; a slip answers 500 at the first request.",
    mend="Take the name that is offered.",
    source="pkg/controller/v1alpha1/inferencegraph/controller.go",
    kinds=GRAPH,
    example="""
 apiVersion: serving.kserve.io/v1alpha1
 kind: InferenceGraph
 metadata: {name: chain}
 spec:
   nodes:
     root:
       routerType: Sequence
-      steps: [{serviceName: photoo}]
+      steps: [{serviceName: photo}]
 ---
 apiVersion: serving.kserve.io/v1beta1
 kind: InferenceService
 metadata: {name: photo, annotations: {serving.kserve.io/deploymentMode: Standard}}
 spec:
   predictor:
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def services_are_there(case: Case) -> Found:
    services = [name(found) for found in case.around.of("InferenceService") if _same_space(case, namespace(found))]
    for _, _, place, step in _steps(case):
        called = step.get("serviceName")
        if called and called not in services:
            close = difflib.get_close_matches(called, services, n=1, cutoff=0.85)
            if close:
                yield (*place, "serviceName"), f"is {called!r}, which is not among these; did you mean {close[0]}?"


@rule(
    "KSV710",
    WARNING,
    "a graph over a service that speaks gRPC",
    why="The router posts JSON over HTTP/1.1; a service whose port is h2c does not take that.",
    mend="A predictor with REST.",
    source="cmd/router/main.go, #2449",
    kinds=GRAPH,
    example="""
 apiVersion: serving.kserve.io/v1alpha1
 kind: InferenceGraph
 metadata: {name: chain}
 spec:
   nodes:
     root:
       routerType: Sequence
       steps: [{serviceName: photo}]
 ---
 apiVersion: serving.kserve.io/v1beta1
 kind: InferenceService
 metadata: {name: photo, annotations: {serving.kserve.io/deploymentMode: Standard}}
 spec:
   predictor:
     model:
       modelFormat: {name: triton}
       runtimeVersion: 25.08-py3
       storageUri: s3://models/photo
-      ports: [{name: h2c, containerPort: 9000, protocol: TCP}]
+      ports: [{name: http1, containerPort: 8080, protocol: TCP}]
""",
)
def steps_speak_rest(case: Case) -> Found:
    for _, _, place, step in _steps(case):
        service = case.around.get("InferenceService", str(step.get("serviceName")), case.namespace)
        spec = (service or {}).get("spec") or {}
        entrance = spec.get("transformer") or spec.get("predictor") or {}
        parts = [entrance.get(key) or {} for key in ("model", "triton")] + (entrance.get("containers") or [])[:1]
        ports = [port for part in parts if isinstance(part, dict) for port in part.get("ports") or []]
        if ports and all("h2c" in str(port.get("name")) or "grpc" in str(port.get("name")) for port in ports):
            yield place, f"goes to {step['serviceName']!r}, which has gRPC alone: the router posts JSON"


@rule(
    "KSV711",
    WARNING,
    "a header's pattern that is no regular expression",
    why="router.headers.propagate is a list of RE2 patterns; one that does not compile, such as *Trace-Id*, matches "
    "no header, and graphs lose it.",
    mend='".*Trace-Id.*", or the header\'s name.',
    source="cmd/router/main.go, config/configmap/inferenceservice.yaml",
    kinds=GRAPH,
    example="""
 apiVersion: v1
 kind: ConfigMap
 metadata: {name: inferenceservice-config, namespace: kserve}
 data:
-  router: '{"headers": {"propagate": ["*Trace-Id*"]}}'
+  router: '{"headers": {"propagate": ["X-Trace-Id"]}}'
 ---
 apiVersion: serving.kserve.io/v1alpha1
 kind: InferenceGraph
 metadata: {name: chain}
 spec:
   nodes:
     root:
       routerType: Sequence
       steps: [{serviceName: photo}]
""",
)
def header_patterns_compile(case: Case) -> Found:
    headers = case.around.setting("router").get("headers")
    for pattern in (headers.get("propagate") if isinstance(headers, dict) else None) or []:
        try:
            re.compile(str(pattern))
        except re.error:
            what = f"loses headers: router.headers.propagate has {str(pattern)[:40]!r}, which is no regular expression"
            yield (), what


def _nodes(case: Case) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from ((key, node) for key, node in (case.spec.get("nodes") or {}).items())


def _steps(case: Case) -> Iterator[tuple[str, dict[str, Any], Place, dict[str, Any]]]:
    for key, node in _nodes(case):
        for number, step in enumerate(node.get("steps") or []):
            yield key, node, ("spec", "nodes", key, "steps", number), step


def _reached(start: str, nodes: dict[str, dict[str, Any]]) -> set[str]:
    """The nodes that are reached from one."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        for step in (nodes.get(waiting.pop()) or {}).get("steps") or []:
            called = step.get("nodeName")
            if called and called not in reached:
                reached.add(called)
                waiting.append(called)
    return reached


def _same_space(case: Case, other: str) -> bool:
    return not case.namespace or not other or case.namespace == other
