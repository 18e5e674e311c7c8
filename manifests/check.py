"""Whether a cluster would take a user's manifests, and do with them what they say: without a cluster.

`check_manifests` is given what `kubectl kustomize` printed, or any file with an InferenceService; `check_kustomization`
the folder that was rendered, which knows its components.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from kservekit.errors import CannotStart
from kservekit.manifests.composition import check_composition, components, versions
from kservekit.manifests.finding import Finding
from kservekit.manifests.lint.run import check_rules
from kservekit.manifests.pods import Document
from kservekit.manifests.rules_pods import check_pods
from kservekit.manifests.rules_references import check_references
from kservekit.manifests.schema import check_schema, has_schema, kserve_versions


def read_documents(text: str) -> list[Document]:
    """The objects in YAML; CannotStart where it is not that."""
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise CannotStart(f"this is not YAML: {' '.join(str(error).split())}") from None
    for document in documents:
        if not isinstance(document, dict) or "kind" not in document:
            raise CannotStart(f"this is no Kubernetes object: {str(document)[:60]!r}: expected apiVersion and kind")
    return documents


def check_manifests(documents: Sequence[Document], kserve: Iterable[str]) -> list[Finding]:
    """All that is wrong with them for these versions of KServe, such as ("0.20", "main")."""
    wanted = tuple(kserve)
    unknown = {*wanted} - {*kserve_versions()}
    if unknown:
        raise CannotStart(f"KServe {min(unknown)} is not known: expected {', '.join(kserve_versions())}")
    by_schema: dict[Finding, list[str]] = {}
    for version in wanted:
        for document in filter(has_schema, documents):
            for finding in check_schema(document, version):
                by_schema.setdefault(finding, []).append(version)
    if by_schema:  # the rules take for granted what a schema says
        return sorted(
            finding
            if len(found_in) == len(wanted)
            else Finding(finding.where, f"{finding.what} (KServe {found_in[-1]})")
            for finding, found_in in by_schema.items()
        )
    return sorted({*check_rules(documents, wanted[-1]), *check_pods(documents), *check_references(documents)})


def check_kustomization(folder: Path, rendered: str) -> list[Finding]:
    """The same for a folder and what it renders to, in the versions that its components have in common."""
    found = components(folder)
    return sorted({*check_composition(found), *check_manifests(read_documents(rendered), versions(found))})
