"""Every rule, by its id."""

from __future__ import annotations

from kservekit.manifests.lint import (
    rules_canary,
    rules_form,
    rules_graph,
    rules_pod,
    rules_ports,
    rules_scaling,
    rules_storage,
    rules_time,
    rules_wiring,
)
from kservekit.manifests.lint.rule import Rule

_MODULES = (
    *(rules_form, rules_wiring, rules_ports, rules_time, rules_scaling),
    *(rules_canary, rules_graph, rules_storage, rules_pod),
)

RULES: dict[str, Rule] = {
    found.id: found
    for found in sorted(
        (item for module in _MODULES for item in vars(module).values() if isinstance(item, Rule)),
        key=lambda item: item.id,
    )
}
