"""Pods: GPUs, power, what Knative refuses of them, and KServe's sidecars."""

from __future__ import annotations

from typing import Any

from kservekit.manifests.lint.case import Case, format_of
from kservekit.manifests.lint.rule import ERROR, WARNING, Found, rule
from kservekit.manifests.pods import FORMATS, gpus, model_of
from kservekit.manifests.schema import Place

REFUSED_BY_KNATIVE = {
    "terminationGracePeriodSeconds": "the component's timeout is the grace period there",
    "lifecycle": "Knative's own proxy drains",
    "initContainers": "it needs the feature kubernetes.podspec-init-containers",
    "hostNetwork": "Knative has no such thing",
    "shareProcessNamespace": "Knative has no such thing",
}

_GPU = ("nvidia.com/", "amd.com/")
_SPACE = "pod-security.kubernetes.io/enforce"


@rule(
    "KSV901",
    ERROR,
    "a GPU that is not asked for",
    why="A pod gets a GPU by its limits alone. Without one TensorRT finds no device, and Kubernetes refuses a GPU in "
    "requests that is not in limits.",
    mend="resources.limits with nvidia.com/gpu (or a MIG slice).",
    source="Kubernetes' device plugins, #3287",
    example="""
   predictor:
     model:
       modelFormat: {name: tensorrt}
       runtimeVersion: 25.08-py3
       storageUri: s3://models/photo
+      resources: {limits: {nvidia.com/gpu: "1"}}
""",
)
def gpu_is_in_the_limits(case: Case) -> Found:
    for place, part, is_model in _parts(case):
        resources = part.get("resources") or {}
        asked = [key for key in resources.get("requests") or {} if key.startswith(_GPU)]
        if asked and not gpus(part):
            yield (
                (*place, "resources"),
                f"has no limit nvidia.com/gpu, and {asked[0]} in its requests: put it into limits",
            )
            continue
        wants = "-gpu" in str(part.get("image", "")) or (is_model and format_of(case.model) == "tensorrt")
        wants = wants or (part.get("runtimeVersion") or "").endswith("-gpu")
        if wants and not gpus(part) and not _limit_of_the_runtime(case, part):
            what = "needs a GPU and has no limit nvidia.com/gpu: add the component gpu, gpu-mig or gpu-time-slicing"
            yield place, what


@rule(
    "KSV902",
    ERROR,
    "two kinds of GPU at once",
    why="A pod that asks for a whole GPU and a slice waits for a node that gives both.",
    mend="One of them.",
    source="NVIDIA's device plugin",
    example="""
   predictor:
     model:
       modelFormat: {name: tensorrt}
       runtimeVersion: 25.08-py3
       storageUri: s3://models/photo
-      resources: {limits: {nvidia.com/gpu: "1", nvidia.com/mig-1g.10gb: "1"}}
+      resources: {limits: {nvidia.com/gpu: "1"}}
""",
)
def one_kind_of_gpu(case: Case) -> Found:
    for _, container, place in case.containers():
        if len(gpus(container)) > 1:
            yield place, f"asks for {' and '.join(gpus(container))} at once: take one of the GPU components"


@rule(
    "KSV903",
    WARNING,
    "more power than serving needs",
    why="A model server opens two ports and reads a folder. A privileged container, root, the host's network or its "
    "folders make a hole in a model server a hole in the node.",
    mend="Take it away; runAsNonRoot: true and allowPrivilegeEscalation: false.",
    source="Kubernetes' Pod Security Standards, baseline",
    example="""
   predictor:
     containers:
       - name: kserve-container
         image: example.com/photo:1
-        securityContext: {privileged: true}
+        securityContext: {allowPrivilegeEscalation: false}
""",
)
def power_is_small(case: Case) -> Found:
    for place, part, _ in _parts(case):
        context = part.get("securityContext") or {}
        if context.get("privileged"):
            yield (*place, "securityContext"), "is privileged: a model server needs no such power"
        if context.get("allowPrivilegeEscalation"):
            yield (
                (*place, "securityContext"),
                "allows more privileges than it starts with: allowPrivilegeEscalation: false",
            )
        if context.get("runAsUser") == 0:
            yield (*place, "securityContext"), "runs as root: runAsUser 1000, as KServe's own runtimes"
        added = (context.get("capabilities") or {}).get("add") or []
        if {*map(str, added)} - {"NET_BIND_SERVICE", "IPC_LOCK"}:
            yield (*place, "securityContext"), f"adds {', '.join(map(str, added))}: serving needs none"
    for pod in case.pods:
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(field) and not (field == "hostNetwork" and case.mode == "Knative"):
                yield (*pod.place, field), "shares the node's own: a model server needs no such power"
        for number, volume in enumerate(pod.spec.get("volumes") or []):
            if "hostPath" in volume:
                yield (*pod.place, "volumes", number), "mounts a folder of the node: a claim, or a LocalModelCache"
        if (pod.spec.get("securityContext") or {}).get("runAsUser") == 0:
            yield (*pod.place, "securityContext"), "runs as root: runAsUser 1000, as KServe's own runtimes"


