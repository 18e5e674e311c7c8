"""What has to be enabled in Knative before it takes a manifest."""

from __future__ import annotations

from collections.abc import Sequence

from kservekit.manifests.pods import Document, pods

KNATIVE_FEATURES = {
    "affinity": "kubernetes.podspec-affinity",
    "nodeSelector": "kubernetes.podspec-nodeselector",
    "tolerations": "kubernetes.podspec-tolerations",
    "runtimeClassName": "kubernetes.podspec-runtimeclassname",
    "securityContext": "kubernetes.podspec-securitycontext",
    "topologySpreadConstraints": "kubernetes.podspec-topologyspreadconstraints",
    "priorityClassName": "kubernetes.podspec-priorityclassname",
}
"""Fields of a pod that Knative takes only where its ConfigMap config-features says so."""


def knative_features(documents: Sequence[Document]) -> list[str]:
    """What has to be enabled in Knative's config-features for these to be taken."""
    needed = {
        feature
        for pod in pods(documents)
        if pod.mode == "Knative"
        for field, feature in KNATIVE_FEATURES.items()
        if field in pod.spec
    }
    return sorted(needed)
