"""Canaries: the two forms, and what keeps each from getting any traffic."""

from __future__ import annotations

from typing import Any

from kservekit.manifests.lint.case import Case, environment
from kservekit.manifests.lint.rule import ERROR, NOTE, WARNING, Found, rule
from kservekit.manifests.lint.rules_scaling import CLASS
from kservekit.manifests.pods import model_of

_FORBIDDEN = ("workerSpec", "maxReplicas", "scaleTarget", "scaleMetric", "autoScaling")


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
    for component in ("predictor", "transformer", "explainer"):
        if "canaryTrafficPercent" in (case.spec.get(component) or {}):
            yield (
                ("spec", component, "canaryTrafficPercent"),
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
    "KSV604",
    ERROR,
    "percentages that cannot be",
    why="The webhook refuses a share outside 0 to 100, and shares of more than 100 in all.",
    mend="The stable predictor gets what is left of 100.",
    source="v1beta1/inference_service_validation.go:183",
    modes=("Standard",),
    since="0.21",
    example="""
   predictor:
     name: now
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/1}
   canary:
     - trafficPercent: 60
       predictor: {name: next, model: {name: kserve-container, modelFormat: {name: sklearn}, storageUri: s3://models/2}}
-    - trafficPercent: 50
+    - trafficPercent: 40
       predictor: {name: after, model: {name: kserve-container, modelFormat: {name: sklearn}, storageUri: s3://models/3}}
""",
)
def percentages_can_be(case: Case) -> Found:
    shares = [item.get("trafficPercent", 0) for item in _canaries(case)]
    if sum(shares) > 100:
        yield ("spec", "canary"), "asks for more than 100 percent in all"
    for number, share in enumerate(shares):
        if share < 0:
            yield ("spec", "canary", number, "trafficPercent"), f"is {share}: expected 0 to 100"


@rule(
    "KSV605",
    ERROR,
    "a canary without a name of its own",
    why="Each canary's predictor needs a name, and it must differ from the others' and from the stable one's: "
    "Deployments are called by it.",
    mend="predictor.name.",
    source="v1beta1/inference_service_validation.go:183",
    modes=("Standard",),
    since="0.21",
    example="""
   predictor:
     name: now
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/1}
   canary:
     - trafficPercent: 10
-      predictor: {name: now, model: {name: kserve-container, modelFormat: {name: sklearn}, storageUri: s3://models/2}}
+      predictor: {name: next, model: {name: kserve-container, modelFormat: {name: sklearn}, storageUri: s3://models/2}}
""",
)
def canaries_have_names(case: Case) -> Found:
    names = [(item.get("predictor") or {}).get("name") for item in _canaries(case)]
    if names and (None in names or len({*names, case.predictor.get("name")}) <= len(names)):
        yield ("spec", "canary"), "each predictor needs a name of its own, the stable one included"


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
    "KSV607",
    ERROR,
    "a field that a canary must not have",
    why="The webhook refuses workerSpec, maxReplicas, scaleTarget, scaleMetric and autoScaling in a canary: it has "
    "minReplicas or its share of the stable one's.",
    mend="Take it away, or give minReplicas.",
    source="v1beta1/inference_service_validation.go:183",
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
-        maxReplicas: 2
+        minReplicas: 1
         model: {name: kserve-container, modelFormat: {name: sklearn}, storageUri: s3://models/2}
""",
)
def canaries_do_not_scale(case: Case) -> Found:
    for number, item in enumerate(_canaries(case)):
        for field in _FORBIDDEN:
            if field in (item.get("predictor") or {}):
                yield ("spec", "canary", number, "predictor", field), "KServe refuses it in a canary"


@rule(
    "KSV608",
    ERROR,
    "a canary with more replicas than the stable predictor",
    why="The webhook refuses it.",
    mend="minReplicas up to the stable predictor's.",
    source="v1beta1/inference_service_validation.go:183",
    modes=("Standard",),
    since="0.21",
    example="""
   predictor:
     name: now
     minReplicas: 2
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/1}
   canary:
     - trafficPercent: 10
       predictor:
         name: next
