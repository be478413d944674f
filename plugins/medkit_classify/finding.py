"""What a classifier finds in an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What was found about one image, one candidate in it, or one aspect of it."""

    candidate: str
    """Name of the candidate or of the aspect; empty for an image as a whole."""
    name: str
    """The most probable class."""
    probabilities: Mapping[str, float]
    """Class -> probability according to the network."""
    confidence: float | None = None
    """Calibrated probability of the class; None if the bundle is not calibrated."""
    distance: float | None = None
    """Distance from the training images, where 1 is the limit; None if the bundle does not know it."""
    reason: str = ""
    """Why no class is given; empty if one is."""

    @property
    def abstained(self) -> bool:
        """Whether no class is given."""
        return bool(self.reason)
