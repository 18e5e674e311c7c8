"""The runtime that serves the model, KServe's own for Triton above all."""

from __future__ import annotations

import re
from typing import Any

from kservekit.manifests.lint.case import KSERVES_TRITON, Case, environment, format_of, namespace
from kservekit.manifests.lint.rule import ERROR, NOTE, WARNING, Found, rule
from kservekit.manifests.pods import Document, argument, model_of, name

TRITON_VERSIONS = {"tensorrt": ("8",), "tensorflow": ("1", "2"), "onnx": ("1",), "pytorch": ("1",), "triton": ("2",)}
"""What kserve-tritonserver supports."""

RUNTIMES = ("ServingRuntime", "ClusterServingRuntime")


@rule(
    "KSV811",
    WARNING,
    "a format's version that no runtime of KServe's serves",
    why="KServe's runtime for Triton names TensorRT 8, TensorFlow 1 and 2, ONNX 1, PyTorch 1 and Triton 2; another "
    "version finds no runtime, unless the cluster has one of yours, and the service stays NoSupportingRuntime.",
    mend="Leave the version away, or bring a ServingRuntime of your own.",
    source="config/runtimes/kserve-tritonserver.yaml",
    example="""
   predictor:
     model:
-      modelFormat: {name: triton, version: "3"}
+      modelFormat: {name: triton}
       runtimeVersion: 25.08-py3
       storageUri: s3://models/photo
""",
)
def version_has_a_runtime(case: Case) -> Found:
    key, model = model_of(case.predictor)
    called, version = format_of(model), (model.get("modelFormat") or {}).get("version")
    is_kserves = model.get("runtime", KSERVES_TRITON) == KSERVES_TRITON
    if not version or not is_kserves or called not in TRITON_VERSIONS or version in TRITON_VERSIONS[called]:
        return
    if called in ("tensorflow", "pytorch") and not model.get("runtime"):
        return  # others serve these, too
    if not _has_a_runtime(case, model):
        known = " or ".join(TRITON_VERSIONS[called])
        what = f"is {version}: KServe's Triton has {called} {known}, and these files have no runtime"
        yield ("spec", "predictor", key, "modelFormat", "version"), what


@rule(
    "KSV812",
    ERROR,
    "a runtime that does not serve this model",
    why="The named runtime must be in the service's namespace (or the cluster's), enabled, and list the format, its "
    "version and the protocol; else the webhook or the controller stops.",
    mend="Add it to supportedModelFormats, or name another runtime.",
    source="v1beta1/predictor_model.go, pkg/controller/v1beta1/inferenceservice/utils",
    example="""
 apiVersion: serving.kserve.io/v1alpha1
 kind: ServingRuntime
 metadata: {name: mine}
 spec:
   supportedModelFormats:
-    - name: onnx
+    - name: sklearn
   protocolVersions: [v1]
   containers: [{name: kserve-container, image: example.com/server:1}]
 ---
 apiVersion: serving.kserve.io/v1beta1
 kind: InferenceService
 metadata: {name: photo, annotations: {serving.kserve.io/deploymentMode: Standard}}
 spec:
   predictor:
     model: {modelFormat: {name: sklearn}, runtime: mine, storageUri: s3://models/photo}
""",
)
def runtime_serves_it(case: Case) -> Found:
    key, model = model_of(case.predictor)
    called = model.get("runtime")
    if not called:
        return
    place = ("spec", "predictor", key, "runtime")
    runtime = case.runtime(called)
    if runtime is None:
        elsewhere = [found for found in case.around.of("ServingRuntime") if name(found) == called]
        if elsewhere:
            what = (
                f"is {called!r}, which is in the namespace {namespace(elsewhere[0])!r}: bring it to {case.namespace!r}"
            )
            yield place, what
        return
    spec = runtime.get("spec") or {}
    formats = [item for item in spec.get("supportedModelFormats") or [] if item.get("name") == format_of(model)]
    if spec.get("disabled"):
        yield place, f"is {called!r}, which is disabled"
    elif format_of(model) and not formats:
        listed = ", ".join(str(item.get("name")) for item in spec.get("supportedModelFormats") or [])
        yield place, f"is {called!r}, which does not list {format_of(model)}: it has {listed or 'no formats'}"
    elif not _supports(runtime, model):
        version = (model.get("modelFormat") or {}).get("version")
        known = ", ".join(str(item.get("version", "any")) for item in formats)
        yield place, f"is {called!r}, which does not list {format_of(model)} {version}: it has {known}"
    protocol = model.get("protocolVersion")
    if protocol and spec.get("protocolVersions") and protocol not in spec["protocolVersions"]:
        yield place, f"is {called!r}, which speaks {', '.join(spec['protocolVersions'])} and not {protocol}"


@rule(
    "KSV813",
    WARNING,
    "a Triton that loads nothing",
    why="Without storageUri and storage KServe adds --model-control-mode=explicit, also where storageUris is used: "
    "Triton starts, is ready, and knows no model.",
    mend="model.storageUri, or --load-model=*.",
    source="v1beta1/inference_service_defaults.go:479",
    example="""
   predictor:
     model:
       modelFormat: {name: triton}
       runtimeVersion: 25.08-py3
+      storageUri: s3://models/photo
""",
)
def triton_loads_something(case: Case) -> Found:
    key, model = model_of(case.predictor)
    has_storage = model.get("storageUri") or model.get("storage")
    if format_of(model) == "triton" and not has_storage and argument(model, "--load-model") is None:
        what = "has no storageUri, so KServe starts Triton with --model-control-mode=explicit and nothing is loaded"
        yield ("spec", "predictor", key), what


