"""Names that KServe has given up, refuses, or never had."""

from __future__ import annotations

import difflib
import re

from kservekit.manifests.lint.case import Case, environment
from kservekit.manifests.lint.rule import ERROR, NOTE, WARNING, Found, rule
from kservekit.manifests.pods import FORMATS, argument
from kservekit.manifests.schema import within

PREFIX = "serving.kserve.io/"

ANNOTATIONS = (
    *("deploymentMode", "autoscalerClass", "enable-prometheus-scraping", "enable-metric-aggregation"),
    *("enable-tag-routing", "nodegroup", "disable-localmodel", "targetUtilizationPercentage", "metrics"),
    *("storageSpec", "s3-endpoint", "s3-usehttps", "s3-region", "s3-verifyssl", "s3-useanoncredential"),
    "gpu-resource-types",
)
"""KServe's own, as far as a slip in one is likely; one that is near none of them is let be."""


@rule(
    "KSV105",
    ERROR,
    "a name inside a model",
    why="The webhook refuses `name` in model, triton, sklearn and their like since 0.16: the container's name is "
    "KServe's.",
    mend="Take it away. To call the model something else, pass --model_name.",
    source="v1beta1/inference_service_validation.go, #4472",
    example="""
   predictor:
     model:
-      name: photo
       modelFormat: {name: sklearn}
       storageUri: s3://models/photo
""",
)
def model_has_no_name(case: Case) -> Found:
    for key in ("model", *FORMATS):
        if (case.predictor.get(key) or {}).get("name"):
            yield ("spec", "predictor", key, "name"), "KServe refuses it since 0.16: take it away"


