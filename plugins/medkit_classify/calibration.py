"""How far to trust a classifier: calibrated probabilities, and the distance from its training images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medkit.errors import BundleError
from medkit.inference import WEIGHTS, Bundle
from medkit.task import sha256_of

if TYPE_CHECKING:
    import torch

VARIANCE_FLOOR = 0.1
"""Smallest variance along an axis of the distance, for features of variance 1; a smaller one may be due to chance."""


@dataclass(frozen=True, eq=False)
class FeatureDistance:
    """Distance from training images: a Gaussian along the principal components of their features."""

    mean: np.ndarray
    """(F,) mean of the features after compression of their large values, as for the next fields."""
    scale: np.ndarray
    """(F,) divisors of the features."""
    axes: np.ndarray
    """(F, D) principal components, orthonormal."""
    spread: np.ndarray
    """(D + 1,) variance along each component, and along all other directions."""

    @classmethod
    def fitted(cls, features: np.ndarray) -> FeatureDistance:
        """Fit it to (N, F) features of training images."""
        features = _compressed(features)
        mean = features.mean(0)
        # a feature that is nearly constant on training images may change on others, so its scale must not vanish
        scale = np.maximum(features.std(0), 1e-3 * np.abs(features).max())
        centred = (features - mean) / scale
        _, values, axes = np.linalg.svd(centred, full_matrices=False)
        variance = values**2 / len(features)
        count = int((variance > VARIANCE_FLOOR).sum())
        return cls(mean, scale, axes[:count].T, np.append(variance[:count] + VARIANCE_FLOOR, VARIANCE_FLOOR))

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Return the root mean square of (N, F) features' standard scores, (N,); about 1 for training images."""
        centred = (_compressed(features) - self.mean) / self.scale
        along = centred @ self.axes
        left = ((centred**2).sum(1) - (along**2).sum(1)).clip(min=0)
        squares = (along**2 / self.spread[:-1]).sum(1) + left / self.spread[-1]
        out: np.ndarray = np.sqrt(squares / len(self.mean))
        return out

    def state(self) -> dict[str, torch.Tensor]:
        """Return it as tensors, for a file."""
        import torch

        parts = {"mean": self.mean, "scale": self.scale, "axes": self.axes, "spread": self.spread}
        kinds = {"axes": np.float16}
        return {
            name: torch.from_numpy(np.ascontiguousarray(value, kinds.get(name, np.float32)))
            for name, value in parts.items()
        }

    @classmethod
    def read(cls, path: Path) -> FeatureDistance:
        """Read it from a file of `state`. Raises BundleError if the file cannot be read."""
        import torch

        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            return cls(**{name: state[name].double().numpy() for name in ("mean", "scale", "axes", "spread")})
        except Exception as error:  # torch raises several types of error for a file of another kind
            raise BundleError(f"{path}: expected statistics of the training images' features: {error}") from error


def _compressed(features: np.ndarray) -> np.ndarray:
    """Return features with large values on a logarithmic scale: their tails are longer than a Gaussian's."""
    out: np.ndarray = np.sign(features) * np.log1p(10 * np.abs(features))
    return out


@dataclass(frozen=True)
class Scaling:
    """Turn logits into calibrated probabilities."""

    temperature: float
    """Divisor of the logits (Guo et al. 2017)."""
    offsets: tuple[float, ...] = ()
    """Added to the scaled logit of each class, because training may overrate rare classes; empty: nothing is added."""

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Return (C,) probabilities for (C,) logits; a single logit is that of the second of two classes."""
        from scipy.special import softmax

        whole = np.array([0.0, logits[0]]) if len(logits) == 1 else logits.astype(np.float64)
        scaled = whole / self.temperature + (self.offsets or 0.0)
        out: np.ndarray = softmax(scaled)
        return out


@dataclass(frozen=True)
class Calibration:
    """How to trust a bundle's output, as its metadata state under `medkit.calibration` (see `calibrate`)."""

    scalings: Mapping[str, Scaling] = field(default_factory=dict)
    """Aspect -> how its logits become the confidence; "" for classes without aspects; empty if not calibrated."""
    threshold: float | None = None
    """Largest distance at which a class is given; None: a class is always given."""
    layers: tuple[str, ...] = ()
    """Names of the layers whose statistics are the features of the distance."""
    file: Path | None = None
    """File of the `FeatureDistance`."""
    note: str = ""
    """What is missing, for the sidecar and the report; empty if nothing is."""

    @classmethod
    def of(cls, bundle: Bundle) -> Calibration:
        """Read it from a bundle's metadata; a calibration of other weights is not used."""
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
    def feature_distance(self) -> FeatureDistance | None:
        """The distance from the training images; None if the bundle does not know it."""
        return FeatureDistance.read(self.file) if self.file else None

    def calibrated(self, logits: np.ndarray, aspect: str = "") -> np.ndarray | None:
        """Return (C,) probabilities for the (C,) logits of an aspect, see `Scaling`; None if not calibrated."""
        scaling = self.scalings.get(aspect)
        return scaling(logits) if scaling else None

    def distance(self, statistics: np.ndarray | None) -> float | None:
        """Return the distance of an image from the training images, where 1 is the limit, from its (S,) statistics."""
        if self.feature_distance is None or self.threshold is None or statistics is None:
            return None
        return float(self.feature_distance.distances(statistics[None].astype(np.float64))[0] / self.threshold)


def is_out_of_distribution(distance: float | None) -> bool:
    """Return whether an image is further from the training images than the limit; False if the distance is unknown."""
    return distance is not None and not distance <= 1  # a distance that is NaN is beyond the limit, too