@rule(
    "KSV814",
    NOTE,
    "the Triton of June 2023",
    why="KServe's runtime for Triton starts the image 23.05; TensorRT plans of a newer one do not load there.",
    mend="runtimeVersion with the release that built the models, such as 25.08-py3.",
    source="config/runtimes/kustomization.yaml, PR #2992",
    example="""
   predictor:
     model:
       modelFormat: {name: triton}
+      runtimeVersion: 25.08-py3
       storageUri: s3://models/photo
""",
)
def triton_has_a_version(case: Case) -> Found:
    key, model = model_of(case.predictor)
    says_none = not model.get("runtimeVersion") and not model.get("image")
    if case.is_kserves_triton and says_none and not _has_a_runtime(case, model):
        yield ("spec", "predictor", key), "says no runtimeVersion: KServe takes Triton 23.05"


@rule(
    "KSV815",
    ERROR,
    "TensorFlow in a Triton that has it no longer",
    why="Triton 25.02 was the last with the TensorFlow backend.",
    mend="runtimeVersion 25.02-py3 or older, or the model as ONNX.",
    source="Triton's release notes 25.03",
    example="""
   predictor:
     model:
       modelFormat: {name: tensorflow}
       protocolVersion: v2
       runtime: kserve-tritonserver
-      runtimeVersion: 25.08-py3
+      runtimeVersion: 25.02-py3
       storageUri: s3://models/photo
""",
)
def tensorflow_is_in_triton(case: Case) -> Found:
    key, model = model_of(case.predictor)
    found = re.match(r"(\d\d)\.(\d\d)", str(model.get("runtimeVersion", "")))
    is_triton = model.get("runtime") == KSERVES_TRITON
    if is_triton and format_of(model) == "tensorflow" and found and (int(found[1]), int(found[2])) > (25, 2):
        what = f"is {model['runtimeVersion']}, and 25.02 was the last Triton with TensorFlow"
        yield ("spec", "predictor", key, "runtimeVersion"), what


@rule(
    "KSV816",
    ERROR,
    "a protocol that the server does not speak",
    why="Triton speaks v2 and grpc-v2; with v1 no runtime is found.",
    mend="protocolVersion: v2, or leave it away.",
    source="config/runtimes/kserve-tritonserver.yaml, #695",
    example="""
   predictor:
     model:
       modelFormat: {name: triton}
       runtimeVersion: 25.08-py3
-      protocolVersion: v1
+      protocolVersion: v2
       storageUri: s3://models/photo
""",
)
def protocol_is_spoken(case: Case) -> Found:
    key, model = model_of(case.predictor)
    if model.get("protocolVersion") in ("v1", "grpc-v1") and format_of(model) in ("triton", "tensorrt"):
        what = f"is {model['protocolVersion']}: Triton speaks v2 and grpc-v2"
        yield ("spec", "predictor", key, "protocolVersion"), what


@rule(
    "KSV818",
    ERROR,
    "a runtime without kserve-container",
    why="KServe puts the model's fields into the container called kserve-container; a runtime without one fails every "
    "service that names it.",
    mend="Call the server's container so.",
    source="pkg/controller/v1beta1/inferenceservice/utils",
    kinds=RUNTIMES,
    example="""
 apiVersion: serving.kserve.io/v1alpha1
 kind: ServingRuntime
 metadata: {name: mine}
 spec:
   supportedModelFormats: [{name: sklearn}]
   containers:
-    - {name: server, image: example.com/server:1}
+    - {name: kserve-container, image: example.com/server:1}
""",
)
def runtime_has_its_container(case: Case) -> Found:
    names = [container.get("name") for container in case.spec.get("containers") or []]
    if "kserve-container" not in names and not case.spec.get("multiModel"):
        yield ("spec", "containers"), f"has none called kserve-container: {', '.join(map(str, names)) or 'it is empty'}"


@rule(
    "KSV819",
    ERROR,
    "PYTHONPATH in a runtime",
    why="The webhook refuses the variable PYTHONPATH in every container since 0.18.",
    mend="Set it in the image.",
    source="KServe 0.18",
    kinds=RUNTIMES,
    example="""
 apiVersion: serving.kserve.io/v1alpha1
 kind: ServingRuntime
 metadata: {name: mine}
 spec:
   supportedModelFormats: [{name: sklearn}]
   containers:
     - name: kserve-container
       image: example.com/server:1
-      env: [{name: PYTHONPATH, value: /app}]
""",
)
def runtime_has_no_python_path(case: Case) -> Found:
    for number, container in enumerate(case.spec.get("containers") or []):
        if "PYTHONPATH" in environment(container):
            yield ("spec", "containers", number, "env"), "KServe refuses PYTHONPATH since 0.18: set it in the image"


def _has_a_runtime(case: Case, model: dict[str, Any]) -> bool:
    """Whether one of these files' runtimes supports it."""
    return any(_supports(runtime, model) for kind in RUNTIMES for runtime in case.around.of(kind))


def _supports(runtime: Document, model: dict[str, Any]) -> bool:
    """Whether a runtime lists the format, in its version where the model says one."""
    version = (model.get("modelFormat") or {}).get("version")
    return any(
        item.get("name") == format_of(model) and (not version or item.get("version") in (None, version))
        for item in (runtime.get("spec") or {}).get("supportedModelFormats") or []
    )
