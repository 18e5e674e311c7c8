"""A transformer in its predictor's pod, where KServe adds nothing."""

from __future__ import annotations

from kservekit.manifests.lint.case import TRITON_PORTS, V2_FORMATS, Case, environment, flag_place, format_of, number
from kservekit.manifests.lint.rule import ERROR, WARNING, Found, rule
from kservekit.manifests.pods import MODELS, argument, model_of


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
    for container, place in case.collocated():
        if not argument(container, "--predictor_host"):
            yield place, "has no --predictor_host: KServe adds it to a separate transformer alone; write localhost:8001"


@rule(
    "KSV219",
    ERROR,
    "several containers, and the first is not kserve-container",
    why="Of a predictor without model KServe writes the container kserve-container over the first in the list: another "
    "one that stands there is lost, and where none is called so the controller ends in a nil pointer. A single one is "
    "renamed.",
    mend="name: kserve-container, and first.",
    source="pkg/controller/v1beta1/inferenceservice/components/predictor.go, v1beta1/predictor_custom.go",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     containers:
-      - name: photo
+      - name: kserve-container
         image: example.com/photo:1
         ports: [{containerPort: 8080, protocol: TCP}]
       - name: exporter
         image: example.com/exporter:1
""",
)
def first_is_the_models(case: Case) -> Found:
    containers = case.predictor.get("containers") or []
    if len(containers) < 2 or model_of(case.predictor)[0]:
        return
    names = [container.get("name") for container in containers]
    if names[0] and names[0] != MODELS:
        lost = f"is lost: KServe writes {MODELS} over the first" if MODELS in names else f"and none is {MODELS}"
        yield ("spec", "predictor", "containers", 0, "name"), f"is {names[0]!r}, {lost}: put {MODELS} first"


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
    for container, place in case.collocated():
        if argument(container, "--model_name") is None:
            yield place, "has no --model_name: KServe adds it to a separate transformer alone"


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
