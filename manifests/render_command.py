"""`kservekit render`."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from kservekit.errors import CannotStart
from kservekit.manifests.composition import FILES
from kservekit.manifests.lint.command import NEWEST
from kservekit.manifests.lint.inputs import Inputs, read_all
from kservekit.manifests.lint.reading import Entry, Unreadable, read_documents
from kservekit.manifests.lint.rule import ERROR
from kservekit.manifests.lint.run import lint
from kservekit.manifests.overlay_mode import rendered_in
from kservekit.manifests.pods import Document
from kservekit.manifests.render import as_yaml, in_order, kept_form
from kservekit.manifests.rules_references import check_references
from kservekit.manifests.schema import kserve_versions
from kservekit.manifests.values_file import faults, is_values, rendered

EXAMPLES = """\
examples:
  kservekit render manifests/overlays/dev
  kservekit render manifests/overlays/dev --mode Knative
  kservekit render manifests/overlays/dev --diff dev.yaml
  kservekit render manifests/values/photo.yaml --kserve-version 0.18 > photo-0.18.yaml
  kservekit render manifests/values/photo.yaml --kserve-version 0.21 --mode Knative > photo-0.21-knative.yaml

Plain kustomize stays usable: this is what it prints, in the form that KServe's webhook leaves as it is (`model`, the
modes' new names), without fields that this version does not have (they are named on stderr), and in a fixed order.
In another mode than its own, a values file gets the components that do the same there; an overlay gets the component
knative, or is refused with the components that hold it back; of other files only the annotation changes.
Exit code: 0; 1 where --diff finds a difference or lint an error in what was rendered; 2 where it cannot be read."""


Put = Callable[[str], None]


def run(arguments: Sequence[str], put: Put, warn: Put) -> int:
    options = _parser().parse_args(arguments)
    code = 2
    try:
        code = _run(options, put, warn)
    except* Unreadable as found:
        for error in found.exceptions:
            warn(f"kservekit render: {error}")
    return code


def _run(options: argparse.Namespace, put: Put, warn: Put) -> int:
    given, wrong = _read(options.path, options.mode)
    documents, left_out = kept_form(given, options.kserve_version, options.mode)
    for line in left_out:
        warn(f"kservekit render: left out {line}")
    text = as_yaml(documents)
    wrong += [
        f"{fault.rule} {fault.where}: {fault.what}"
        for fault in lint([Entry("rendered", item, {}, (1, 1)) for item in documents], options.kserve_version)
        if fault.severity == ERROR
    ]
    for line in wrong:
        warn(f"kservekit render: {line}")
    if not options.diff:
        put(text.rstrip("\n"))
        return int(bool(wrong))
    before = as_yaml(in_order(_objects(read_all([str(options.diff)], sys.stdin.buffer), str(options.diff))))
    lines = [*difflib.unified_diff(before.splitlines(), text.splitlines(), str(options.diff), "rendered", lineterm="")]
    if lines:
        put("\n".join(lines))
    return int(bool(lines or wrong))


def _read(path: str, mode: str) -> tuple[list[Document], list[str]]:
    """The objects, and what is wrong with them beyond what lint says."""
    folder = Path(path)
    if folder.is_dir() and any((folder / file).is_file() for file in FILES):
        return read_documents(rendered_in(folder, mode), f"{path} (rendered)"), []
    found = read_all([path], sys.stdin.buffer)
    values = [entry for group in found.groups for entry in group if is_values(entry.document)]
    documents = _objects(found, path)
    if not values:
        return documents, []
    if len(documents) > 1:
        raise Unreadable(values[0].source, values[0].start, "a values file with other objects: render it by itself")
    found.refused += faults(values[0])
    if found.refused:
        raise ExceptionGroup("unreadable", found.refused)
    documents = read_documents(rendered(values[0], mode), f"{path} (rendered)")
    return documents, [str(finding) for finding in check_references(documents)]


def _objects(found: Inputs, path: str) -> list[Document]:
    if found.refused:
        raise ExceptionGroup("unreadable", found.refused)
    documents = [entry.document for group in found.groups for entry in group]
    if not documents:
        raise CannotStart(
            f"{path} has no Kubernetes objects: expected a kustomization, or YAML with apiVersion and kind"
        )
    return documents


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kservekit render",
        description="An overlay, a values file, or a folder or file of YAML, as the YAML that KServe keeps as it is.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="OVERLAY|VALUES|DIR|FILE|-")
    parser.add_argument(
        "--kserve-version", choices=kserve_versions(), default=NEWEST, help=f"what the cluster runs (default: {NEWEST})"
    )
    parser.add_argument("--mode", choices=("Standard", "Knative"), default="", help="instead of its own")
    parser.add_argument("--diff", type=Path, metavar="FILE", help="print what would change in FILE, and nothing else")
    return parser
