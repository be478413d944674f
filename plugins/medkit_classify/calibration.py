"""From a network's answer to a finding: the class, how sure that is, and whether the image is one to answer about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import BundleError
from medkit.inference import WEIGHTS, Bundle
from medkit.task import sha256_of

if TYPE_CHECKING:
    import torch

FLOOR = 0.1
"""Variance, where that of a feature is 1, that each axis of the distance has at least: less may be chance."""


@dataclass(frozen=True)
class Finding:
    """What is said about one image, or one candidate in it."""

    candidate: str
    """The candidate's name, or the aspect; empty where one thing is said of the image as a whole."""
    name: str
    """The most probable class."""
    probabilities: Mapping[str, float]
    """Class -> what the network says."""
    confidence: float | None = None
    """The calibrated probability of the class; None where the bundle is not calibrated."""
    distance: float | None = None
    """How unlike the training images it is, 1 being the limit; None where the bundle cannot tell."""
    reason: str = ""
    """Why no class is given; empty where one is."""

    @property
    def abstained(self) -> bool:
        """Whether no class is given."""
        return bool(self.reason)


@dataclass(frozen=True, eq=False)
class FeatureDistance:
    """Where the features of training images lie: a Gaussian on the axes of their principal components."""

    mean: np.ndarray
    """(F,), as the next ones of features whose large values are compressed."""
    scale: np.ndarray
    """(F,), by which features are divided first."""
    axes: np.ndarray
    """(F, D), orthonormal."""
    spread: np.ndarray
    """(D + 1,): variance along each axis, and along all others."""

    @classmethod
    def fitted(cls, features: np.ndarray) -> FeatureDistance:
        """To (N, F) features of training images."""
        features = _compressed(features)
        mean = features.mean(0)
        # features that hardly change on training images speak up on others: their scale is kept from vanishing
        scale = np.maximum(features.std(0), 1e-3 * np.abs(features).max())
        centred = (features - mean) / scale
        _, values, axes = np.linalg.svd(centred, full_matrices=False)
        variance = values**2 / len(features)
        count = int((variance > FLOOR).sum())
        return cls(mean, scale, axes[:count].T, np.append(variance[:count] + FLOOR, FLOOR))

    def distances(self, features: np.ndarray) -> np.ndarray:
        """(N,): root mean square of (N, F) features' standard scores, about 1 for images like those of the training."""
        centred = (_compressed(features) - self.mean) / self.scale
        along = centred @ self.axes
        left = ((centred**2).sum(1) - (along**2).sum(1)).clip(min=0)
        squares = (along**2 / self.spread[:-1]).sum(1) + left / self.spread[-1]
        out: np.ndarray = np.sqrt(squares / len(self.mean))
        return out

    def state(self) -> dict[str, torch.Tensor]:
        """As tensors, for a file."""
        import torch

        parts = {"mean": self.mean, "scale": self.scale, "axes": self.axes, "spread": self.spread}
        kinds = {"axes": np.float16}
        return {
            name: torch.from_numpy(np.ascontiguousarray(value, kinds.get(name, np.float32)))
            for name, value in parts.items()
        }

    @classmethod
    def read(cls, path: Path) -> FeatureDistance:
        """From such a file. Raises BundleError."""
        import torch

        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            return cls(**{name: state[name].double().numpy() for name in ("mean", "scale", "axes", "spread")})
        except Exception as error:  # torch raises several types of error for a file that is none of its own
            raise BundleError(f"{path}: expected where the features of training images lie: {error}") from error


def _compressed(features: np.ndarray) -> np.ndarray:
    """Means and deviations have long tails, which a Gaussian does not: their logarithm, straight about 0."""
    out: np.ndarray = np.sign(features) * np.log1p(10 * np.abs(features))
    return out


@dataclass(frozen=True)
class Scaling:
    """From logits to calibrated probabilities."""

    temperature: float
    """Logits are divided by it (Guo et al. 2017)."""
    offsets: tuple[float, ...] = ()
    """Added to the scaled logit of each class, since a training may make rare ones look frequent; none: nothing."""

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """(C,) probabilities from (C,) logits; one logit is that of the second of two classes."""
        whole = np.array([0.0, logits[0]]) if len(logits) == 1 else logits.astype(np.float64)
        scaled = whole / self.temperature + (self.offsets or 0.0)
        powers = np.exp(scaled - scaled.max())
        out: np.ndarray = powers / powers.sum()
        return out


@dataclass(frozen=True)
class Calibration:
    """How a bundle's answers are taken, as its metadata say under `medkit.calibration` (see `calibrate`)."""

    scalings: Mapping[str, Scaling] = field(default_factory=dict)
    """Aspect -> how its logits become the confidence; of classes without aspects that of "". None: not calibrated."""
    threshold: float | None = None
    """Distance beyond which no class is given; None: one is always given."""
    layers: tuple[str, ...] = ()
    """The layers whose statistics are the features of the distance."""
    file: Path | None = None
    """Where the features of training images lie."""
    note: str = ""
    """What is missing, for the sidecar and the report."""

    @classmethod
    def of(cls, bundle: Bundle) -> Calibration:
        """From a bundle's metadata; what was measured with other weights than its own does not count."""
        stated = bundle.block.get("calibration")
        if not isinstance(stated, Mapping):
            return cls(note="the bundle is not calibrated: it has no confidence and never abstains")
        if stated.get("weights_sha256") != sha256_of(bundle.root / WEIGHTS):
            return cls(note="the bundle was calibrated with other weights: it has no confidence and never abstains")
        return cls(
            scalings={
                str(aspect): Scaling(float(own["temperature"]), tuple(map(float, own.get("offsets", ()))))
                for aspect, own in stated.get("aspects", {"": stated}).items()
            },
            threshold=float(stated["threshold"]),
            layers=tuple(map(str, stated["layers"])),
            file=bundle.root / str(stated["file"]),
        )

    @cached_property
    def familiarity(self) -> FeatureDistance | None:
        """Where the features of training images lie."""
        return FeatureDistance.read(self.file) if self.file else None

    def calibrated(self, logits: np.ndarray, aspect: str = "") -> np.ndarray | None:
        """(C,) probabilities from the (C,) logits of an aspect, see `Scaling`; None: not calibrated."""
        scaling = self.scalings.get(aspect)
        return scaling(logits) if scaling else None

    def distance(self, levels: np.ndarray | None) -> float | None:
        """How unlike the training images one is, 1 being the limit, from its (L,) statistics."""
        if self.familiarity is None or self.threshold is None or levels is None:
            return None
        return float(self.familiarity.distances(levels[None].astype(np.float64))[0] / self.threshold)


def unlike(distance: float | None) -> str:
    """Why an image is not answered about; empty where it is near enough to those of the training."""
    if distance is None or distance <= 1:
        return ""
    return f"unlike the training images: {distance:.2g} times the largest distance allowed"


def rounded(value: Any) -> Any:
    """A number with six digits after the point, None as it is."""
    return None if value is None else round(float(value), 6)