@rule(
    "KSV904",
    ERROR,
    "a container that its namespace refuses",
    why="A namespace that enforces the restricted profile takes no pod whose containers do not say so themselves; the "
    "Deployment is there and has no pods.",
    mend="runAsNonRoot, allowPrivilegeEscalation: false, capabilities.drop: [ALL], seccompProfile RuntimeDefault.",
    source="Kubernetes' Pod Security Standards, restricted",
    example="""
 apiVersion: v1
 kind: Namespace
 metadata: {name: team, labels: {pod-security.kubernetes.io/enforce: restricted}}
 ---
 apiVersion: serving.kserve.io/v1beta1
 kind: InferenceService
 metadata: {name: photo, namespace: team, annotations: {serving.kserve.io/deploymentMode: Standard}}
 spec:
   predictor:
     containers:
       - name: kserve-container
         image: example.com/photo:1
+        securityContext:
+          runAsNonRoot: true
+          allowPrivilegeEscalation: false
+          capabilities: {drop: [ALL]}
+          seccompProfile: {type: RuntimeDefault}
""",
)
def namespace_takes_it(case: Case) -> Found:
    space = case.around.get("Namespace", case.namespace, "") if case.namespace else None
    labels = ((space or {}).get("metadata") or {}).get("labels") or {}
    if labels.get(_SPACE) != "restricted":
        return
    for pod, container, place in case.containers():
        own, pods = container.get("securityContext") or {}, pod.spec.get("securityContext") or {}
        profile = own.get("seccompProfile") or pods.get("seccompProfile") or {}
        wanted = {
            "runAsNonRoot": own.get("runAsNonRoot", pods.get("runAsNonRoot")) is True,
            "allowPrivilegeEscalation: false": own.get("allowPrivilegeEscalation") is False,
            "capabilities.drop: [ALL]": "ALL" in ((own.get("capabilities") or {}).get("drop") or []),
            "seccompProfile": profile.get("type") in ("RuntimeDefault", "Localhost"),
        }
        missing = [key for key, there in wanted.items() if not there]
        if missing and not case.is_in_part(container):
            what = f"its securityContext lacks {', '.join(missing)}, and the namespace {case.namespace} is restricted"
            yield place, what