@rule(
    "KSV106",
    ERROR,
    "a service's or a graph's name that is no DNS label",
    why="The name becomes Services and host names; the webhooks refuse capitals, dots, underscores and a first digit.",
    mend="Small letters, digits and hyphens, a letter first.",
    source="v1beta1/inference_service_validation.go, v1alpha1/inference_graph_validation.go",
    kinds=("InferenceService", "InferenceGraph"),
    example="""
 apiVersion: serving.kserve.io/v1beta1
 kind: InferenceService
 metadata:
-  name: Photo_1
+  name: photo-1
   annotations:
     serving.kserve.io/deploymentMode: Standard
 spec:
   predictor:
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def name_is_a_label(case: Case) -> Found:
    found = case.document["metadata"].get("name")
    if isinstance(found, str) and not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", found):
        yield ("metadata", "name"), f"is {found[:60]!r}: expected small letters, digits and hyphens, a letter first"


@rule(
    "KSV108",
    ERROR,
    "PYTHONPATH",
    why="The webhook refuses the variable PYTHONPATH in every container since 0.18.",
    mend="Set it in the image.",
    source="v1beta1/inference_service_validation.go (0.18)",
    example="""
   predictor:
     model:
       modelFormat: {name: sklearn}
       storageUri: s3://models/photo
-      env: [{name: PYTHONPATH, value: /app}]
""",
)
def no_python_path(case: Case) -> Found:
    everywhere = [(place, part) for place, part in case.parts()]
    for component in ("predictor", "transformer", "explainer"):
        spec = case.spec.get(component) or {}
        for path in (("initContainers",), ("workerSpec", "containers"), ("workerSpec", "initContainers")):
            listed = (spec.get("workerSpec") or {} if len(path) > 1 else spec).get(path[-1]) or []
            everywhere += [(("spec", component, *path, number), item) for number, item in enumerate(listed)]
    for place, part in everywhere:
        if "PYTHONPATH" in environment(part):
            yield (*place, "env"), "KServe refuses PYTHONPATH since 0.18: set it in the image"


@rule(
    "KSV109",
    ERROR,
    "an API version that is no longer served",
    why="KFServing's group serving.kubeflow.org and v1alpha2 went with KServe 0.7; a cluster does not know the kind.",
    mend="apiVersion: serving.kserve.io/v1beta1, with predictor where default.predictor was.",
    source="KServe 0.7's migration from KFServing",
    kinds=("*",),
    example="""
-apiVersion: serving.kubeflow.org/v1beta1
+apiVersion: serving.kserve.io/v1beta1
 kind: InferenceService
 metadata:
   name: photo
   annotations:
     serving.kserve.io/deploymentMode: Standard
 spec:
   predictor:
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def api_is_served(case: Case) -> Found:
    group, _, version = str(case.document.get("apiVersion")).partition("/")
    is_old = case.document.get("kind") == "InferenceService" and group == "serving.kserve.io" and version != "v1beta1"
    if group == "serving.kubeflow.org" or is_old:
        yield ("apiVersion",), f"is {group}/{version}: expected serving.kserve.io/v1beta1"


@rule(
    "KSV110",
    WARNING,
    "a Service's name with -default",
    why="KServe 0.11 dropped -default from the names of its Services, so nothing answers there.",
    mend="NAME-predictor and NAME-transformer.",
    source="KServe 0.11, iter8#1603",
    kinds=("InferenceService", "InferenceGraph"),
    modes=("Standard", "Knative"),
    example="""
   predictor:
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
   transformer:
     containers:
       - name: kserve-container
         image: example.com/photo:1
-        args: [--predictor_host=photo-predictor-default.team, --predictor_protocol=v1]
+        args: [--predictor_host=photo-predictor.team, --predictor_protocol=v1]
""",
)
def no_default_in_names(case: Case) -> Found:
    pattern = re.compile(r"[a-z0-9-]{0,63}-(?:predictor|transformer|explainer)-default\b")
    for place, text in within(case.spec, ("spec",)):
        if isinstance(text, str) and (match := pattern.search(text)):
            what = f"has {match.group()}: KServe 0.11 dropped -default from its Services' names"
            yield place, what


@rule(
    "KSV111",
    WARNING,
    "KServe's annotation for Prometheus in Standard mode",
    why="It sets the port to 9091 or 9088, which belong to Knative's proxy: in Standard mode nothing listens there.",
    mend="Set prometheus.io/port yourself, or a PodMonitor.",
    source="pkg/webhook/admission/pod/metrics_aggregate_injector.go",
    modes=("Standard",),
    example="""
 apiVersion: serving.kserve.io/v1beta1
 kind: InferenceService
 metadata:
   name: photo
   annotations:
     serving.kserve.io/deploymentMode: Standard
-    serving.kserve.io/enable-prometheus-scraping: "true"
+    prometheus.io/scrape: "true"
+    prometheus.io/port: "8080"
 spec:
   predictor:
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def no_scraping_of_a_missing_proxy(case: Case) -> Found:
    key = f"{PREFIX}enable-prometheus-scraping"
    if case.annotations.get(key) == "true":
        yield ("metadata", "annotations", key), "names port 9091 or 9088, where nothing listens in Standard mode"


@rule(
    "KSV112",
    WARNING,
    "an annotation of KServe's that is misspelt",
    why="KServe looks for its annotations letter by letter and is silent about others.",
    mend="Take the name that is offered.",
    source="pkg/constants/constants.go",
    example="""
 apiVersion: serving.kserve.io/v1beta1
 kind: InferenceService
 metadata:
   name: photo
   annotations:
     serving.kserve.io/deploymentMode: Standard
-    serving.kserve.io/autoscalerclass: none
+    serving.kserve.io/autoscalerClass: none
 spec:
   predictor:
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def annotations_are_known(case: Case) -> Found:
    by_small = {item.lower(): item for item in ANNOTATIONS}
    for key in case.annotations:
        group, slash, word = key.rpartition("/")
        if f"{group}{slash}" != PREFIX or word in ANNOTATIONS:
            continue
        close = difflib.get_close_matches(word.lower(), by_small, n=1, cutoff=0.85)
        if close and not (word.startswith("s3-") and word.lower() not in by_small):
            yield (
                ("metadata", "annotations", key),
                f"KServe knows no such annotation; did you mean {by_small[close[0]]}?",
            )


@rule(
    "KSV115",
    WARNING,
    "the address of a store on an InferenceService",
    why="KServe reads the annotations s3-endpoint, s3-region, s3-usehttps and their like of the Secret and the "
    "ServiceAccount with the credentials: on an InferenceService nobody reads them, and AWS is asked for the model.",
    mend="On the Secret, which a ServiceAccount lists, which serviceAccountName names.",
    source="pkg/credentials/s3/s3_secret.go",
    example="""
 apiVersion: serving.kserve.io/v1beta1
 kind: InferenceService
 metadata:
   name: photo
   annotations:
     serving.kserve.io/deploymentMode: Standard
-    serving.kserve.io/s3-endpoint: minio.storage:9000
 spec:
   predictor:
+    serviceAccountName: with-a-secret-for-s3
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def store_is_said_where_it_is_read(case: Case) -> Found:
    for key in case.annotations:
        if key.startswith(f"{PREFIX}s3-"):
            yield (
                ("metadata", "annotations", key),
                "is read of the Secret or ServiceAccount with the credentials alone: put it there",
            )


@rule(
    "KSV113",
    WARNING,
    "TLS of the server, and the port of before",
    why="With a certificate, KServe 0.21's server listens on 8443 unless it is told a port, and 8080 answers nobody.",
    mend="Say --http_port, and the same port in ports and probes.",
    source="python/kserve/kserve/model_server.py (0.21)",
    since="0.21",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     containers:
       - name: kserve-container
         image: example.com/photo:1
-        args: [--ssl_certfile=/tls/tls.crt, --ssl_keyfile=/tls/tls.key]
+        args: [--ssl_certfile=/tls/tls.crt, --ssl_keyfile=/tls/tls.key, --http_port=8443]
-        ports: [{containerPort: 8080, protocol: TCP}]
+        ports: [{containerPort: 8443, protocol: TCP}]
""",
)
def tls_moves_the_port(case: Case) -> Found:
    for _, container, place in case.containers():
        has_tls = argument(container, "--ssl_certfile") or "KSERVE_TLS_CERT_FILE" in environment(container)
        if has_tls and argument(container, "--http_port") in (None, "8080"):
            for count, port in enumerate(container.get("ports") or []):
                if port.get("containerPort") == 8080:
                    yield (
                        (*place, "ports", count),
                        "with a certificate KServe 0.21's server listens on 8443, not on 8080",
                    )


@rule(
    "KSV114",
    NOTE,
    "TrainedModel",
    why="KServe plans to deprecate TrainedModel and does not develop it.",
    mend="One InferenceService with a repository of several models.",
    source="PR #3758",
    kinds=("TrainedModel",),
    example="""
-apiVersion: serving.kserve.io/v1alpha1
-kind: TrainedModel
-metadata: {name: cifar}
-spec:
-  inferenceService: photo
-  model: {storageUri: s3://models/cifar, framework: pytorch, memory: 1Gi}
+apiVersion: serving.kserve.io/v1beta1
+kind: InferenceService
+metadata: {name: photo, annotations: {serving.kserve.io/deploymentMode: Standard}}
+spec:
+  predictor:
+    model: {modelFormat: {name: triton}, runtimeVersion: 25.08-py3, storageUri: s3://models/all}
""",
)
def no_trained_model(case: Case) -> Found:
    yield ("kind",), "KServe does not develop TrainedModel any more: put the models into one repository"
