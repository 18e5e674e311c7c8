"""Findings as lines, as JSON, and as SARIF 2.1.0, which code reviews show beside the line."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from kservekit.errors import KServeKitError
from kservekit.manifests.lint.rule import ERROR, NOTE, WARNING, Rule
from kservekit.manifests.lint.run import Fault
from kservekit.manifests.lint.table import RULES

_SARIF = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def as_text(faults: Sequence[Fault], refused: Sequence[KServeKitError], summary: str) -> str:
    lines = [str(error) for error in refused]
    for fault in faults:
        place = f"{fault.source}:{fault.line}:{fault.column}"
        lines.append(f"{place}: {fault.severity} {fault.rule} {fault.where}: {fault.what}")
    return "\n".join([*lines, summary])


def as_json(faults: Sequence[Fault], refused: Sequence[KServeKitError], summary: str) -> str:
    return json.dumps(
        {
            "findings": [
                {
                    "file": fault.source,
                    "line": fault.line,
                    "column": fault.column,
                    "severity": fault.severity,
                    "rule": fault.rule,
                    "where": fault.where,
                    "what": fault.what,
                    "why": RULES[fault.rule].why,
                    "mend": RULES[fault.rule].mend,
                    "source": RULES[fault.rule].source,
                }
                for fault in faults
            ],
            "unreadable": [str(error) for error in refused],
            "summary": summary,
        },
        indent=2,
        ensure_ascii=False,
    )


def as_sarif(faults: Sequence[Fault], refused: Sequence[KServeKitError], version: str) -> str:
    used = sorted({fault.rule for fault in faults})
    driver: dict[str, Any] = {"name": "kservekit", "version": version, "rules": [_sarif_rule(RULES[id]) for id in used]}
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [
            {
                "ruleId": fault.rule,
                "ruleIndex": used.index(fault.rule),
                "level": fault.severity,
                "message": {"text": f"{fault.where}: {fault.what}"},
                "locations": [
                    {
                        "physicalLocation": {
                            "artifactLocation": {"uri": quote(fault.source.replace("\\", "/"))},
                            "region": {"startLine": fault.line, "startColumn": fault.column},
                        }
                    }
                ],
            }
            for fault in faults
        ],
        "invocations": [
            {
                "executionSuccessful": not refused,
                "toolExecutionNotifications": [
                    {"level": "error", "message": {"text": str(error)}} for error in refused
                ],
            }
        ],
    }
    return json.dumps({"$schema": _SARIF, "version": "2.1.0", "runs": [run]}, indent=2, ensure_ascii=False)


def summary(faults: Sequence[Fault], objects: int, refused: int, kserve: str) -> str:
    counts = Counter(fault.severity for fault in faults)
    said = ", ".join(f"{counts[kind]} {kind}{'s' if counts[kind] != 1 else ''}" for kind in (ERROR, WARNING, NOTE))
    text = f"{said} in {objects} object{'s' if objects != 1 else ''} (KServe {kserve})"
    text += f"; {refused} unreadable" if refused else ""
    worst = min(faults, key=lambda fault: (ERROR, WARNING, NOTE).index(fault.severity), default=None)
    return text + (f"; kservekit lint --explain {worst.rule} says more" if worst else "")


def explained(rule: Rule) -> str:
    example = "\n".join(f"    {line}".rstrip() for line in rule.whole_example.split("\n"))
    return (
        f"{rule.id} {rule.severity}: {rule.title}\n\n"
        f"{_wrapped('why', rule.why)}\n{_wrapped('mend', rule.mend)}\n"
        f"holds   KServe {rule.versions}, {' and '.join(rule.modes)}\nsource  {rule.source}\n\n"
        f"{example}"
    )


def listing() -> str:
    return "\n".join(f"{rule.id}  {rule.severity:8}{rule.title}" for rule in RULES.values())


def _wrapped(title: str, text: str) -> str:
    return textwrap.fill(f"{title:8}{text}", 100, subsequent_indent=" " * 8, break_on_hyphens=False)


def _sarif_rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.why},
        "help": {"text": f"{rule.mend} (source: {rule.source})"},
        "defaultConfiguration": {"level": rule.severity},
    }
