"""KServe's logger and batcher."""

from __future__ import annotations

from typing import Any

from kservekit.manifests.lint.case import Case
from kservekit.manifests.lint.rule import ERROR, WARNING, Found, rule
from kservekit.manifests.lint.rules_ports import says_http2
from kservekit.manifests.pods import model_of


@rule(
    "KSV907",
    WARNING,
    "a batcher that batches nothing",
    why="KServe's batcher reads v1 :predict over HTTP alone, runs one batch at a time, drops headers and answers 200 "
    "on failure.",
    mend="Triton's dynamic_batching in config.pbtxt; kservekit repository build --batch-delay-us writes it.",
    source="pkg/batcher/handler.go, #2275, #2865",
    example="""
   predictor:
-    batcher: {maxBatchSize: 32, maxLatency: 100}
     model:
       modelFormat: {name: triton}
       runtimeVersion: 25.08-py3
       storageUri: s3://models/photo
""",
)
def batcher_batches(case: Case) -> Found:
    for pod in case.pods:
        batcher = pod.spec.get("batcher")
        if batcher is None:
            continue
        speaks_v1 = "transformer" in case.spec and pod.component == "transformer"
        if case.speaks_v2_only and not speaks_v1:
            yield (*pod.place, "batcher"), "sees v1 :predict alone, and this predictor speaks v2: batch in Triton"
        if "timeout" in batcher:
            yield (*pod.place, "batcher", "timeout"), "is read by nobody: maxLatency is the wait"


@rule(
    "KSV908",
    WARNING,
    "a logger in front of gRPC",
    why="KServe's logger and batcher stand before the first port and read HTTP/1.1: gRPC calls are not logged, or "
    "break.",
    mend="Log in the server, or over REST.",
    source="pkg/logger/handler.go, #2251",
    modes=("Standard", "Knative"),
    example="""
   predictor:
-    logger: {mode: all, url: "http://sink.team"}
     containers:
       - name: kserve-container
         image: example.com/photo:1
         ports: [{name: h2c, containerPort: 8081, protocol: TCP}]
""",
)
def logger_reads_http(case: Case) -> Found:
    for pod in case.pods:
        for sidecar in ("logger", "batcher"):
            parts = [model_of(pod.spec)[1], *(pod.spec.get("containers") or [])]
            first: dict[str, Any] = next((part["ports"][0] for part in parts if part.get("ports")), {})
            if sidecar in pod.spec and says_http2(first):
                yield (*pod.place, sidecar), f"reads HTTP/1.1, and the first port, {first['name']}, speaks gRPC"


@rule(
    "KSV909",
    ERROR,
    "a logger that KServe refuses",
    why="The webhook takes the modes all, request and response, and a storage with path, parameters and key.",
    mend="One of the three modes; all three of the storage's fields.",
    source="v1beta1/inference_service_validation.go, #4589",
    example="""
   predictor:
     logger:
       mode: all
-      storage: {path: /logs}
+      storage: {path: /logs, key: logger, parameters: {type: s3, bucket: logs}}
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def logger_is_taken(case: Case) -> Found:
    for pod in case.pods:
        logger = pod.spec.get("logger") or {}
        if logger.get("mode") not in (None, "all", "request", "response"):
            yield (*pod.place, "logger", "mode"), f"is {logger['mode']!r}: expected all, request or response"
        storage = logger.get("storage")
        missing = [key for key in ("path", "parameters", "key") if storage is not None and not storage.get(key)]
        if missing:
            yield (*pod.place, "logger", "storage"), f"has no {', '.join(missing)}: KServe refuses it"
