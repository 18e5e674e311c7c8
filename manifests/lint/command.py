"""`kservekit lint`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from kservekit import __version__
from kservekit.manifests.knative_features import knative_features
from kservekit.manifests.lint import report
from kservekit.manifests.lint.inputs import Inputs, read_all
from kservekit.manifests.lint.rule import ERROR
from kservekit.manifests.lint.run import Fault, lint, without_ignored
from kservekit.manifests.lint.table import RULES
from kservekit.manifests.schema import kserve_versions

EXAMPLES = """\
examples:
  kservekit lint inferenceservice.yaml
  kservekit lint manifests/overlays/dev --kserve-version 0.18
  helm template mychart | kservekit lint - --mode Knative
  kservekit lint . --format sarif > lint.sarif
  kservekit lint --explain KSV201

A folder with a kustomization.yaml is rendered first (kubectl kustomize). `# kservekit: ignore KSV201` on a line, or on
the one above it, says that it is meant. Exit code: 0, 1 where errors were found, 2 where something cannot be read."""

NEWEST = "0.21"


def run(arguments: Sequence[str], put: Callable[[str], None]) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        put(report.listing())
        return 0
    if options.explain:
        put(report.explained(RULES[options.explain.upper()]))
        return 0
    if not options.paths:
        parser.error("nothing to read: expected FILE, DIR or - for stdin")
    found = read_all(options.paths, sys.stdin.buffer)
    faults = _faults(found, options.kserve_version, options.mode)
    objects = sum(map(len, found.groups))
    said = report.summary(faults, objects, len(found.refused), options.kserve_version)
    if options.format == "json":
        put(report.as_json(faults, found.refused, said))
    elif options.format == "sarif":
        put(report.as_sarif(faults, found.refused, __version__))
    else:
        put(report.as_text(faults, found.refused, "\n".join([*_features(found), said])))
    return 2 if found.refused else int(any(fault.severity == ERROR for fault in faults))


def _faults(found: Inputs, kserve: str, mode: str) -> list[Fault]:
    faults = [fault for group in found.groups for fault in lint(group, kserve, mode)]
    return sorted(without_ignored(faults, found.texts))


def _features(found: Inputs) -> list[str]:
    """What Knative's config-features has to have, which no file of an application says."""
    needed = sorted({feature for group in found.groups for feature in knative_features([e.document for e in group])})
    return [f"Knative's config-features must enable {', '.join(needed)}"] if needed else []


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kservekit lint",
        description="What KServe ignores, rewrites or refuses in these files, without a cluster: with the reason, the "
        "way out, and where that is known from.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="*", metavar="FILE|DIR|-", help="files, folders, or - for stdin")
    parser.add_argument(
        "--kserve-version",
        choices=kserve_versions(),
        default=NEWEST,
        help=f"what the cluster runs (default: {NEWEST})",
    )
    parser.add_argument(
        "--mode",
        choices=("Standard", "Knative"),
        default="",
        help="for services that say no serving.kserve.io/deploymentMode",
    )
    parser.add_argument("--format", choices=("text", "json", "sarif"), default="text", help="default: text")
    parser.add_argument("--explain", metavar="RULE", type=_rule, help="why, the way out, and an example")
    parser.add_argument("--list", action="store_true", help="every rule")
    return parser


def _rule(text: str) -> str:
    if text.upper() not in RULES:
        raise argparse.ArgumentTypeError(f"there is no rule {text!r}; kservekit lint --list names them")
    return text
