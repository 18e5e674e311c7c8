"""Canaries: the two forms, and what keeps each from getting any traffic."""

from __future__ import annotations

from typing import Any

from kservekit.manifests.lint.case import Case
from kservekit.manifests.lint.rule import ERROR, WARNING, Found, rule
from kservekit.manifests.schema import Place


@rule(
    "KSV601",
    WARNING,
    "canaryTrafficPercent in Standard mode",
    why="Knative splits by revisions; Standard mode has none, ignores the field and rolls everything out at once.",
    mend="spec.canary (KServe 0.20 and later), or two InferenceServices and a route.",
    source="v1beta1/inference_service_validation.go, #5335",
    modes=("Standard",),
    since="0.18",
    example="""
   predictor:
-    canaryTrafficPercent: 10
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def percent_is_knatives(case: Case) -> Found:
    for pod in case.pods:
        if "canaryTrafficPercent" in pod.spec:
            yield (
                (*pod.place, "canaryTrafficPercent"),
                "Standard mode ignores it: use spec.canary (KServe 0.20), or two InferenceServices and a route",
            )


@rule(
    "KSV602",
    ERROR,
    "spec.canary in Knative",
    why="The webhook takes spec.canary in Standard mode alone.",
    mend="canaryTrafficPercent on the component.",
    source="v1beta1/inference_service_validation.go:183",
    modes=("Knative",),
    since="0.20",
    example="""
   predictor:
+    canaryTrafficPercent: 10
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/2}
-  canary:
-    - trafficPercent: 10
-      predictor: {name: next, model: {name: kserve-container, modelFormat: {name: sklearn}, storageUri: s3://models/3}}
""",
)
def spec_is_standards(case: Case) -> Found:
    if case.spec.get("canary"):
        yield ("spec", "canary"), "is for Standard mode alone: Knative has canaryTrafficPercent"


@rule(
    "KSV603",
    WARNING,
    "a canary behind a separate transformer",
    why="The transformer calls the stable predictor's Service, so the canary gets no requests; where the route sends "
    "it its share, that goes past the transformer.",
    mend="The transformer in the predictor's pod (transformer-container), or two InferenceServices.",
    source="PR #5912, PR #5944",
    modes=("Standard",),
    since="0.21",
    example="""
   predictor:
     name: now
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/1}
   canary:
     - trafficPercent: 10
       predictor: {name: next, model: {name: kserve-container, modelFormat: {name: sklearn}, storageUri: s3://models/2}}
-  transformer:
-    containers:
-      - name: kserve-container
-        image: example.com/photo:1
-        lifecycle: {preStop: {exec: {command: [sleep, "10"]}}}
""",
)
def canary_is_reached(case: Case) -> Found:
    if case.spec.get("canary") and "transformer" in case.spec:
        yield (
            ("spec", "canary"),
            "a separate transformer calls the stable predictor, so the canary gets no traffic: use the component "
            "collocated, or two InferenceServices",
        )


@rule(
    "KSV606",
    WARNING,
    "spec.canary in 0.20",
    why="KServe 0.20.0 starts a canary's pods and splits no traffic: nothing in its routes mentions it. Weights came "
    "after.",
    mend="KServe 0.21 with the Gateway API; until then two InferenceServices and a route of your own.",
    source="the tag v0.20.0, PR #5912",
    modes=("Standard",),
    since="0.20",
    until="0.20",
    example="""
   predictor:
     name: now
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/1}
-  canary:
-    - trafficPercent: 10
-      predictor: {name: next, model: {name: kserve-container, modelFormat: {name: sklearn}, storageUri: s3://models/2}}
""",
)
def canary_is_split(case: Case) -> Found:
    if case.spec.get("canary"):
        yield ("spec", "canary"), "KServe 0.20 starts the canary and sends it nothing: 0.21 with the Gateway API does"


@rule(
    "KSV611",
    WARNING,
    "storageUris with a canary",
    why="The plural is not handed to a canary's Deployment: its pods start without a model.",
    mend="model.storageUri.",
    source="comp/predictor.go",
    modes=("Standard",),
    since="0.21",
    example="""
   predictor:
     name: now
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/1}
   canary:
     - trafficPercent: 10
       predictor:
         name: next
-        storageUris: [{uri: s3://models/photo/2, mountPath: /mnt/models}]
-        model: {name: kserve-container, modelFormat: {name: sklearn}}
+        model: {name: kserve-container, modelFormat: {name: sklearn}, storageUri: s3://models/2}
""",
)
def canary_gets_its_storage(case: Case) -> Found:
    for place, _, predictor in canaries(case):
        if predictor.get("storageUris"):
            yield (*place, "predictor", "storageUris"), "is not handed to the canary's pods: use model.storageUri"


@rule(
    "KSV613",
    WARNING,
    "canaries of two components that mix",
    why="Transformer and predictor split by themselves: an old transformer meets a new predictor, in any combination.",
    mend="One component at a time; or both in one pod.",
    source="#1669",
    modes=("Knative",),
    example="""
   predictor:
     canaryTrafficPercent: 10
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
   transformer:
-    canaryTrafficPercent: 10
     containers:
       - name: kserve-container
         image: example.com/photo:1
""",
)
def one_canary_at_a_time(case: Case) -> Found:
    having = [key for key in ("predictor", "transformer") if "canaryTrafficPercent" in (case.spec.get(key) or {})]
    if len(having) > 1:
        what = "splits apart from the predictor's: old and new meet in any combination"
        yield ("spec", "transformer", "canaryTrafficPercent"), what


@rule(
    "KSV614",
    WARNING,
    "spec.canary without the Gateway API",
    why="The weights of a canary are an HTTPRoute's. With ingress.enableGatewayApi off KServe makes an Ingress, which "
    "never splits.",
    mend="enableGatewayApi: true in KServe's ConfigMap, or two InferenceServices.",
    source="PR #5912, rec/ingress",
    modes=("Standard",),
    since="0.21",
    example="""
 apiVersion: v1
 kind: ConfigMap
 metadata: {name: inferenceservice-config, namespace: kserve}
 data:
-  ingress: '{"enableGatewayApi": false}'
+  ingress: '{"enableGatewayApi": true}'
 ---
 apiVersion: serving.kserve.io/v1beta1
 kind: InferenceService
 metadata: {name: photo, annotations: {serving.kserve.io/deploymentMode: Standard}}
 spec:
   predictor:
     name: now
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/1}
   canary:
     - trafficPercent: 10
       predictor:
         name: next
         model: {name: kserve-container, modelFormat: {name: sklearn}, storageUri: s3://models/2}
""",
)
def canary_has_a_gateway(case: Case) -> Found:
    if canaries(case) and case.around.setting("ingress").get("enableGatewayApi") is False:
        yield ("spec", "canary"), "KServe's ConfigMap has enableGatewayApi off, and an Ingress splits nothing"


def canaries(case: Case) -> list[tuple[Place, dict[str, Any], dict[str, Any]]]:
    """The place of each, what is written there, and its predictor."""
    return [
        (("spec", "canary", number), item, item.get("predictor") or {})
        for number, item in enumerate(case.spec.get("canary") or [])
    ]
