"""An overlay in another mode than the one that it is made for: with the component knative, or not at all."""

from __future__ import annotations

from pathlib import Path

from kservekit.errors import CannotStart
from kservekit.manifests.composition import KNATIVE, Component, base_of, components
from kservekit.manifests.kustomize import kustomize, kustomized
from kservekit.manifests.lint.reading import read_documents
from kservekit.manifests.pods import mode, of_kind


def rendered_in(folder: Path, wanted: str) -> str:
    """CannotStart where a component of the overlay is for the other mode."""
    text = kustomize(folder)
    modes = {mode(service) for service in of_kind(read_documents(text, f"{folder} (rendered)"), "InferenceService")}
    base = base_of(folder)
    if not wanted or not base or modes <= {wanted}:
        return text
    found = components(folder)
    bound = [component for component in found if component.mode not in ("", wanted) or component.instead(wanted)]
    if bound:
        ways_out = "; ".join(_way_out(component, wanted) for component in bound)
        raise CannotStart(
            f"{folder} cannot be in {wanted} mode as it is: {ways_out}. "
            "Do that in an overlay of its own, or write a values file, whose components follow the mode"
        )
    above = {"resources": [folder], "components": [base.parent / "components" / KNATIVE]}
    return kustomized(above, f"{folder} with the component {KNATIVE}")


def _way_out(component: Component, mode: str) -> str:
    other = component.instead(mode)
    return f"instead of {component.name} take {other.name}" if other else f"take {component.name} away"
