"""What a classifier is asked about one image of a case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medkit_classify.facts import Given

if TYPE_CHECKING:
    from medkit.inference import Prepared


@dataclass(eq=False)
class Question:
    """An image to classify; the network's output is added to it while the case is worked on."""

    prepared: Prepared | None
    """The input of the network, later with its output under `pred`; None if the candidate lies outside the image."""
    candidate: str = ""
    """Name of the candidate; empty for an image as a whole."""
    refused: str = ""
    """Why no class is given whatever the network's output is; empty if one may be given."""
    features: np.ndarray | None = None
    """(F,) input of the network's last linear layer."""
    statistics: np.ndarray | None = None
    """(S,) statistics of the image and of layers, see `ActivationRecorder.statistics`."""
    heat: np.ndarray | None = None
    """(1, I, J[, K]) on the network's grid, how much each voxel speaks for the class; None if not asked for."""
    side: int = 0
    """Shorter side of the image as it was read, in pixels; of a volume the shortest one."""
    given: Given | None = None
    """Features and text of the case; None if the bundle reads only images."""
