"""A transformer and its predictor in pods of their own: host, namespace, port and workers."""

from __future__ import annotations

import re

from kservekit.manifests.lint.case import Case, environment, flag_place
from kservekit.manifests.lint.rule import ERROR, WARNING, Found, rule
from kservekit.manifests.pods import argument, is_ours


@rule(
    "KSV206",
    WARNING,
    "--predictor_host of another service",
    why="KServe's Service is the InferenceService's name, then -predictor (with a predictor.name between them where "
    "there is one); another name is another service or none.",
    mend="Leave the flag to KServe, or write this service's name.",
    source="v1beta1/transformer_custom.go, #3278",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
   transformer:
     containers:
       - name: kserve-container
         image: example.com/photo:1
-        args: [--predictor_host=foto-predictor]
+        args: [--predictor_host=photo-predictor]
""",
)
def host_is_the_own_predictor(case: Case) -> Found:
    for pod, container, place in case.transformers():
        host = _host(container)
        match = re.fullmatch(r"([a-z0-9-]+)-predictor(?:-default)?", host.partition(".")[0])
        if pod.component != "transformer" or not match:
            continue
        called = match.group(1)
        own = {case.name, f"{case.name}-{case.predictor.get('name')}"}
        if called not in own and not case.around.get("InferenceService", called, case.namespace):
            what = f"goes to {host!r}, and this service's predictor is {case.name}-predictor"
            yield flag_place(container, place, "--predictor_host"), what


@rule(
    "KSV207",
    WARNING,
    "--predictor_host in another namespace",
    why="The Service is in the InferenceService's own namespace.",
    mend="Leave the namespace away, or write this one's.",
    source="v1beta1/transformer_custom.go",
    example="""
 apiVersion: serving.kserve.io/v1beta1
 kind: InferenceService
 metadata:
   name: photo
   namespace: team-a
   annotations: {serving.kserve.io/deploymentMode: Knative}
 spec:
   predictor:
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
   transformer:
     containers:
       - name: kserve-container
         image: example.com/photo:1
-        args: [--predictor_host=photo-predictor.default.svc.cluster.local]
+        args: [--predictor_host=photo-predictor.team-a.svc.cluster.local]
""",
)
def host_is_in_the_own_namespace(case: Case) -> Found:
    for _, container, place in case.transformers():
        host = _host(container)
        first, _, rest = host.partition(".")
        space = rest.partition(".")[0]
        is_service = first in (f"{case.name}-predictor", f"{case.name}-predictor-default")
        if case.namespace and space and space != case.namespace and is_service:
            what = f"goes to the namespace {space!r}, and this service is in {case.namespace!r}"
            yield flag_place(container, place, "--predictor_host"), what


@rule(
    "KSV210",
    ERROR,
    "gRPC to a predictor that declares no port for it",
    why="KServe's runtime for Triton declares no ports, so the Service has one for REST alone and port 9000 cannot be "
    "reached from another pod.",
    mend="Declare it at the model: ports with containerPort 9000 and the name h2c.",
    source="config/runtimes/kserve-tritonserver.yaml, #3790",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     model:
       modelFormat: {name: triton}
       runtimeVersion: 25.08-py3
       storageUri: s3://models/photo
+      ports: [{name: h2c, containerPort: 9000, protocol: TCP}]
   transformer:
     containers:
       - name: kserve-container
         image: example.com/photo:1
         args: [--predictor_protocol=grpc-v2]
""",
)
def grpc_has_a_port(case: Case) -> Found:
    for pod, container, place in case.transformers():
        is_separate = pod.component == "transformer" and argument(container, "--predictor_protocol") == "grpc-v2"
        if is_separate and case.is_kserves_triton and not case.model.get("ports"):
            what = "speaks gRPC, and KServe's Triton declares no port for it: give the model the port 9000, named h2c"
            yield flag_place(container, place, "--predictor_protocol"), what


@rule(
    "KSV212",
    ERROR,
    "containerConcurrency of a custom transformer",
    why="KServe makes --workers of it. Workers are new processes that do not get the predictor's settings, so with "
    "two or more every request answers 501.",
    mend="Take it away, and scale by replicas.",
    source="v1beta1/transformer_custom.go, python/kserve/kserve/context.py (since 0.16, #4526)",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
   transformer:
-    containerConcurrency: 2
+    minReplicas: 2
     containers:
       - name: kserve-container
         image: example.com/photo:1
""",
)
def concurrency_is_no_workers(case: Case) -> Found:
    for pod in case.pods:
        if pod.component == "transformer" and pod.containers and pod.spec.get("containerConcurrency", 0) > 1:
            given = pod.spec["containerConcurrency"]
            if argument(pod.containers[0], "--workers") is None and not is_ours(pod.containers[0]):
                what = f"becomes --workers={given}, and a transformer with workers answers 501: take it away"
                yield (*pod.place, "containerConcurrency"), what


@rule(
    "KSV218",
    ERROR,
    "PROTOCOL that a custom predictor cannot have",
    why="The variable says what a custom container speaks, so that KServe chooses the probe and the URL by it; for a "
    "predictor the webhook takes v1 and v2 alone.",
    mend="v1 or v2; gRPC is said by the port's name.",
    source="v1beta1/predictor_custom.go",
    example="""
   predictor:
     containers:
       - name: kserve-container
         image: example.com/photo:1
-        env: [{name: PROTOCOL, value: grpc-v2}]
+        env: [{name: PROTOCOL, value: v2}]
""",
)
def custom_protocol_is_taken(case: Case) -> Found:
    for number_, container in enumerate(case.predictor.get("containers") or []):
        said = environment(container).get("PROTOCOL", {}).get("value")
        if said not in (None, "v1", "v2") and container.get("name") != "transformer-container":
            yield ("spec", "predictor", "containers", number_, "env"), f"PROTOCOL is {said!r}: expected v1 or v2"


def _host(container: dict[str, object]) -> str:
    said = argument(container, "--predictor_host") or ""
    return said.rpartition("://")[2].partition("/")[0].partition(":")[0]
