"""Replicas: what each autoscaler takes, drops and refuses."""

from __future__ import annotations

import difflib
from typing import Any

from kservekit.manifests.lint.case import Case
from kservekit.manifests.lint.rule import ERROR, NOTE, WARNING, Found, rule
from kservekit.manifests.pods import Pod, annotated

CLASS = "serving.kserve.io/autoscalerClass"
KNATIVE = "autoscaling.knative.dev/"
CLASSES = ("hpa", "keda", "external", "none")


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
    stripped = [f"{KNATIVE}{word}" for word in ("min-scale", "max-scale", "minScale", "maxScale")]
    for place, key, _ in _annotations(case):
        if key in stripped:
            yield place, f"KServe strips {key}: use minReplicas and maxReplicas"


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
    for place, key, _ in _annotations(case):
        if key.startswith((KNATIVE, "serving.knative.dev/")):
            yield place, f"{key} has no effect in Standard mode"


@rule(
    "KSV507",
    ERROR,
    "scaleMetric with KEDA",
    why="The webhook refuses it: KEDA's triggers come from autoScaling.metrics.",
    mend="Take scaleMetric away.",
    source="v1beta1/inference_service_validation.go, #3561",
    modes=("Standard",),
    example="""
 apiVersion: serving.kserve.io/v1beta1
 kind: InferenceService
 metadata:
   name: photo
   annotations:
     serving.kserve.io/deploymentMode: Standard
     serving.kserve.io/autoscalerClass: keda
 spec:
   predictor:
-    scaleMetric: cpu
     autoScaling:
       metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}}]
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def no_scale_metric_with_keda(case: Case) -> Found:
    for pod in case.pods:
        if _class(case) == "keda" and pod.spec.get("scaleMetric"):
            yield (*pod.place, "scaleMetric"), "KServe refuses it with KEDA: use autoScaling.metrics"


@rule(
    "KSV508",
    ERROR,
    "KEDA without a metric, or its metrics without KEDA",
    why="Each makes an autoscaler that scales by nothing: KEDA is told by autoScaling.metrics alone, and the "
    "HorizontalPodAutoscaler takes Resource metrics alone.",
    mend="serving.kserve.io/autoscalerClass: keda and autoScaling.metrics, both or neither.",
    source="rec/keda/keda_reconciler.go, rec/hpa/hpa_reconciler.go, #4007",
    modes=("Standard",),
    example="""
 apiVersion: serving.kserve.io/v1beta1
 kind: InferenceService
 metadata:
   name: photo
   annotations:
     serving.kserve.io/deploymentMode: Standard
     serving.kserve.io/autoscalerClass: keda
 spec:
   predictor:
+    autoScaling:
+      metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}}]
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def keda_and_its_metrics(case: Case) -> Found:
    is_keda = _class(case) == "keda"
    for pod in case.pods:
        if is_keda and not _metrics(pod):
            yield pod.place, "KEDA is asked for and told no metric to scale by: autoScaling.metrics"
        if not is_keda and any(item.get("type") != "Resource" for item in _metrics(pod)):
            yield (*pod.place, "autoScaling"), "external metrics need serving.kserve.io/autoscalerClass: keda"


@rule(
    "KSV509",
    ERROR,
    "a metric for KEDA that lacks a part",
    why="The webhook refuses External and PodMetric without a query and a target value, cpu by anything but "
    "Utilization, and memory below 1Mi; PodMetric is opentelemetry's alone, External prometheus' or graphite's.",
    mend="metric.query and target.value; for External the backend and its serverAddress.",
    source="v1beta1/inference_service_validation.go, keda#7538",
    modes=("Standard",),
    example="""
 apiVersion: serving.kserve.io/v1beta1
 kind: InferenceService
 metadata:
   name: photo
   annotations:
     serving.kserve.io/deploymentMode: Standard
     serving.kserve.io/autoscalerClass: keda
 spec:
   predictor:
     autoScaling:
       metrics:
         - type: External
           external:
-            metric: {backend: prometheus, serverAddress: "http://prometheus:9090"}
+            metric: {backend: prometheus, serverAddress: "http://prometheus:9090", query: sum(nv_inference_pending)}
             target: {type: Value, value: "4"}
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def keda_metrics_are_whole(case: Case) -> Found:
    if _class(case) != "keda":
        return
    for pod in case.pods:
        for count, item in enumerate(_metrics(pod)):
            place = (*pod.place, "autoScaling", "metrics", count)
            kind = str(item.get("type"))
            part = item.get({"External": "external", "PodMetric": "podmetric", "Resource": "resource"}.get(kind, ""))
            if part is None:
                yield place, f"is of type {kind} and has no {kind.lower()}"
                continue
            target, metric = part.get("target") or {}, part.get("metric") or {}
            if kind in ("External", "PodMetric"):
                missing = [key for key in ("query", "backend") if not metric.get(key)]
                if kind == "External" and not metric.get("serverAddress"):
                    missing.append("serverAddress")
                if missing:
                    yield place, f"has no metric.{' and no metric.'.join(missing)}: KServe refuses it"
                if "value" not in target:
                    yield place, "has no target.value: KServe refuses it"
            elif part.get("name") == "cpu" and target.get("type", "Utilization") != "Utilization":
                yield place, f"scales by cpu with {target.get('type')}: KEDA takes Utilization"


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
        if behaviour is not None and _class(case) != "keda":
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
        place, found = (*pod.place, "minReplicas"), _class(case)
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
    said = _class(case)
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
        if pod.spec.get("scaleMetric") == "memory" and "scaleTarget" not in pod.spec and _class(case) != "keda":
            yield (*pod.place, "scaleMetric"), "memory has no default target: give scaleTarget, in percent"


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
    for place, key, value in _annotations(case):
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
    if _class(case) in ("none", "external"):
        for pod in case.pods:
            for field in ("maxReplicas", "scaleMetric", "scaleTarget", "autoScaling"):
                if field in pod.spec and pod.spec[field] != pod.spec.get("minReplicas", 1):
                    yield (*pod.place, field), f"has no effect with autoscalerClass {_class(case)}"


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


def _annotations(case: Case) -> list[tuple[tuple[str | int, ...], str, str]]:
    """Those of the service and of its components, with their places."""
    found: list[tuple[tuple[str | int, ...], str, str]] = [
        (("metadata", "annotations", key), key, value) for key, value in case.annotations.items()
    ]
    for pod in case.pods:
        for key, value in (pod.spec.get("annotations") or {}).items():
            found.append(((*pod.place, "annotations", key), key, value))
    return found


def _class(case: Case) -> str | None:
    return case.annotations.get(CLASS)


def _metrics(pod: Pod) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (pod.spec.get("autoScaling") or {}).get("metrics") or []
    return found
