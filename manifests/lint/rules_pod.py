"""Pods: GPUs, mounts, and what Knative refuses of them."""

from __future__ import annotations

from typing import Any

from kservekit.manifests.lint.case import Case, format_of
from kservekit.manifests.lint.rule import ERROR, WARNING, Found, rule
from kservekit.manifests.pods import amount, gpus, model_of

REFUSED_BY_KNATIVE = {
    "terminationGracePeriodSeconds": "the component's timeout is the grace period there",
    "lifecycle": "Knative's own proxy drains",
    "initContainers": "it needs the feature kubernetes.podspec-init-containers",
    "hostNetwork": "Knative has no such thing",
    "shareProcessNamespace": "Knative has no such thing",
}


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
    for place, part in case.parts():
        asked = [*gpus(part, "requests")]
        if asked and not gpus(part):
            yield (
                (*place, "resources"),
                f"has no limit nvidia.com/gpu, and {asked[0]} in its requests: put it into limits",
            )
            continue
        wants = "-gpu" in str(part.get("image", "")) or format_of(part) == "tensorrt"
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
    "KSV912",
    WARNING,
    "more asked for than KServe's own limit allows",
    why="A custom container that names no limit gets those of KServe's ConfigMap, 1 CPU and 2Gi as it is shipped: a "
    "request above that makes a pod that Kubernetes refuses.",
    mend="Limits beside the requests.",
    source="v1beta1/inference_service_defaults.go, setResourceRequirementDefaults; config/configmap (resource)",
    modes=("Standard", "Knative"),
    example="""
   predictor:
     containers:
       - name: kserve-container
         image: example.com/photo:1
         resources:
           requests: {cpu: "2"}
+          limits: {cpu: "2"}
""",
)
def requests_are_below_the_default_limit(case: Case) -> Found:
    shipped = case.around.setting("resource") or {"cpuLimit": "1", "memoryLimit": "2Gi"}
    for component in ("predictor", "transformer", "explainer"):
        spec = case.spec.get(component) or {}
        containers = [] if model_of(spec)[0] else spec.get("containers") or []
        resources = (containers[0].get("resources") or {}) if containers else {}
        for kind in ("cpu", "memory"):
            limit = amount(shipped.get(f"{kind}Limit"))
            asked = amount((resources.get("requests") or {}).get(kind))
            if kind not in (resources.get("limits") or {}) and limit and asked and asked > limit:
                what = f"asks for {kind} {resources['requests'][kind]} and names no limit: KServe makes it "
                yield ("spec", component, "containers", 0, "resources"), what + str(shipped[f"{kind}Limit"])


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


def _limit_of_the_runtime(case: Case, part: dict[str, Any]) -> bool:
    return any(gpus(container) for container in case.runtime_of(part).get("containers") or [])
