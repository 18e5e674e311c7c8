"""What the router of an InferenceGraph does with a step."""

from __future__ import annotations

import re

from kservekit.manifests.lint.case import Case
from kservekit.manifests.lint.rule import WARNING, Found, rule
from kservekit.manifests.lint.rules_graph import GRAPH, example, steps
from kservekit.manifests.lint.rules_ports import says_http2
from kservekit.manifests.pods import model_of


@rule(
    "KSV704",
    WARNING,
    "a Switch's step without a condition",
    why="A step is taken where its condition matches the request's body; without a condition nothing matches, so it "
    "is no default, and the router answers 404.",
    mend='A condition; "@this" matches every body.',
    source="cmd/router/main.go (pickupRouteByCondition)",
    kinds=GRAPH,
    example=example("""
     root:
       routerType: Switch
       steps:
         - {serviceName: photo-a, condition: "instances.#(kind==1)"}
-        - {serviceName: photo-b}
+        - {serviceName: photo-b, condition: "@this"}
"""),
)
def switches_have_conditions(case: Case) -> Found:
    for node, place, step in steps(case):
        if node.get("routerType") == "Switch" and not step.get("condition"):
            yield place, 'has no condition, so it is never taken: "@this" matches every request'


@rule(
    "KSV707",
    WARNING,
    "a step's field that its router ignores",
    why="weight is a Splitter's alone; a Splitter and an Ensemble look at no condition; data is a Sequence's.",
    mend="Take it away, or choose the routerType that reads it.",
    source="cmd/router/main.go",
    kinds=GRAPH,
    example=example("""
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
    for node, place, step in steps(case):
        for field in ignored.get(str(node.get("routerType")), ()):
            if field in step:
                yield (*place, field), f"is ignored: {node['routerType']} does not look at it"


@rule(
    "KSV708",
    WARNING,
    "data that is neither $request nor $response",
    why="The router compares the word; anything else counts as the request, without a word.",
    mend="$response for the step before's answer, $request for what the caller sent.",
    source="cmd/router/main.go",
    kinds=GRAPH,
    example=example("""
     root:
       routerType: Sequence
       steps:
         - {serviceName: detect}
-        - {serviceName: photo, data: response}
+        - {serviceName: photo, data: $response}
"""),
)
def data_is_known(case: Case) -> Found:
    for node, place, step in steps(case):
        if node.get("routerType") == "Sequence" and step.get("data") not in (None, "", "$request", "$response"):
            yield (*place, "data"), f"is {str(step['data'])[:40]!r}: expected $request or $response"


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
    for _, place, step in steps(case):
        service = case.around.get("InferenceService", str(step.get("serviceName")), case.namespace)
        spec = (service or {}).get("spec") or {}
        entrance = spec.get("transformer") or spec.get("predictor") or {}
        parts = [model_of(entrance)[1], *(entrance.get("containers") or [])[:1]]
        ports = [port for part in parts for port in part.get("ports") or []]
        if ports and all(map(says_http2, ports)):
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


@rule(
    "KSV712",
    WARNING,
    "a condition that is no GJSON",
    why="Conditions are GJSON paths into the request's body, and a path that exists is true. Braces make an object "
    "there, which always exists: JSONPath and templates are never compared, so the first step gets every request. "
    "The word true is a path, too, which no body has: the graph ends before that step.",
    mend='"instances.#(kind==1)", or "[@this].#(kind==1)" for a field of the body itself.',
    source="cmd/router/main.go (pickupRouteByCondition), docs/samples/graph, #4172",
    kinds=GRAPH,
    example=example("""
     root:
       routerType: Switch
       steps:
-        - {serviceName: photo-a, condition: "{ .kind == 1 }"}
+        - {serviceName: photo-a, condition: "[@this].#(kind==1)"}
"""),
)
def conditions_are_gjson(case: Case) -> Found:
    for _, place, step in steps(case):
        condition = str(step.get("condition", "")).strip()
        if condition.startswith("{"):
            yield (*place, "condition"), "is JSONPath or a template, not GJSON: in braces it is always true"
        elif condition in ("true", "false"):
            yield (*place, "condition"), f"is a path: true only of a body that has a field called {condition}"
