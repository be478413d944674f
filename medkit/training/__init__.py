"""Training a bundle's network: the library behind `medkit train`, and the objects that train configs may name.

A config names `medkit.training.Samples`, `UnpairedSamples`, `SampleNumbers`, `Progress`, `Cosine` and `ClipGradients`.
All of them work under MONAI's own `python -m monai.bundle run` too; nothing here imports torch or monai before it is
used.
"""

from __future__ import annotations

from medkit.training.engine import train
from medkit.training.handlers import ClipGradients, Cosine, Progress
from medkit.training.plan import TrainingPlan, TrainingResult
from medkit.training.samples import SampleNumbers, Samples, UnpairedSamples

__all__ = [
    "ClipGradients",
    "Cosine",
    "Progress",
    "SampleNumbers",
    "Samples",
    "TrainingPlan",
    "TrainingResult",
    "UnpairedSamples",
    "train",
]
