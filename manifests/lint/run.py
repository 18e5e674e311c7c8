"""Documents in, findings out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kservekit.manifests.finding import Finding
from kservekit.manifests.lint.case import Around, case_of
from kservekit.manifests.lint.reading import Entry
from kservekit.manifests.lint.rule import Rule
from kservekit.manifests.lint.table import RULES
from kservekit.manifests.pods import Document, mode, name
from kservekit.manifests.schema import Place, has_schema, shown

_IGNORED = re.compile(r"#\s*kservekit:\s*ignore\s+(KSV\d+(?:[\s,]+KSV\d+)*)")


@dataclass(frozen=True, order=True)
class Fault:
    source: str
    line: int
    column: int
    rule: str
    where: str
    what: str

    @property
    def severity(self) -> str:
        return RULES[self.rule].severity


def lint(entries: Sequence[Entry], kserve: str, default_mode: str = "") -> list[Fault]:
    """What is wrong with objects that were read together. `default_mode` is for those that say none."""
    documents = [entry.document for entry in entries]
    found = {
        Fault(
            entries[number].source, *entries[number].at(place), rule.id, _where(entries[number].document, place), what
        )
        for number, rule, place, what in _found(documents, kserve, default_mode)
    }
    return sorted(found)


def without_ignored(faults: Sequence[Fault], texts: dict[str, str]) -> list[Fault]:
    """Without those that `# kservekit: ignore KSV101` names, on the line or on the one above."""
    ignored = {
        (source, number): {*re.split(r"[\s,]+", match.group(1))}
        for source, text in texts.items()
        for number, line in enumerate(text.split("\n"), 1)
        if (match := _IGNORED.search(line))
    }
    return [
        fault
        for fault in faults
        if not any(fault.rule in ignored.get((fault.source, fault.line - above), ()) for above in (0, 1))
    ]


def check_rules(documents: Sequence[Document], kserve: str) -> list[Finding]:
    """The same for rendered manifests, without the schema's own rule."""
    return [
        Finding(_where(documents[number], place), what)
        for number, rule, place, what in _found(documents, kserve, "")
        if rule.id != "KSV100"
    ]


def _found(documents: Sequence[Document], kserve: str, default_mode: str) -> Iterator[tuple[int, Rule, Place, str]]:
    cases = [case_of(document, kserve, default_mode) for document in documents]
    # Of another API's InferenceService nothing is known that a rule could rely on.
    around = Around(
        case.document
        for case in cases
        if has_schema(case.written) or case.written.get("kind") in ("ConfigMap", "Namespace")
    )
    for number, case in enumerate(cases):
        case.around = around
        # One of an API that nobody serves any more has no types that a rule could rely on.
        kind = str(case.written.get("kind")) if has_schema(case.written) else ""
        in_mode = mode(case.document)
        for rule in RULES.values():
            if rule.holds_for(kind, in_mode, kserve):
                yield from ((number, rule, place, what) for place, what in rule.check(case))


def _where(document: Document, place: Place) -> str:
    called = name(document) if isinstance(document.get("metadata"), dict) else "?"
    return f"{document.get('kind')}/{called} {shown(place)}".rstrip()
