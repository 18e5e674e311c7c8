"""The transformer's way to its predictor: flags, names, namespaces and protocols."""

from __future__ import annotations

import re

from kservekit.manifests.lint.case import V2_FORMATS, Case, environment, flag_place, format_of, number
from kservekit.manifests.lint.rule import ERROR, WARNING, Found, rule
from kservekit.manifests.pods import argument, is_ours

PROTOCOLS = ("v1", "v2", "grpc-v2")

TRITON_PORTS = {"http": 8080, "grpc": 9000}
"""Of KServe's own runtime for Triton."""


@rule(
    "KSV201",
    ERROR,
    "no --predictor_protocol",
    why="KServe adds --predictor_host to a transformer but never --predictor_protocol, whose default is v1. Triton "
    "and its like speak the Open Inference Protocol alone, so every request fails.",
    mend="--predictor_protocol=v2, or grpc-v2 where the predictor declares a port for it.",
    source="v1beta1/transformer_custom.go, python/kserve/kserve/model_server.py",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     model: {modelFormat: {name: triton}, runtimeVersion: 25.08-py3, storageUri: s3://models/photo}
   transformer:
     containers:
       - name: kserve-container
         image: example.com/photo:1
-        args: [--model_name=photo]
+        args: [--model_name=photo, --predictor_protocol=v2]
""",
)
def transformer_says_its_protocol(case: Case) -> Found:
    for _, container, place in case.transformers():
        if case.speaks_v2_only and container.get("image") and argument(container, "--predictor_protocol") is None:
            yield (
                place,
                "has no --predictor_protocol: KServe does not add it, and the default is v1; write v2 or grpc-v2",
            )


@rule(
    "KSV202",
    ERROR,
    "--predictor_protocol that the predictor does not speak",
    why="Triton, and a predictor with protocolVersion v2 or grpc-v2, have no v1.",
    mend="--predictor_protocol=v2 or grpc-v2.",
    source="v1beta1/predictor_triton.go, #2227",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     model: {modelFormat: {name: triton}, runtimeVersion: 25.08-py3, storageUri: s3://models/photo}
   transformer:
     containers:
       - name: kserve-container
         image: example.com/photo:1
-        args: [--predictor_protocol=v1]
+        args: [--predictor_protocol=v2]
""",
)
def transformer_speaks_what_its_predictor_does(case: Case) -> Found:
    for _, container, place in case.transformers():
        if case.speaks_v2_only and argument(container, "--predictor_protocol") == "v1":
            yield (
                flag_place(container, place, "--predictor_protocol"),
                "has --predictor_protocol=v1, which this predictor does not speak: write v2 or grpc-v2",
            )


@rule(
    "KSV203",
    ERROR,
    "--predictor_protocol that there is none of",
    why="The server's flag takes v1, v2 and grpc-v2, and ends the process at anything else.",
    mend="One of the three.",
    source="python/kserve/kserve/model_server.py",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
   transformer:
     containers:
       - name: kserve-container
         image: example.com/photo:1
-        args: [--predictor_protocol=http]
+        args: [--predictor_protocol=v1]
""",
)
def protocol_is_one(case: Case) -> Found:
    for _, container, place in case.transformers():
        said = argument(container, "--predictor_protocol")
        if said is not None and said not in PROTOCOLS and "$" not in said and "{{" not in said:
            what = f"--predictor_protocol is {said!r}: expected v1, v2 or grpc-v2"
            yield flag_place(container, place, "--predictor_protocol"), what


@rule(
    "KSV204",
    WARNING,
    "--protocol on a transformer",
    why="KServe's server ignores --protocol since it has --predictor_protocol, so the transformer goes on in v1.",
    mend="Call it --predictor_protocol.",
    source="python/kserve/kserve/model_server.py, #3790",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
   transformer:
     containers:
       - name: kserve-container
         image: example.com/photo:1
-        args: [--protocol=v1]
+        args: [--predictor_protocol=v1]
""",
)
def protocol_has_its_new_name(case: Case) -> Found:
    for _, container, place in case.transformers():
        if argument(container, "--protocol") is not None:
            yield flag_place(container, place, "--protocol"), "--protocol is ignored: write --predictor_protocol"


@rule(
    "KSV205",
    ERROR,
    "--predictor_host with a scheme or a path",
    why="The server puts http:// before it and the model's path behind it, so a URL here is none in the end.",
    mend="A host, and a port where it is not 80: photo-predictor.team:80.",
    source="python/kserve/kserve/model.py, #1308",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
   transformer:
     containers:
       - name: kserve-container
         image: example.com/photo:1
-        args: [--predictor_host=http://photo-predictor]
+        args: [--predictor_host=photo-predictor]
""",
)
def host_is_a_host(case: Case) -> Found:
    for _, container, place in case.transformers():
        host = argument(container, "--predictor_host") or ""
        if "/" in host:
            what = f"--predictor_host is {host[:60]!r}: expected a host without scheme and path"
            yield flag_place(container, place, "--predictor_host"), what


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
    "KSV208",
    ERROR,
    "a collocated transformer without --predictor_host",
    why="KServe adds the flag to a separate transformer alone; in one pod nothing is injected, and every request "
    "answers 501.",
    mend="--predictor_host=localhost:PORT, with the port that the other container listens on.",
    source="v1beta1/predictor_custom.go, test/e2e/transformer/test_collocation.py",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     model: {modelFormat: {name: triton}, runtimeVersion: 25.08-py3, storageUri: s3://models/photo}
     containers:
       - name: transformer-container
         image: example.com/photo:1
-        args: [--model_name=photo, --http_port=8090, --predictor_protocol=v2]
+        args: [--model_name=photo, --http_port=8090, --predictor_protocol=v2, "--predictor_host=localhost:8080"]
""",
)
def collocated_knows_its_host(case: Case) -> Found:
    for pod, container, place in case.transformers():
        if pod.component == "predictor" and not argument(container, "--predictor_host"):
            yield place, "has no --predictor_host: KServe adds it to a separate transformer alone; write localhost:8001"


@rule(
    "KSV209",
    ERROR,
    "a collocated --predictor_host where nobody listens",
    why="In one pod the predictor is localhost and the port of its container: 8080 for REST and 9000 for gRPC in "
    "KServe's own runtime for Triton. Without a port it is 80.",
    mend="localhost and the port that speaks --predictor_protocol.",
    source="config/runtimes/kserve-tritonserver.yaml",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     model: {modelFormat: {name: triton}, runtimeVersion: 25.08-py3, storageUri: s3://models/photo}
     containers:
       - name: transformer-container
         image: example.com/photo:1
         args:
           - --model_name=photo
           - --http_port=8090
           - --predictor_protocol=grpc-v2
-          - --predictor_host=localhost:8080
+          - --predictor_host=localhost:9000
""",
)
def collocated_host_listens(case: Case) -> Found:
    for pod, container, place in case.transformers():
        host, colon, port = (argument(container, "--predictor_host") or "").partition(":")
        if pod.component != "predictor" or not host or "/" in host:
            continue
        at = flag_place(container, place, "--predictor_host")
        if host not in ("localhost", "127.0.0.1", "0.0.0.0"):  # noqa: S104
            if host.startswith(f"{case.name}-predictor"):
                yield at, f"goes to {host!r}, this pod's own Service, and so to itself: write localhost"
            continue
        if not colon:
            yield at, "has no port, which means 80: write the one that the predictor's container listens on"
            continue
        kind = "grpc" if argument(container, "--predictor_protocol") == "grpc-v2" else "http"
        if not case.model.get("runtime") and format_of(case.model) in V2_FORMATS and not case.model.get("args"):
            if port != str(TRITON_PORTS[kind]):
                what = f"goes to port {port}, and KServe's Triton has {kind} on {TRITON_PORTS[kind]}"
                yield at, what
            continue
        others = [other for other in pod.containers if other is not container]
        listens = {str(number(other, f"--{kind}{mark}port")) for other in others for mark in "_-"} - {"None"}
        if listens and port not in listens:
            yield at, f"goes to port {port}, and its neighbour has {kind} on {', '.join(sorted(listens))}"


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
    model = case.model
    for pod, container, place in case.transformers():
        is_separate = pod.component == "transformer" and argument(container, "--predictor_protocol") == "grpc-v2"
        is_default = model and model.get("runtime", "kserve-tritonserver") == "kserve-tritonserver"
        if is_separate and is_default and format_of(model) in V2_FORMATS and not model.get("ports"):
            what = "speaks gRPC, and KServe's Triton declares no port for it: give the model the port 9000, named h2c"
            yield flag_place(container, place, "--predictor_protocol"), what


@rule(
    "KSV211",
    WARNING,
    "a collocated transformer without --model_name",
    why="KServe names the model of a separate transformer; in one pod nothing is injected, and the server's default "
    "is `model`, so the URLs with the service's name answer 404.",
    mend="--model_name, as the InferenceService is called.",
    source="v1beta1/transformer_custom.go, python/kserve/kserve/model_server.py",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     model: {modelFormat: {name: triton}, runtimeVersion: 25.08-py3, storageUri: s3://models/photo}
     containers:
       - name: transformer-container
         image: example.com/photo:1
         args:
+          - --model_name=photo
           - --http_port=8090
           - --predictor_protocol=v2
           - --predictor_host=localhost:8080
""",
)
def collocated_has_a_name(case: Case) -> Found:
    for pod, container, place in case.transformers():
        if pod.component == "predictor" and argument(container, "--model_name") is None:
            yield place, "has no --model_name: KServe adds it to a separate transformer alone"


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
    "KSV213",
    ERROR,
    "a transformer with --workers",
    why="KServe's workers are new processes that do not get the predictor's settings: every request answers 501. "
    "Metrics are each process's own, too.",
    mend="One worker, and more replicas.",
    source="python/kserve/kserve/context.py (since 0.16, #4526), #2979",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
   transformer:
     containers:
       - name: kserve-container
         image: example.com/photo:1
-        args: [--workers=4]
+        args: [--workers=1]
""",
)
def transformer_has_one_worker(case: Case) -> Found:
    for _, container, place in case.transformers():
        workers = number(container, "--workers")
        if workers is not None and workers > 1 and not is_ours(container):
            what = f"--workers is {workers}: the others do not know the predictor and answer 501; one, and replicas"
            yield flag_place(container, place, "--workers"), what


@rule(
    "KSV214",
    WARNING,
    "--predictor_request_retries",
    why="Over REST it does nothing, since the retrying transport is built and dropped; over gRPC the value 1 fails "
    "every call, because gRPC counts attempts and wants two.",
    mend="Leave it away; retry in the transformer's own code.",
    source="python/kserve/kserve/inference_client.py",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
   transformer:
     containers:
       - name: kserve-container
         image: example.com/photo:1
-        args: [--predictor_request_retries=3]
+        args: [--predictor_protocol=v1]
""",
)
def retries_do_nothing(case: Case) -> Found:
    for _, container, place in case.transformers():
        retries = number(container, "--predictor_request_retries")
        if not retries or is_ours(container):
            continue
        over_grpc = argument(container, "--predictor_protocol") == "grpc-v2"
        at = flag_place(container, place, "--predictor_request_retries")
        if not over_grpc:
            yield at, "--predictor_request_retries does nothing over REST"
        elif retries == 1:
            yield at, "--predictor_request_retries=1 fails every call over gRPC: 0, or 2 and more"


@rule(
    "KSV215",
    WARNING,
    "an environment variable for the predictor's address",
    why="KServe's server reads flags; no part of it reads PREDICTOR_HOST or PREDICTOR_PROTOCOL.",
    mend="--predictor_host and --predictor_protocol.",
    source="python/kserve/kserve/model_server.py",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
   transformer:
     containers:
       - name: kserve-container
         image: example.com/photo:1
-        env: [{name: PREDICTOR_PROTOCOL, value: v1}]
+        args: [--predictor_protocol=v1]
""",
)
def no_address_in_the_environment(case: Case) -> Found:
    for _, container, place in case.transformers():
        for key in ("PREDICTOR_HOST", "PREDICTOR_PROTOCOL"):
            used = any(f"$({key})" in str(word) for word in container.get("args") or [])
            if key in environment(container) and not used:
                yield (*place, "env"), f"{key} is read by nobody in KServe: pass --{key.lower()}"


@rule(
    "KSV216",
    ERROR,
    "STORAGE_URI on a collocated transformer",
    why="The model is the other container's; the webhook refuses the variable here.",
    mend="At the model: storageUri. Or on kserve-container.",
    source="v1beta1/inference_service_validation.go",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     model: {modelFormat: {name: triton}, runtimeVersion: 25.08-py3, storageUri: s3://models/photo}
     containers:
       - name: transformer-container
         image: example.com/photo:1
         args: [--model_name=photo, --http_port=8090, --predictor_protocol=v2, "--predictor_host=localhost:8080"]
-        env: [{name: STORAGE_URI, value: s3://models/photo}]
""",
)
def no_storage_for_a_transformer(case: Case) -> Found:
    for _, container, place in case.containers():
        if container.get("name") == "transformer-container" and "STORAGE_URI" in environment(container):
            yield (*place, "env"), "KServe refuses STORAGE_URI on transformer-container: it belongs to the predictor"


@rule(
    "KSV217",
    WARNING,
    "a collocated transformer by another name",
    why="KServe knows it by the name transformer-container alone: else the Service has the predictor's ports, and "
    "requests go past it.",
    mend="name: transformer-container.",
    source="pkg/constants/constants.go, #2238",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     model: {modelFormat: {name: triton}, runtimeVersion: 25.08-py3, storageUri: s3://models/photo}
     containers:
-      - name: photo-transformer
+      - name: transformer-container
         image: example.com/photo:1
         args: [--model_name=photo, --http_port=8090, --predictor_protocol=v2, "--predictor_host=localhost:8080"]
""",
)
def collocated_is_called_so(case: Case) -> Found:
    for number_, container in enumerate(case.predictor.get("containers") or []):
        called = str(container.get("name"))
        if called not in ("transformer-container", "kserve-container") and "transformer" in called:
            place = ("spec", "predictor", "containers", number_, "name")
            yield (
                place,
                f"is {called!r}: KServe sends requests to a transformer by the name transformer-container alone",
            )


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
