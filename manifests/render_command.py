"""`kservekit render`."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from kservekit.errors import CannotStart
from kservekit.manifests.composition import FILES
from kservekit.manifests.kustomize import kustomize
from kservekit.manifests.lint.command import NEWEST
from kservekit.manifests.lint.inputs import Inputs, read_all
from kservekit.manifests.lint.reading import Entry, Unreadable, read
from kservekit.manifests.lint.rule import ERROR
from kservekit.manifests.lint.run import lint
from kservekit.manifests.pods import Document
from kservekit.manifests.render import as_yaml, in_order, kept_form
from kservekit.manifests.schema import kserve_versions

EXAMPLES = """\
examples:
  kservekit render manifests/overlays/dev
  kservekit render manifests/overlays/dev --kserve-version 0.18 > dev.yaml
  kservekit render manifests/overlays/dev --diff dev.yaml

Plain kustomize stays usable: this is what it prints, in the form that KServe's webhook leaves as it is (`model`, the
modes' new names), without fields that this version does not have (they are named on stderr), and in a fixed order.
Exit code: 0; 1 where --diff finds a difference or lint an error in what was rendered; 2 where it cannot be read."""


Put = Callable[[str], None]


def run(arguments: Sequence[str], put: Put, warn: Put) -> int:
    options = _parser().parse_args(arguments)
    try:
        return _run(options, put, warn)
    except Unreadable as error:
        warn(f"kservekit render: {error}")
        return 2


def _run(options: argparse.Namespace, put: Put, warn: Put) -> int:
    given = _read(options.path)
    documents, left_out = kept_form(given, options.kserve_version, options.mode)
    for line in left_out:
        warn(f"kservekit render: left out {line}")
    text = as_yaml(documents)
    wrong = [
        fault
        for fault in lint([Entry("rendered", item, {}, (1, 1)) for item in documents], options.kserve_version)
        if fault.severity == ERROR
    ]
    for fault in wrong:
        warn(f"kservekit render: {fault.rule} {fault.where}: {fault.what}")
    if not options.diff:
        put(text.rstrip("\n"))
        return int(bool(wrong))
    before = as_yaml(in_order(_objects(read_all([str(options.diff)], sys.stdin.buffer), str(options.diff))))
    lines = [*difflib.unified_diff(before.splitlines(), text.splitlines(), str(options.diff), "rendered", lineterm="")]
    if lines:
        put("\n".join(lines))
    return int(bool(lines or wrong))


def _read(path: str) -> list[Document]:
    folder = Path(path)
    if folder.is_dir() and any((folder / file).is_file() for file in FILES):
        entries, refused = read(kustomize(folder), f"{path} (rendered)")
        if refused:
            raise refused[0]
        return [entry.document for entry in entries]
    return _objects(read_all([path], sys.stdin.buffer), path)


def _objects(found: Inputs, path: str) -> list[Document]:
    if found.refused:
        raise found.refused[0]
    documents = [entry.document for group in found.groups for entry in group]
    if not documents:
        raise CannotStart(
            f"{path} has no Kubernetes objects: expected a kustomization, or YAML with apiVersion and kind"
        )
    return documents


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kservekit render",
        description="An overlay (or a folder of YAML, a file, - for stdin) as the YAML that KServe keeps as it is.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="OVERLAY|DIR|FILE|-")
    parser.add_argument(
        "--kserve-version", choices=kserve_versions(), default=NEWEST, help=f"what the cluster runs (default: {NEWEST})"
    )
    parser.add_argument("--mode", choices=("Standard", "Knative"), default="", help="instead of the file's own")
    parser.add_argument("--diff", type=Path, metavar="FILE", help="print what would change in FILE, and nothing else")
    return parser
