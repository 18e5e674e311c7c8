"""Where the model comes from."""

from __future__ import annotations

from typing import Any

from kservekit.manifests.lint.case import CLASS, Case, environment
from kservekit.manifests.lint.rule import ERROR, WARNING, Found, rule
from kservekit.manifests.pods import FORMATS, model_of
from kservekit.manifests.schema import Place, kserve_versions

GPU_KINDS = "serving.kserve.io/gpu-resource-types"

KNOWN_TO_NODES = {
    *("cpu", "memory", "storage", "ephemeral-storage"),
    *("nvidia.com/gpu", "amd.com/gpu", "intel.com/gpu", "habana.ai/gaudi"),
}
"""What a pod of several nodes may ask for, unless the service or KServe's ConfigMap names more."""

SCHEMES = ("gs", "s3", "pvc", "file", "https", "http", "hdfs", "webhdfs", "oci", "oci+native", "hf")


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
    source="v1beta1/utils.go:48; kserve_storage.py of 0.21",
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
        known |= {"oci+fetch", "modelscope", "ms"}
    for place, uri in _uris(case):
        scheme, is_uri, _ = uri.partition("://")
        if is_uri and scheme not in known and scheme != "placeholder" and not case.around.of("ClusterStorageContainer"):
            listed = ", ".join(sorted(known))
            yield place, f"is {uri[:60]!r}: KServe knows {listed}, and what a ClusterStorageContainer names"


@rule(
    "KSV803",
    ERROR,
    "storage parameters for a scheme that has none",
    why="The webhook takes storage beside a storageUri of s3, hdfs or webhdfs alone, and one of these as its "
    "parameters' type.",
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
    storage = model.get("storage") or {}
    said = model.get("storageUri") or (storage.get("parameters") or {}).get("type") or "s3"
    scheme = str(said).partition("://")[0]
    if storage and scheme not in ("s3", "hdfs", "webhdfs"):
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
    parents, claims = set(), set()
    for number, item in enumerate(case.predictor.get("storageUris") or []):
        path, place = item.get("mountPath"), ("spec", "predictor", "storageUris", number)
        if path is None:
            continue
        if not path.startswith("/") or ".." in path.split("/"):
            yield place, f"mounts at {path[:60]!r}: expected an absolute path without '..'"
        elif not str(item.get("uri")).startswith("pvc://"):
            parents.add(path.rstrip("/").rpartition("/")[0])
        elif path in claims:
            yield place, f"mounts a second claim at {path[:60]!r}"
        else:
            claims.add(path)
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
    "KSV817",
    ERROR,
    "several nodes that KServe refuses",
    why="With workerSpec the webhook wants a storageUri of pvc:// or oci://, autoscalerClass none, one container a "
    "worker, a GPU that it knows, and the numbers of GPUs and nodes in its own fields and not in the model's "
    "environment.",
    mend="A claim that many nodes mount, serving.kserve.io/autoscalerClass: none, and the sizes in workerSpec.",
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
def nodes_are_taken(case: Case) -> Found:
    if "workerSpec" not in case.predictor:
        return
    key, model = model_of(case.predictor)
    workers, place = case.predictor["workerSpec"], ("spec", "predictor", "workerSpec")
    if key and not str(model.get("storageUri", "")).startswith(("pvc://", "oci://")):
        yield ("spec", "predictor", key), "has workerSpec, which needs a storageUri of pvc or oci"
    if key and case.autoscaler != "none":
        yield place, f"needs {CLASS}: none"
    for name, field in (
        ("TENSOR_PARALLEL_SIZE", "tensorParallelSize"),
        ("PIPELINE_PARALLEL_SIZE", "pipelineParallelSize"),
    ):
        if name in environment(model):
            yield ("spec", "predictor", key, "env"), f"has {name}, which KServe refuses: workerSpec.{field}"
    if len(workers.get("containers") or []) > 1:
        yield (*place, "containers"), "has more than one container, which KServe refuses"
    if workers.get("pipelineParallelSize", 1) < 1 or workers.get("tensorParallelSize", 1) < 1:
        yield place, "has a size below 1"
    parts: list[tuple[Place, dict[str, Any]]] = [(("spec", "predictor", key), model)] if key else []
    parts += [((*place, "containers", number), c) for number, c in enumerate(workers.get("containers") or [])]
    for at, part in parts:
        for kind in sorted(_resources(part) - KNOWN_TO_NODES):
            if kind not in case.annotations.get(GPU_KINDS, ""):
                yield (*at, "resources"), f"asks for {kind}, which KServe refuses without {GPU_KINDS}"


def _resources(part: dict[str, Any]) -> set[str]:
    found = part.get("resources") or {}
    return {str(kind) for side in ("limits", "requests") for kind in found.get(side) or {}}


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


def _image(case: Case, model: dict[str, Any]) -> str:
    containers = case.runtime_of(model).get("containers") or [{}]
    return str(model.get("image") or containers[0].get("image", ""))
