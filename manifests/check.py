"""Whether a cluster would take a user's manifests, and do with them what they say: without a cluster.

`check_manifests` is given what `kubectl kustomize` printed, or any file with an InferenceService; `check_kustomization`
the folder that was rendered, which knows its components.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from kservekit.errors import CannotStart
from kservekit.manifests.composition import check_composition, components, versions
from kservekit.manifests.finding import Finding
from kservekit.manifests.lint.reading import read_documents
from kservekit.manifests.lint.run import check_rules
from kservekit.manifests.pods import Document
from kservekit.manifests.rules_pods import check_pods
from kservekit.manifests.rules_references import check_references
from kservekit.manifests.rules_shape import check_shape
from kservekit.manifests.schema import check_schema, has_schema, kept, kserve_versions


def check_manifests(documents: Sequence[Document], kserve: Iterable[str]) -> list[Finding]:
    """All that is wrong with them for these versions of KServe, such as ("0.20", "main")."""
    wanted = tuple(kserve)
    unknown = {*wanted} - {*kserve_versions()}
    if unknown:
        raise CannotStart(f"KServe {min(unknown)} is not known: expected {', '.join(kserve_versions())}")
    malformed = [finding for document in documents for finding in check_shape(document)]
    if malformed:  # nobody could say where such an object belongs
        return sorted(malformed)
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
    typed = [kept(document, wanted[-1]) if has_schema(document) else document for document in documents]
    return sorted({*check_rules(documents, wanted[-1]), *check_pods(typed), *check_references(typed)})


def check_kustomization(folder: Path, rendered: str) -> list[Finding]:
    """The same for a folder and what it renders to, in the versions that its components have in common."""
    found = components(folder)
    documents = read_documents(rendered, f"{folder} (rendered)")
    return sorted({*check_composition(found), *check_manifests(documents, versions(found))})
