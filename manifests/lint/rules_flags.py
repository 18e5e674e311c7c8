"""The flags of a transformer: what KServe does not add, ignores, or takes wrongly."""

from __future__ import annotations

from kservekit.manifests.lint.case import Case, environment, flag_place, number
from kservekit.manifests.lint.rule import ERROR, WARNING, Found, rule
from kservekit.manifests.pods import argument, is_ours

PROTOCOLS = ("v1", "v2", "grpc-v2")


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
