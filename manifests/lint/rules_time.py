"""Time-outs that nest, and pods that finish what they have begun."""

from __future__ import annotations

import re
from typing import Any

from kservekit.manifests.lint.case import Case, flag_place, number
from kservekit.manifests.lint.rule import NOTE, WARNING, Found, rule
from kservekit.manifests.pods import is_ours

DEFAULT_TIMEOUT_S = {"Standard": 60, "Knative": 300}
"""Of a component that says none: KServe's HTTPRoute, and Knative's revision."""

GRACE_S = 30
"""Kubernetes' own."""


@rule(
    "KSV401",
    WARNING,
    "a predictor's time-out that is longer than its transformer's",
    why="The caller's time-out is the transformer's: when it is over, a predictor that may go on works for nobody, "
    "and callers who retry double the load. Without timeout, a route in Standard mode has 60 s, Knative's revision "
    "300.",
    mend="Predictor's timeout up to the transformer's, and the route's above both.",
    source="rec/ingress/httproute_reconciler.go, #1663",
    modes=("Standard", "Knative"),
    example="""
   predictor:
-    timeout: 120
+    timeout: 50
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
   transformer:
     timeout: 60
     containers:
       - name: kserve-container
         image: example.com/photo:1
""",
)
def timeouts_nest(case: Case) -> Found:
    if not case.spec.get("transformer") or "timeout" not in case.predictor or case.mode not in DEFAULT_TIMEOUT_S:
        return
    outer, inner = case.spec["transformer"].get("timeout"), case.predictor["timeout"]
    limit = outer if outer is not None else DEFAULT_TIMEOUT_S[case.mode]
    if inner > limit:
        said = "is" if outer is not None else f"says nothing, which in {case.mode} mode is"
        yield (
            ("spec", "predictor", "timeout"),
            f"is {inner} s, and the transformer's {said} {limit}: it must be shorter",
        )


@rule(
    "KSV402",
    WARNING,
    "a transformer that waits longer for its predictor than its caller does for it",
    why="--predictor_request_timeout_seconds is one of several time-outs in a row; one that is longer than the "
    "component's own timeout never comes to pass, and the caller gets the route's 504 without a reason.",
    mend="Shorter than timeout.",
    source="python/kserve/kserve/model_server.py, #1129",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
   transformer:
     timeout: 60
     containers:
       - name: kserve-container
         image: example.com/photo:1
-        args: [--predictor_request_timeout_seconds=300]
+        args: [--predictor_request_timeout_seconds=50]
""",
)
def client_gives_up_first(case: Case) -> Found:
    for pod, container, place in case.transformers():
        waits = number(container, "--predictor_request_timeout_seconds")
        limit = pod.spec.get("timeout", DEFAULT_TIMEOUT_S.get(case.mode))
        if waits is not None and limit is not None and waits > limit:
            what = f"waits {waits} s for the predictor, and its own callers wait {limit}"
            yield flag_place(container, place, "--predictor_request_timeout_seconds"), what


@rule(
    "KSV403",
    WARNING,
    "a grace period shorter than the drain",
    why="At SIGTERM a pod has terminationGracePeriodSeconds (30 where nothing is said) for preStop and for the "
    "requests under way; then it is killed, and they are cut off.",
    mend="At least preStop's sleep and the longest request (timeout, --exit-timeout-secs) together.",
    source="python/kserve/kserve/model_server.py, #3360, #5485",
    modes=("Standard",),
    example="""
   predictor:
     timeout: 60
-    terminationGracePeriodSeconds: 30
+    terminationGracePeriodSeconds: 75
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def grace_is_longer_than_the_drain(case: Case) -> Found:
    for pod in case.pods:
        field = "terminationGracePeriodSeconds"
        grace, is_said = pod.spec.get(field, GRACE_S), field in pod.spec
        place = (*pod.place, field) if is_said else pod.place
        shown = f"{field} is {grace if is_said else 'not set, which is 30'}"
        for container in pod.containers:
            sleep = _sleep(container)
            drains = sleep + (number(container, "--exit-timeout-secs") or 0)
            if drains > grace:
                yield place, f"{shown}: {container.get('name')} sleeps and drains for {drains:g} s before it is done"
                break
        else:
            if pod.spec.get("timeout", 0) > grace:
                what = f"{shown}: a request may take {pod.spec['timeout']} s (timeout), and is cut off when a pod goes"
                yield place, what


@rule(
    "KSV404",
    NOTE,
    "a server that stops listening at once",
    why="KServe's server closes its port at SIGTERM, while the Service still sends requests to it for a few seconds; "
    "these are refused. Knative's proxy hides it, Standard mode does not.",
    mend="lifecycle.preStop with a sleep of 5 to 15 seconds, and a grace period that has room for it.",
    source="python/kserve/kserve/model_server.py, website#726",
    modes=("Standard",),
    example="""
   predictor:
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
   transformer:
     containers:
       - name: kserve-container
         image: example.com/photo:1
+        lifecycle: {preStop: {exec: {command: [sleep, "10"]}}}
""",
)
def server_waits_before_it_stops(case: Case) -> Found:
    for _, container, place in case.transformers():
        has = "preStop" in (container.get("lifecycle") or {})
        if container.get("image") and not has and not is_ours(container):
            yield place, "has no preStop: KServe's server stops listening before the Service knows"


@rule(
    "KSV405",
    WARNING,
    "a router's time-outs that do not nest",
    why="A graph's router writes no answer after serverWrite (180 s where nothing is said), however long "
    "serviceClient lets a step take.",
    mend="serviceClient shorter than serverWrite.",
    source="cmd/router/main.go",
    kinds=("InferenceGraph",),
    example="""
 apiVersion: serving.kserve.io/v1alpha1
 kind: InferenceGraph
 metadata: {name: chain}
 spec:
-  routerTimeouts: {serverWrite: 60, serviceClient: 120}
+  routerTimeouts: {serverWrite: 60, serviceClient: 50}
   nodes:
     root:
       routerType: Sequence
       steps: [{serviceName: photo}]
""",
)
def router_times_nest(case: Case) -> Found:
    times = case.spec.get("routerTimeouts") or {}
    client, write = times.get("serviceClient"), times.get("serverWrite", 180)
    if client is not None and client > write:
        yield ("spec", "routerTimeouts", "serviceClient"), f"is {client} s, and the router writes for {write} s alone"


def _sleep(container: dict[str, Any]) -> float:
    """The seconds of a preStop hook that sleeps."""
    hook = (container.get("lifecycle") or {}).get("preStop") or {}
    if "sleep" in hook:
        return float((hook["sleep"] or {}).get("seconds", 0))
    command = " ".join(str(word) for word in (hook.get("exec") or {}).get("command") or [])
    found = re.search(r"\bsleep\s+(\d{1,6})(?:s|\b)", command)
    return float(found.group(1)) if found else 0.0
