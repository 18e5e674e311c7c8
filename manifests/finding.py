"""What is wrong with a manifest, in one sentence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Finding:
    where: str
    """The object and the place in it: `InferenceService/photo spec.predictor.model.storageUri`."""
    what: str
    """What is wrong, why, and the way out."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"