-        minReplicas: 3
+        minReplicas: 1
         model: {name: kserve-container, modelFormat: {name: sklearn}, storageUri: s3://models/2}
""",
)
def canary_is_the_smaller(case: Case) -> Found:
    stable = case.predictor.get("minReplicas", 1)
    for number, item in enumerate(_canaries(case)):
        wanted = (item.get("predictor") or {}).get("minReplicas", 0)
        if wanted > stable:
            place = ("spec", "canary", number, "predictor", "minReplicas")
            yield place, f"is {wanted}, above the stable predictor's {stable}: KServe refuses it"


@rule(
    "KSV609",
    ERROR,
    "a canary beside a custom predictor without a model",
    why="The webhook wants a stable predictor with model, or with STORAGE_URI on its container.",
    mend="STORAGE_URI on kserve-container, or two InferenceServices.",
    source="v1beta1/inference_service_validation.go:183",
    modes=("Standard",),
    since="0.21",
    example="""
   predictor:
     name: now
     containers:
       - name: kserve-container
         image: example.com/photo:1
+        env: [{name: STORAGE_URI, value: s3://models/photo/1}]
   canary:
     - trafficPercent: 10
       predictor: {name: next, containers: [{name: kserve-container, image: example.com/photo:2}]}
""",
)
def stable_has_a_model(case: Case) -> Found:
    if _canaries(case) and not model_of(case.predictor)[0]:
        containers = case.predictor.get("containers") or []
        if containers and not any("STORAGE_URI" in environment(container) for container in containers):
            yield ("spec", "predictor"), "has no model and no STORAGE_URI: KServe refuses spec.canary beside it"


@rule(
    "KSV610",
    WARNING,
    "a dark launch without a pod",
    why="At 0 percent a canary has the share's replicas, which is none with autoscalerClass none: it never becomes "
    "ready.",
    mend="minReplicas: 1 in the canary.",
    source="comp/predictor.go:861",
    modes=("Standard",),
    since="0.21",
    example="""
 apiVersion: serving.kserve.io/v1beta1
 kind: InferenceService
 metadata:
   name: photo
   annotations:
     serving.kserve.io/deploymentMode: Standard
     serving.kserve.io/autoscalerClass: none
 spec:
   predictor:
     name: now
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/1}
   canary:
     - trafficPercent: 0
       predictor:
         name: next
+        minReplicas: 1
         model: {name: kserve-container, modelFormat: {name: sklearn}, storageUri: s3://models/2}
""",
)
def dark_launch_has_a_pod(case: Case) -> Found:
    for number, item in enumerate(_canaries(case)):
        is_dark = item.get("trafficPercent") == 0 and not (item.get("predictor") or {}).get("minReplicas")
        if is_dark and case.annotations.get(CLASS) == "none":
            yield ("spec", "canary", number), "is at 0 percent and gets no pod: give it minReplicas: 1"


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
    for number, item in enumerate(_canaries(case)):
        if (item.get("predictor") or {}).get("storageUris"):
            place = ("spec", "canary", number, "predictor", "storageUris")
            yield place, "is not handed to the canary's pods: use model.storageUri"


@rule(
    "KSV612",
    NOTE,
    "a canary that cannot be promoted by its name",
    why="A canary is promoted by giving the stable predictor its name, and the webhook takes that with another "
    "storageUri alone. One that differs in image or settings has to be promoted by a rollout.",
    mend="Another storageUri (a folder a version), or plan to roll the stable predictor out.",
    source="v1beta1/inference_service_validation.go:703",
    modes=("Standard",),
    since="0.21",
    example="""
   predictor:
     name: now
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/1}
   canary:
     - trafficPercent: 10
-      predictor: {name: next, model: {name: kserve-container, modelFormat: {name: sklearn}, runtimeVersion: v2}}
+      predictor: {name: next, model: {name: kserve-container, modelFormat: {name: sklearn}, storageUri: s3://models/2}}
""",
)
def canary_can_be_promoted(case: Case) -> Found:
    stable = case.model.get("storageUri")
    for number, item in enumerate(_canaries(case)):
        predictor = item.get("predictor") or {}
        own = model_of(predictor)[1].get("storageUri", stable)
        if stable and own == stable and not predictor.get("storageUris"):
            yield ("spec", "canary", number), "has the stable predictor's storageUri: it cannot be promoted by its name"


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
    if _canaries(case) and case.around.setting("ingress").get("enableGatewayApi") is False:
        yield ("spec", "canary"), "KServe's ConfigMap has enableGatewayApi off, and an Ingress splits nothing"


def _canaries(case: Case) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = case.spec.get("canary") or []
    return found
