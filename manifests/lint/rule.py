"""A rule: what it finds, why that is a fault, the way out, where that is known from, and an example of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kservekit.manifests.schema import Place, kserve_versions

if TYPE_CHECKING:
    from kservekit.manifests.lint.case import Case

ERROR, WARNING, NOTE = "error", "warning", "note"
"""Refused or certain to fail; taken and not done as it says; taken, and better said otherwise."""

BOTH = ("Knative", "Standard")

Found = Iterator[tuple[Place, str]]
Check = Callable[["Case"], Found]


@dataclass(frozen=True)
class Rule:
    id: str
    severity: str
    title: str
    why: str
    mend: str
    source: str
    """KServe's file, issue (#N) or pull request."""
    example: str
    """A diff: lines with `-` are the fault, lines with `+` the mend. Without apiVersion it is below `spec`."""
    check: Check
    kinds: tuple[str, ...] = ("InferenceService",)
    """`*` for every one."""
    modes: tuple[str, ...] = BOTH
    """Where it is asked; a rule of one mode needs a document that says its mode. The last is its example's."""
    since: str = ""
    until: str = ""
    """The last version that has the fault."""

    def holds_for(self, kind: str, mode: str, kserve: str) -> bool:
        known = kserve_versions()
        first, last = known.index(self.since or known[0]), known.index(self.until or known[-1])
        return (
            (kind in self.kinds or "*" in self.kinds)
            and (len(self.modes) > 1 or kind != "InferenceService" or mode in self.modes)
            and first <= known.index(kserve) <= last
        )

    @property
    def versions(self) -> str:
        return f"{self.since or kserve_versions()[0]} to {self.until or 'the newest'}"

    @property
    def bad(self) -> str:
        return self._side("-")

    @property
    def good(self) -> str:
        return self._side("+")

    @property
    def whole_example(self) -> str:
        if "apiVersion:" in self.example:
            return self.example.strip("\n")
        head = (
            "apiVersion: serving.kserve.io/v1beta1",
            "kind: InferenceService",
            "metadata:",
            "  name: photo",
            "  annotations:",
            f"    serving.kserve.io/deploymentMode: {self.modes[-1]}",
            "spec:",
        )
        return "\n".join([*(f" {line}" for line in head), self.example.strip("\n")])

    def _side(self, sign: str) -> str:
        lines = self.whole_example.split("\n")
        return "\n".join(line[1:] for line in lines if line[:1] in (sign, " ", "")) + "\n"


def rule(
    id: str,
    severity: str,
    title: str,
    *,
    why: str,
    mend: str,
    source: str,
    example: str,
    kinds: tuple[str, ...] = ("InferenceService",),
    modes: tuple[str, ...] = BOTH,
    since: str = "",
    until: str = "",
) -> Callable[[Check], Rule]:
    """Makes a rule of the function below it."""

    def made(check: Check) -> Rule:
        return Rule(id, severity, title, why, mend, source, example, check, kinds, modes, since, until)

    return made
