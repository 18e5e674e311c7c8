"""Every rule, by its id."""

from __future__ import annotations

from kservekit.manifests.lint import (
    rules_canary,
    rules_canary_entries,
    rules_collocated,
    rules_flags,
    rules_form,
    rules_graph,
    rules_hpa,
    rules_keda,
    rules_names,
    rules_pod,
    rules_ports,
    rules_probes,
    rules_router,
    rules_runtime,
    rules_scaling,
    rules_security,
    rules_sidecars,
    rules_storage,
    rules_time,
    rules_wiring,
)
from kservekit.manifests.lint.rule import Rule

_MODULES = (
    rules_canary,
    rules_canary_entries,
    rules_collocated,
    rules_flags,
    rules_form,
    rules_graph,
    rules_hpa,
    rules_keda,
    rules_names,
    rules_pod,
    rules_ports,
    rules_probes,
    rules_router,
    rules_runtime,
    rules_scaling,
    rules_security,
    rules_sidecars,
    rules_storage,
    rules_time,
    rules_wiring,
)

RULES: dict[str, Rule] = {
    found.id: found
    for found in sorted(
        (item for module in _MODULES for item in vars(module).values() if isinstance(item, Rule)),
        key=lambda item: item.id,
    )
}
