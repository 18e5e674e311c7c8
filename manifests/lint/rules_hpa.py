"""The autoscaler of Standard mode."""

from __future__ import annotations

import difflib

from kservekit.manifests.lint.case import CLASS, KNATIVE, Case
from kservekit.manifests.lint.rule import ERROR, NOTE, WARNING, Found, rule

CLASSES = ("hpa", "keda", "external", "none")


@rule(
    "KSV503",
    ERROR,
    "a metric of Knative's in Standard mode",
    why="The HorizontalPodAutoscaler that KServe makes knows cpu and memory alone.",
    mend="cpu or memory, or KEDA with autoScaling.metrics.",
    source="rec/hpa/hpa_reconciler.go",
    modes=("Standard",),
    example="""
   predictor:
-    scaleMetric: rps
+    scaleMetric: cpu
     scaleTarget: 80
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def metric_is_the_hpas(case: Case) -> Found:
    for pod in case.pods:
        metric = pod.spec.get("scaleMetric")
        if metric in ("concurrency", "rps"):
            yield (*pod.place, "scaleMetric"), f"{metric} is for Knative: in Standard mode cpu, memory, or KEDA"


@rule(
    "KSV506",
    WARNING,
    "Knative's annotations in Standard mode",
    why="Nothing of Knative runs there, so nobody reads them.",
    mend="minReplicas, maxReplicas, scaleMetric; or Knative mode.",
    source="rec/deployment/deployment_reconciler.go",
    modes=("Standard",),
    example="""
   predictor:
-    annotations: {autoscaling.knative.dev/window: 60s}
+    minReplicas: 2
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def no_knative_in_standard(case: Case) -> Found:
    for place, key, _ in case.all_annotations():
        if key.startswith((KNATIVE, "serving.knative.dev/")):
            yield place, f"{key} has no effect in Standard mode"


@rule(
    "KSV510",
    WARNING,
    "autoScaling.behavior that is dropped",
    why="KServe's HorizontalPodAutoscaler has a behaviour of its own; of a ScaledObject's, stabilizationWindowSeconds "
    "alone is passed on.",
    mend="KEDA with stabilizationWindowSeconds, or an autoscaler of your own and autoscalerClass: external.",
    source="rec/hpa/hpa_reconciler.go:179, #6246, #4541",
    modes=("Standard",),
    example="""
   predictor:
-    autoScaling: {behavior: {scaleDown: {stabilizationWindowSeconds: 300}}}
     maxReplicas: 4
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def behaviour_is_kept(case: Case) -> Found:
    for pod in case.pods:
        behaviour = (pod.spec.get("autoScaling") or {}).get("behavior")
        place = (*pod.place, "autoScaling", "behavior")
        if behaviour is not None and case.autoscaler != "keda":
            yield place, "KServe's HPA ignores it"
        elif behaviour:
            for way, said in behaviour.items():
                dropped = sorted({*(said or {})} - {"stabilizationWindowSeconds"})
                if dropped:
                    yield (
                        (*place, way),
                        f"KServe passes stabilizationWindowSeconds on to KEDA, and not {', '.join(dropped)}",
                    )


@rule(
    "KSV511",
    WARNING,
    "scale to zero in Standard mode",
    why="With the HorizontalPodAutoscaler 0 becomes 1 without a word. With KEDA it stays 0, and no HTTP request wakes "
    "it.",
    mend="minReplicas 1, or Knative mode.",
    source="rec/hpa/hpa_reconciler.go, #3514",
    modes=("Standard",),
    example="""
   predictor:
-    minReplicas: 0
+    minReplicas: 1
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def zero_is_knatives(case: Case) -> Found:
    for pod in case.pods:
        place, found = (*pod.place, "minReplicas"), case.autoscaler
        if pod.spec.get("minReplicas") == 0 and found not in ("external", "none"):
            if found == "keda":
                yield (
                    place,
                    "0 with KEDA is woken by its metric alone: no request does, and a stopped pod has no metrics",
                )
            else:
                yield place, "0 becomes 1 in Standard mode: nothing there wakes a service"


@rule(
    "KSV512",
    ERROR,
    "an autoscaler class that there is none of",
    why="The webhook takes hpa, keda, external and none.",
    mend="One of the four.",
    source="pkg/constants/constants.go (AutoscalerAllowedClassList)",
    modes=("Standard",),
    example="""
 apiVersion: serving.kserve.io/v1beta1
 kind: InferenceService
 metadata:
   name: photo
   annotations:
     serving.kserve.io/deploymentMode: Standard
-    serving.kserve.io/autoscalerClass: kpa
+    serving.kserve.io/autoscalerClass: hpa
 spec:
   predictor:
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def class_is_one(case: Case) -> Found:
    said = case.autoscaler
    if said not in (None, *CLASSES):
        close = difflib.get_close_matches(str(said).lower(), CLASSES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        yield ("metadata", "annotations", CLASS), f"is {said!r}: expected hpa, keda, external or none{hint}"


@rule(
    "KSV513",
    ERROR,
    "scaleMetric memory without a target",
    why="cpu has a default of 80 percent, memory has none: the webhook refuses it where the class is written out, and "
    "the autoscaler has nothing to scale to where it is not.",
    mend="scaleTarget, in percent of the request.",
    source="v1beta1/inference_service_validation.go",
    modes=("Standard",),
    example="""
   predictor:
     scaleMetric: memory
+    scaleTarget: 80
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def memory_has_a_target(case: Case) -> Found:
    for pod in case.pods:
        if pod.spec.get("scaleMetric") == "memory" and "scaleTarget" not in pod.spec and case.autoscaler != "keda":
            yield (*pod.place, "scaleMetric"), "memory has no default target: give scaleTarget, in percent"


@rule(
    "KSV518",
    ERROR,
    "a goal of the HPA that is no percentage",
    why="With autoscalerClass hpa the webhook wants scaleTarget from 1 to 100, of CPU and of memory: it is percent of "
    "what is requested, and not requests at once.",
    mend="A percentage; requests at once are for Knative, or for KEDA with a query.",
    source="v1beta1/inference_service_validation.go, validateScalingHPACompExtension",
    modes=("Standard",),
    example="""
 apiVersion: serving.kserve.io/v1beta1
 kind: InferenceService
 metadata:
   name: photo
   annotations:
     serving.kserve.io/deploymentMode: Standard
     serving.kserve.io/autoscalerClass: hpa
 spec:
   predictor:
     scaleMetric: cpu
-    scaleTarget: 500
+    scaleTarget: 80
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def goal_is_a_percentage(case: Case) -> Found:
    for pod in case.pods:
        goal = pod.spec.get("scaleTarget")
        if case.autoscaler == "hpa" and goal is not None and not 1 <= goal <= 100:
            yield (*pod.place, "scaleTarget"), f"is {goal}: KServe's HPA takes 1 to 100, percent of the request"


@rule(
    "KSV516",
    NOTE,
    "limits for an autoscaler that is not there",
    why="With autoscalerClass none a Deployment has minReplicas, with external KServe touches nothing: maxReplicas "
    "and scaleMetric say something that nobody does.",
    mend="minReplicas alone; the rest in the autoscaler of your own.",
    source="rec/autoscaler/autoscaler_reconciler.go",
    modes=("Standard",),
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
     minReplicas: 2
-    maxReplicas: 8
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def limits_have_a_scaler(case: Case) -> Found:
    if case.autoscaler in ("none", "external"):
        for pod in case.pods:
            for field in ("maxReplicas", "scaleMetric", "scaleTarget", "autoScaling"):
                if field in pod.spec and pod.spec[field] != pod.spec.get("minReplicas", 1):
                    yield (*pod.place, field), f"has no effect with autoscalerClass {case.autoscaler}"
