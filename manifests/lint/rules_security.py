"""Power: more than serving needs, or more than a namespace gives."""

from __future__ import annotations

from typing import Any

from kservekit.manifests.lint.case import Case
from kservekit.manifests.lint.rule import ERROR, WARNING, Found, rule

_SPACE = "pod-security.kubernetes.io/enforce"


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
    for place, part in case.parts():
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
        missing = short_of_restricted(container.get("securityContext") or {}, pod.spec.get("securityContext") or {})
        if missing and not case.is_in_part(container):
            what = f"its securityContext lacks {', '.join(missing)}, and the namespace {case.namespace} is restricted"
            yield place, what


def short_of_restricted(own: dict[str, Any], pods: dict[str, Any]) -> list[str]:
    """What the restricted profile wants, and a container does not say in its securityContext, nor its pod for it."""
    profile = own.get("seccompProfile") or pods.get("seccompProfile") or {}
    wanted = {
        "runAsNonRoot": own.get("runAsNonRoot", pods.get("runAsNonRoot")) is True,
        "allowPrivilegeEscalation: false": own.get("allowPrivilegeEscalation") is False,
        "capabilities.drop: [ALL]": "ALL" in ((own.get("capabilities") or {}).get("drop") or []),
        "seccompProfile": profile.get("type") in ("RuntimeDefault", "Localhost"),
    }
    return [key for key, there in wanted.items() if not there]