@rule(
    "KSV905",
    ERROR,
    "a field of pods that Knative refuses",
    why="Knative takes a part of Kubernetes' PodSpec; KServe hands the rest on, and the revision is refused.",
    mend="Take it away in Knative mode; the feature flags of config-features allow some.",
    source="Knative's validation, #2139",
    modes=("Knative",),
    example="""
   predictor:
-    terminationGracePeriodSeconds: 60
+    timeout: 60
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def knative_takes_it(case: Case) -> Found:
    for pod in case.pods:
        parts = [(pod.place, pod.spec), *((pod.place_of(c), c) for c in pod.containers)]
        for place, part in parts:
            for field, instead in REFUSED_BY_KNATIVE.items():
                if field in part:
                    yield (*place, field), f"Knative refuses {field}: {instead}"
    for _, container, place in case.containers():
        for item in container.get("env") or []:
            if "fieldRef" in (item.get("valueFrom") or {}):
                yield (
                    (*place, "env"),
                    f"{item.get('name')}: fieldRef needs Knative's feature kubernetes.podspec-fieldref",
                )


@rule(
    "KSV906",
    ERROR,
    "a mount without its volume",
    why="Kubernetes refuses a pod that mounts a volume which it has not; the Deployment is there and has no pods.",
    mend="The volume in the same component's volumes, or in the runtime's.",
    source="Kubernetes' validation",
    example="""
   predictor:
     containers:
       - name: kserve-container
         image: example.com/photo:1
         volumeMounts: [{name: shm, mountPath: /dev/shm}]
+    volumes: [{name: shm, emptyDir: {medium: Memory}}]
""",
)
def mounts_have_volumes(case: Case) -> Found:
    for pod in case.pods:
        volumes = {volume.get("name") for volume in pod.volumes}
        for container in pod.containers:
            for number, mount in enumerate(container.get("volumeMounts") or []):
                if mount.get("name") not in volumes and not case.is_in_part(container):
                    place = (*pod.place_of(container), "volumeMounts", number)
                    yield place, f"mounts the volume {mount.get('name')!r}, which the pod has not"


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
            if sidecar in pod.spec and any(word in str(first.get("name", "")) for word in ("h2c", "grpc")):
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


@rule(
    "KSV910",
    WARNING,
    "a read-only root file system and nowhere to write",
    why="Python, Triton and the storage of models write to /tmp; on a read-only root they end at their first file.",
    mend="An emptyDir at /tmp.",
    source="Kubernetes' Pod Security Standards; config/runtimes",
    example="""
   predictor:
     containers:
       - name: kserve-container
         image: example.com/photo:1
         securityContext: {readOnlyRootFilesystem: true}
+        volumeMounts: [{name: tmp, mountPath: /tmp}]
+    volumes: [{name: tmp, emptyDir: {}}]
""",
)
def there_is_a_place_to_write(case: Case) -> Found:
    for _, container, place in case.containers():
        mounts = {mount.get("mountPath") for mount in container.get("volumeMounts") or []}
        is_read_only = (container.get("securityContext") or {}).get("readOnlyRootFilesystem")
        if is_read_only and "/tmp" not in mounts and not case.is_in_part(container):  # noqa: S108
            yield place, "its root file system is read-only and nothing is mounted at /tmp"


@rule(
    "KSV911",
    WARNING,
    "shared memory that one container of two has",
    why="Tensors go by shared memory where both containers mount one volume at /dev/shm; a container without it has "
    "64 MiB of its own, which its neighbour does not see.",
    mend="The same emptyDir (medium Memory) at /dev/shm in both.",
    source="#1937",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     containers:
       - name: kserve-container
         image: example.com/triton:1
         volumeMounts: [{name: shm, mountPath: /dev/shm}]
       - name: transformer-container
         image: example.com/photo:1
         args: [--model_name=photo, --http_port=8090, --predictor_protocol=v2, "--predictor_host=localhost:8000"]
+        volumeMounts: [{name: shm, mountPath: /dev/shm}]
     volumes: [{name: shm, emptyDir: {medium: Memory}}]
""",
)
def shared_memory_is_shared(case: Case) -> Found:
    for pod in case.pods:
        names = ("kserve-container", "transformer-container")
        of_two = [c for c in pod.containers if c.get("name") in names and not case.is_in_part(c)]
        having = [c for c in of_two if "/dev/shm" in {m.get("mountPath") for m in c.get("volumeMounts") or []}]  # noqa: S108
        if len(having) == 1 and len(of_two) == 2:
            lacking = of_two[0] if having[0] is of_two[1] else of_two[1]
            yield pod.place_of(lacking), f"has no volume at /dev/shm, and {having[0]['name']} has one: both, or neither"


def _parts(case: Case) -> list[tuple[Place, dict[str, Any], bool]]:
    """The containers and models as they are written, and whether it is the model."""
    found: list[tuple[Place, dict[str, Any], bool]] = []
    for component in ("predictor", "transformer", "explainer"):
        spec = case.spec.get(component) or {}
        for key in ("model", *FORMATS):
            if isinstance(spec.get(key), dict):
                found.append((("spec", component, key), spec[key], component == "predictor"))
        for number, container in enumerate(spec.get("containers") or []):
            found.append((("spec", component, "containers", number), container, False))
    return found


def _limit_of_the_runtime(case: Case, part: dict[str, Any]) -> bool:
    runtime = case.runtime(str(part.get("runtime"))) if part.get("runtime") else None
    containers = ((runtime or {}).get("spec") or {}).get("containers") or []
    return any(gpus(container) for container in containers if isinstance(container, dict))
