"""What a classifier is asked about one case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medkit_classify.facts import Given

if TYPE_CHECKING:
    from medkit.inference import Prepared


@dataclass(eq=False)
class Question:
    """An image to be classified, and the answer as it comes to be."""

    prepared: Prepared | None
    """None where there is no image: the candidate lies outside."""
    candidate: str = ""
    refused: str = ""
    """Why no answer can count, known before the network runs."""
    features: np.ndarray | None = None
    """(F,)"""
    levels: np.ndarray | None = None
    """(L,)"""
    heat: np.ndarray | None = None
    """(1, I, J[, K]) on the network's grid."""
    given: Given | None = None
    """What is known of the case beside the image."""
