"""Replicas, and Knative's autoscaler."""

from __future__ import annotations

from kservekit.manifests.lint.case import CLASS, KNATIVE, Case
from kservekit.manifests.lint.rule import ERROR, WARNING, Found, rule
from kservekit.manifests.pods import Pod, annotated


@rule(
    "KSV501",
    ERROR,
    "replicas that cannot be",
    why="The webhook refuses minReplicas above maxReplicas, and negative numbers.",
    mend="0 or more, and the larger one as maxReplicas.",
    source="v1beta1/inference_service_validation.go",
    example="""
   predictor:
-    minReplicas: 9
+    minReplicas: 1
     maxReplicas: 4
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def replicas_can_be(case: Case) -> Found:
    for pod in case.pods:
        low, high = pod.spec.get("minReplicas", 1), pod.spec.get("maxReplicas") or 0
        if high and low > high:
            yield (*pod.place, "minReplicas"), f"minReplicas {low} is above maxReplicas {high}"
        for field in ("minReplicas", "maxReplicas", "scaleTarget", "containerConcurrency", "timeout"):
            if pod.spec.get(field, 0) < 0:
                yield (*pod.place, field), f"is {pod.spec[field]}: KServe refuses negative numbers"


@rule(
    "KSV502",
    ERROR,
    "a metric that Knative's autoscaler has not",
    why="Knative's own autoscaler knows concurrency and rps; cpu and memory need the class "
    "hpa.autoscaling.knative.dev.",
    mend="scaleMetric concurrency or rps.",
    source="v1beta1/inference_service_validation.go",
    modes=("Knative",),
    example="""
   predictor:
-    scaleMetric: cpu
+    scaleMetric: concurrency
     scaleTarget: 10
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def metric_is_knatives(case: Case) -> Found:
    for pod in case.pods:
        metric = pod.spec.get("scaleMetric")
        if metric in ("cpu", "memory") and not _told(pod).get(f"{KNATIVE}class", "").startswith("hpa"):
            yield (*pod.place, "scaleMetric"), f"{metric} is not for Knative's autoscaler: concurrency or rps"


@rule(
    "KSV504",
    WARNING,
    "Standard mode's autoscaler in Knative",
    why="autoscalerClass and autoScaling are for Standard mode; Knative's autoscaler never sees them.",
    mend="scaleMetric and scaleTarget, and autoscaling.knative.dev annotations.",
    source="rec/knative/ksvc_reconciler.go",
    modes=("Knative",),
    example="""
 apiVersion: serving.kserve.io/v1beta1
 kind: InferenceService
 metadata:
   name: photo
   annotations:
     serving.kserve.io/deploymentMode: Knative
-    serving.kserve.io/autoscalerClass: none
 spec:
   predictor:
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def scaler_is_knatives(case: Case) -> Found:
    what = "autoscalerClass and autoScaling are for Standard mode: Knative ignores them"
    if CLASS in case.annotations:
        yield ("metadata", "annotations", CLASS), what
    for pod in case.pods:
        if "autoScaling" in pod.spec:
            yield (*pod.place, "autoScaling"), what


@rule(
    "KSV505",
    WARNING,
    "replicas as annotations",
    why="KServe writes Knative's min-scale and max-scale from the fields and strips the annotations.",
    mend="minReplicas and maxReplicas.",
    source="pkg/constants/constants.go (ServiceAnnotationDisallowedList)",
    modes=("Knative",),
    example="""
   predictor:
-    annotations: {autoscaling.knative.dev/min-scale: "2"}
+    minReplicas: 2
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def replicas_are_fields(case: Case) -> Found:
    for place, key, _ in case.all_annotations():
        if key in (f"{KNATIVE}min-scale", f"{KNATIVE}max-scale"):
            yield place, f"KServe strips {key}: use minReplicas and maxReplicas"
        elif key == f"{KNATIVE}minScale":
            yield place, "KServe adds min-scale, which Knative takes before its old name minScale: use minReplicas"


@rule(
    "KSV514",
    WARNING,
    "initial-scale 0",
    why="It is dropped unless Knative's config-autoscaler says allow-zero-initial-scale.",
    mend="Take it away, or allow it there.",
    source="pkg/controller/v1alpha1/utils/utils.go, #1247",
    modes=("Knative",),
    example="""
   predictor:
-    annotations: {autoscaling.knative.dev/initial-scale: "0"}
+    annotations: {autoscaling.knative.dev/initial-scale: "1"}
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def initial_scale_is_allowed(case: Case) -> Found:
    for place, key, value in case.all_annotations():
        if key == f"{KNATIVE}initial-scale" and value == "0":
            yield place, "initial-scale 0 is dropped unless config-autoscaler has allow-zero-initial-scale"


@rule(
    "KSV515",
    ERROR,
    "deploymentStrategy in Knative",
    why="The webhook refuses it: Knative rolls out by revisions.",
    mend="Take it away; serving.knative.dev/rollout-duration makes a rollout slow.",
    source="v1beta1/inference_service_validation.go",
    modes=("Knative",),
    example="""
   predictor:
-    deploymentStrategy: {type: Recreate}
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def no_strategy_in_knative(case: Case) -> Found:
    for pod in case.pods:
        if "deploymentStrategy" in pod.spec:
            yield (*pod.place, "deploymentStrategy"), "KServe refuses it in Knative mode: revisions roll out there"


@rule(
    "KSV517",
    WARNING,
    "containerConcurrency in Standard mode",
    why="The limit is kept by Knative's proxy, which Standard mode has not: nothing is limited.",
    mend="Take it away; limit inside the server, as Triton's queue policy does.",
    source="rec/knative/ksvc_reconciler.go",
    modes=("Standard",),
    example="""
   predictor:
-    containerConcurrency: 8
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def concurrency_is_knatives(case: Case) -> Found:
    for pod in case.pods:
        if pod.spec.get("containerConcurrency") and pod.component != "transformer":
            yield (*pod.place, "containerConcurrency"), "limits nothing in Standard mode: Knative's proxy keeps it"


def _told(pod: Pod) -> dict[str, str]:
    return {**annotated(pod.service), **(pod.spec.get("annotations") or {})}
