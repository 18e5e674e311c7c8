"""InferenceGraphs: nodes, and the steps between them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from kservekit.manifests.lint.case import Case, namespace
from kservekit.manifests.lint.rule import ERROR, WARNING, Found, rule
from kservekit.manifests.pods import name
from kservekit.manifests.schema import Place

GRAPH = ("InferenceGraph",)

TARGETS = ("serviceName", "serviceUrl", "nodeName")


def example(nodes: str) -> str:
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
    example=example("""
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
    example=example("""
     root:
       routerType: Sequence
       steps:
-        - {serviceName: photo, serviceUrl: "http://photo.team"}
+        - {serviceName: photo}
"""),
)
def steps_have_a_target(case: Case) -> Found:
    for _, place, step in steps(case):
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
    example=example("""
     root:
       routerType: Splitter
       steps:
         - {serviceName: photo-a, weight: 80}
-        - {serviceName: photo-b, weight: 10}
+        - {serviceName: photo-b, weight: 20}
"""),
)
def weights_are_a_hundred(case: Case) -> Found:
    for key, node in nodes(case).items():
        steps = node.get("steps") or []
        if node.get("routerType") == "Splitter" and steps:
            found = [step.get("weight") for step in steps]
            if None in found:
                yield ("spec", "nodes", key, "steps", found.index(None)), "has no weight, which a Splitter needs"
            elif sum(found) != 100:
                yield ("spec", "nodes", key, "steps"), f"has weights of {sum(found)} in all: expected 100"


@rule(
    "KSV705",
    ERROR,
    "a node that is not there, or that comes back to itself",
    why="A step's nodeName is another key of spec.nodes. The router looks it up at each request, and a circle never "
    "ends.",
    mend="The name of a node further on.",
    source="cmd/router/main.go",
    kinds=GRAPH,
    example=example("""
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
    there = nodes(case)
    for _, place, step in steps(case):
        called = step.get("nodeName")
        if called and called not in there:
            close = difflib.get_close_matches(called, there, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            yield (*place, "nodeName"), f"is {called!r}, and there is no such node{hint}"
        elif called and called in _reached(called, there):
            yield (*place, "nodeName"), f"goes to {called!r}, from which it comes back: the request never ends"


@rule(
    "KSV706",
    ERROR,
    "two steps of one name",
    why="Names of steps are unique in a node: the webhook refuses two, and an Ensemble's answer has one key for both.",
    mend="Another name.",
    source="v1alpha1/inference_graph_validation.go",
    kinds=GRAPH,
    example=example("""
     root:
       routerType: Ensemble
       steps:
         - {name: first, serviceName: photo-a}
-        - {name: first, serviceName: photo-b}
+        - {name: second, serviceName: photo-b}
"""),
)
def steps_have_names_of_their_own(case: Case) -> Found:
    for key, node in nodes(case).items():
        seen: set[str] = set()
        for number, step in enumerate(node.get("steps") or []):
            if step.get("name") in seen:
                yield ("spec", "nodes", key, "steps", number, "name"), f"is {step['name']!r} for the second time"
            seen |= {step["name"]} if "name" in step else set()


@rule(
    "KSV709",
    WARNING,
    "a graph's step to a service that is not among these, and nearly is",
    why="serviceName is an InferenceService of the same namespace, and not another graph; with a slip the first "
    "request is answered with 500.",
    mend="Take the name that is offered; a graph is a serviceUrl, or a node of this one.",
    source="pkg/controller/v1alpha1/inferencegraph/controller.go, website#433",
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
    graphs = [name(found) for found in case.around.of("InferenceGraph") if _same_space(case, namespace(found))]
    for _, place, step in steps(case):
        called = step.get("serviceName")
        if called in graphs and called not in services:
            yield (*place, "serviceName"), f"is {called!r}, an InferenceGraph: give its serviceUrl"
        elif called and called not in services:
            close = difflib.get_close_matches(called, services, n=1, cutoff=0.85)
            if close:
                yield (*place, "serviceName"), f"is {called!r}, which is not among these; did you mean {close[0]}?"


def nodes(case: Case) -> dict[str, dict[str, Any]]:
    return case.spec.get("nodes") or {}


def steps(case: Case) -> Iterator[tuple[dict[str, Any], Place, dict[str, Any]]]:
    """The node of each, its place, and what is written there."""
    for key, node in nodes(case).items():
        for number, step in enumerate(node.get("steps") or []):
            yield node, ("spec", "nodes", key, "steps", number), step


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
