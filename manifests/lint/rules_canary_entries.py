"""The entries of spec.canary: names, shares, replicas, and how each is promoted."""

from __future__ import annotations

from kservekit.manifests.lint.case import Case, environment
from kservekit.manifests.lint.rule import ERROR, NOTE, WARNING, Found, rule
from kservekit.manifests.lint.rules_canary import canaries
from kservekit.manifests.pods import model_of

_FORBIDDEN = ("workerSpec", "maxReplicas", "scaleTarget", "scaleMetric", "autoScaling")


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
    shares = {place: item.get("trafficPercent", 0) for place, item, _ in canaries(case)}
    if sum(shares.values()) > 100:
        yield ("spec", "canary"), "asks for more than 100 percent in all"
    for place, share in shares.items():
        if share < 0:
            yield (*place, "trafficPercent"), f"is {share}: expected 0 to 100"


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
    names = [predictor.get("name") for _, _, predictor in canaries(case)]
    if names and (None in names or len({*names, case.predictor.get("name")}) <= len(names)):
        yield ("spec", "canary"), "each predictor needs a name of its own, the stable one included"


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
    for place, _, predictor in canaries(case):
        for field in _FORBIDDEN:
            if field in predictor:
                yield (*place, "predictor", field), "KServe refuses it in a canary"


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
    for place, _, predictor in canaries(case):
        wanted = predictor.get("minReplicas", 0)
        if wanted > stable:
            what = f"is {wanted}, above the stable predictor's {stable}: KServe refuses it"
            yield (*place, "predictor", "minReplicas"), what


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
    if canaries(case) and not model_of(case.predictor)[0]:
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
    for place, item, predictor in canaries(case):
        is_dark = item.get("trafficPercent") == 0 and not predictor.get("minReplicas")
        if is_dark and case.autoscaler == "none":
            yield place, "is at 0 percent and gets no pod: give it minReplicas: 1"


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
    for place, _, predictor in canaries(case):
        own = model_of(predictor)[1].get("storageUri", stable)
        if stable and own == stable and not predictor.get("storageUris"):
            yield place, "has the stable predictor's storageUri: it cannot be promoted by its name"
