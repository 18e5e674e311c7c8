"""KEDA: what KServe hands on to it."""

from __future__ import annotations

from typing import Any

from kservekit.manifests.lint.case import Case
from kservekit.manifests.lint.rule import ERROR, Found, rule
from kservekit.manifests.pods import Pod, amount


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
        if case.autoscaler == "keda" and pod.spec.get("scaleMetric"):
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
    is_keda = case.autoscaler == "keda"
    for pod in case.pods:
        if is_keda and not _metrics(pod):
            yield pod.place, "KEDA is asked for and told no metric to scale by: autoScaling.metrics"
        if not is_keda and any(item.get("type") != "Resource" for item in _metrics(pod)):
            yield (*pod.place, "autoScaling"), "external metrics need serving.kserve.io/autoscalerClass: keda"


@rule(
    "KSV509",
    ERROR,
    "a metric that lacks a part",
    why="The webhook refuses a metric without what its type is named after; for KEDA External and PodMetric without a "
    "query and a target value, cpu by anything but Utilization, memory by Value or below 1Mi. PodMetric is "
    "opentelemetry's alone, External prometheus' or graphite's, whose address KEDA needs.",
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
    is_keda = case.autoscaler == "keda"
    for pod in case.pods:
        for count, item in enumerate(_metrics(pod)):
            place = (*pod.place, "autoScaling", "metrics", count)
            kind = str(item.get("type"))
            part = item.get({"External": "external", "PodMetric": "podmetric", "Resource": "resource"}.get(kind, ""))
            if part is None and (is_keda or kind == "Resource"):
                yield place, f"is of type {kind} and has no {kind.lower()}"
            if part is None or not is_keda:
                continue
            target, metric = part.get("target") or {}, part.get("metric") or {}
            if kind in ("External", "PodMetric"):
                if not metric.get("query"):
                    yield place, "has no metric.query: KServe refuses it"
                if "value" not in target:
                    yield place, "has no target.value: KServe refuses it"
                for key in ("backend", "serverAddress") if kind == "External" else ("backend",):
                    if not metric.get(key):
                        yield place, f"has no metric.{key}: KEDA refuses the trigger"
            elif part.get("name") == "cpu" and target.get("type", "Utilization") != "Utilization":
                yield place, f"scales by cpu with {target.get('type')}: KEDA takes Utilization"
            elif part.get("name") == "memory" and target.get("type") == "Value":
                yield place, "scales by memory with Value: KEDA takes AverageValue or Utilization"
            elif part.get("name") == "memory" and 0 < amount(target.get("averageValue")) < 2**20:
                yield place, f"scales by {target['averageValue']} of memory: KServe refuses less than 1Mi"


def _metrics(pod: Pod) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (pod.spec.get("autoScaling") or {}).get("metrics") or []
    return found
