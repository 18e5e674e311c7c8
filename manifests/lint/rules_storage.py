"""Where the model comes from, and the runtime that serves it."""

from __future__ import annotations

import re
from typing import Any

from kservekit.manifests.lint.case import V2_FORMATS, Case, environment, format_of, namespace
from kservekit.manifests.lint.rule import ERROR, NOTE, WARNING, Found, rule
from kservekit.manifests.lint.rules_scaling import CLASS
from kservekit.manifests.pods import FORMATS, Document, argument, model_of, name
from kservekit.manifests.schema import Place, kserve_versions

SCHEMES = ("gs", "s3", "pvc", "file", "https", "http", "hdfs", "webhdfs", "oci", "oci+native", "hf")

TRITON_VERSIONS = {"tensorrt": ("8",), "tensorflow": ("1", "2"), "onnx": ("1",), "pytorch": ("1",), "triton": ("2",)}
"""What kserve-tritonserver supports."""

RUNTIMES = ("ServingRuntime", "ClusterServingRuntime")


@rule(
    "KSV801",
    ERROR,
    "two places for one model",
    why="The webhook takes one of storageUri, storageUris and storage.path.",
    mend="Leave one.",
    source="v1beta1/inference_service_validation.go",
    example="""
   predictor:
-    storageUris: [{uri: s3://models/photo, mountPath: /mnt/models/photo}]
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def storage_is_one(case: Case) -> Found:
    key, model = model_of(case.predictor)
    having = [field for field in ("storageUri",) if model.get(field)]
    having += ["storageUris"] if case.predictor.get("storageUris") else []
    having += ["storage.path"] if (model.get("storage") or {}).get("path") else []
    if len(having) > 1:
        yield ("spec", "predictor", key), f"has {' and '.join(having)}: KServe takes one of them"


@rule(
    "KSV802",
    ERROR,
    "a URI that no storage serves",
    why="The webhook takes the prefixes that KServe's storage initializer knows, or that a ClusterStorageContainer "
    "names.",
    mend="gs, s3, pvc, hf, oci, https, hdfs, webhdfs; or a ClusterStorageContainer among these files.",
    source="v1beta1/utils.go:48",
    example="""
   predictor:
     model:
       modelFormat: {name: sklearn}
-      storageUri: s3a://models/photo
+      storageUri: s3://models/photo
""",
)
def scheme_is_known(case: Case) -> Found:
    known = {*SCHEMES}
    versions = kserve_versions()
    if versions.index(case.kserve) > versions.index("0.20"):
        known |= {"oci+fetch"}
    for place, uri in _uris(case):
        scheme, is_uri, _ = uri.partition("://")
        if is_uri and scheme not in known and scheme != "placeholder" and not case.around.of("ClusterStorageContainer"):
            yield place, f"is {uri[:60]!r}: KServe knows {', '.join(sorted(known))}"


@rule(
    "KSV803",
    ERROR,
    "storage parameters for a scheme that has none",
    why="The webhook takes storage beside a storageUri of s3, hdfs or webhdfs alone.",
    mend="A service account's secret for the others.",
    source="v1beta1/inference_service_validation.go",
    example="""
   predictor:
     model:
       modelFormat: {name: sklearn}
       storageUri: hf://org/photo
-      storage: {key: minio}
""",
)
def storage_goes_with_its_scheme(case: Case) -> Found:
    key, model = model_of(case.predictor)
    scheme = str(model.get("storageUri", "")).partition("://")[0]
    if model.get("storage") and model.get("storageUri") and scheme not in ("s3", "hdfs", "webhdfs"):
        yield ("spec", "predictor", key, "storage"), f"does not go with {scheme}://: s3, hdfs or webhdfs alone"


@rule(
    "KSV804",
    ERROR,
    "mount paths that KServe refuses",
    why="In storageUris a mountPath is absolute and without '..', and all that are no claims lie in one folder that "
    "is not /.",
    mend="/mnt/models/first, /mnt/models/second.",
    source="v1beta1/inference_service_validation.go",
    example="""
   predictor:
     storageUris:
-      - {uri: s3://models/photo, mountPath: /mnt/../photo}
+      - {uri: s3://models/photo, mountPath: /mnt/models/photo}
     model: {modelFormat: {name: sklearn}}
""",
)
def mount_paths_are_taken(case: Case) -> Found:
    parents = set()
    for number, item in enumerate(case.predictor.get("storageUris") or []):
        path, place = item.get("mountPath"), ("spec", "predictor", "storageUris", number)
        if path is None:
            continue
        if not path.startswith("/") or ".." in path.split("/"):
            yield place, f"mounts at {path[:60]!r}: expected an absolute path without '..'"
        elif not str(item.get("uri")).startswith("pvc://"):
            parents.add(path.rstrip("/").rpartition("/")[0])
    if len(parents) > 1 or "" in parents:
        what = f"lies in {' and '.join(sorted(parent or '/' for parent in parents))}: expected one folder that is not /"
        yield ("spec", "predictor", "storageUris"), what


@rule(
    "KSV805",
    WARNING,
    "a version of the runtime that is not taken",
    why="runtimeVersion replaces an image's tag; an image with a digest has none to replace.",
    mend="One of the two.",
    source="v1beta1/predictor_model.go",
    example="""
   predictor:
     model:
       modelFormat: {name: sklearn}
       storageUri: s3://models/photo
-      runtimeVersion: v0.20.0
       image: example.com/server@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
""",
)
def version_is_taken(case: Case) -> Found:
    key, model = model_of(case.predictor)
    if model.get("runtimeVersion") and "@sha256:" in _image(case, model):
        yield ("spec", "predictor", key, "runtimeVersion"), "is ignored: the image has a digest and no tag"


@rule(
    "KSV806",
    WARNING,
    "a cache from which nobody loads",
    why="A service takes a model from the nodes' disks where its storageUri begins with the cache's sourceModelUri, "
    "letter by letter; else it downloads it, and the disks are filled for nothing.",
    mend="The same URI in both.",
    source="v1alpha1/local_model_cache_types.go, #3869",
    kinds=("LocalModelCache", "LocalModelNamespaceCache"),
    example="""
 apiVersion: serving.kserve.io/v1alpha1
 kind: LocalModelCache
 metadata: {name: photo}
 spec:
-  sourceModelUri: s3://models/foto
+  sourceModelUri: s3://models/photo
   modelSize: 1Gi
   nodeGroups: [workers]
 ---
 apiVersion: serving.kserve.io/v1beta1
 kind: InferenceService
 metadata: {name: photo, annotations: {serving.kserve.io/deploymentMode: Standard}}
 spec:
   predictor:
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def cache_is_used(case: Case) -> Found:
    services = case.around.of("InferenceService")
    predictors = [(service.get("spec") or {}).get("predictor") or {} for service in services]
    loaded = [str(model_of(predictor)[1].get("storageUri")) for predictor in predictors]
    uri = str(case.spec.get("sourceModelUri", ""))
    if loaded and not any(item.startswith(uri) for item in loaded):
        what = f"is {uri!r}, from which none of these InferenceServices loads: {', '.join(sorted({*loaded}))}"
        yield ("spec", "sourceModelUri"), what


@rule(
    "KSV811",
    ERROR,
    "a format's version that no runtime of KServe's serves",
    why="KServe's runtime for Triton names TensorRT 8, TensorFlow 1 and 2, ONNX 1, PyTorch 1 and Triton 2; another "
    "version finds no runtime, and the service stays NoSupportingRuntime.",
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
    is_kserves = model.get("runtime", "kserve-tritonserver") == "kserve-tritonserver"
    if not version or not is_kserves or called not in TRITON_VERSIONS or version in TRITON_VERSIONS[called]:
        return
    if called in ("tensorflow", "pytorch") and not model.get("runtime"):
        return  # others serve these, too
    if not any(_supports(runtime, model) for kind in RUNTIMES for runtime in case.around.of(kind)):
        known = " or ".join(TRITON_VERSIONS[called])
        what = f"is {version}: KServe's Triton has {called} {known}, so no runtime serves it"
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
    is_default = model.get("runtime", "kserve-tritonserver") == "kserve-tritonserver"
    says_none = not model.get("runtimeVersion") and not model.get("image")
    own = any(_supports(runtime, model) for kind in RUNTIMES for runtime in case.around.of(kind))
    if is_default and says_none and format_of(model) in V2_FORMATS and not own:
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
    is_triton = model.get("runtime") == "kserve-tritonserver"
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
    "KSV817",
    ERROR,
    "several nodes, and storage that they do not share",
    why="With workerSpec the webhook wants a storageUri of pvc:// or oci://, and autoscalerClass none.",
    mend="A claim that many nodes mount, and serving.kserve.io/autoscalerClass: none.",
    source="v1beta1/inference_service_validation.go",
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
-    model: {modelFormat: {name: huggingface}, storageUri: s3://models/photo}
+    model: {modelFormat: {name: huggingface}, storageUri: pvc://models/photo}
     workerSpec: {pipelineParallelSize: 2}
""",
)
def nodes_share_storage(case: Case) -> Found:
    if "workerSpec" in case.predictor:
        key, model = model_of(case.predictor)
        if not str(model.get("storageUri", "")).startswith(("pvc://", "oci://")):
            yield ("spec", "predictor", *filter(None, [key])), "has workerSpec, which needs a storageUri of pvc or oci"
        if case.annotations.get(CLASS) != "none":
            yield ("spec", "predictor", "workerSpec"), f"needs {CLASS}: none"


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


def _uris(case: Case) -> list[tuple[Place, str]]:
    found: list[tuple[Place, str]] = []
    for key in ("model", *FORMATS):
        uri = (case.predictor.get(key) or {}).get("storageUri")
        if uri:
            found.append((("spec", "predictor", key, "storageUri"), str(uri)))
    for number, item in enumerate(case.predictor.get("storageUris") or []):
        found.append((("spec", "predictor", "storageUris", number, "uri"), str(item.get("uri", ""))))
    for number, container in enumerate(case.predictor.get("containers") or []):
        uri = environment(container).get("STORAGE_URI", {}).get("value")
        if uri:
            found.append((("spec", "predictor", "containers", number, "env"), str(uri)))
    return found


def _supports(runtime: Document, model: dict[str, Any]) -> bool:
    """Whether a runtime lists the format, in its version where the model says one."""
    version = (model.get("modelFormat") or {}).get("version")
    return any(
        item.get("name") == format_of(model) and (not version or item.get("version") in (None, version))
        for item in (runtime.get("spec") or {}).get("supportedModelFormats") or []
        if isinstance(item, dict)
    )


def _image(case: Case, model: dict[str, Any]) -> str:
    runtime = case.runtime(model["runtime"]) if model.get("runtime") else None
    containers = ((runtime or {}).get("spec") or {}).get("containers") or [{}]
    return str(model.get("image") or containers[0].get("image", ""))
