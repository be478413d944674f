"""How far to trust a classifier: calibrated probabilities, and the distance from its training images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medkit.errors import BundleError, listed
from medkit.inference import WEIGHTS, Bundle
from medkit.task import sha256_of
from medkit_classify.activations import QUANTILES

if TYPE_CHECKING:
    import torch

LARGEST_SCORE = 5.0
"""Standard scores of features are cut there before they are weighed: one odd feature must not decide."""
OTHER_SIZE = 2.0
"""Factor by which an image's shorter side may differ from those of the training; beyond it, it is of another size."""
VARIANCE_FLOOR = 0.1
"""Smallest variance along an axis of the distance, for features of variance 1; a smaller one may be due to chance."""


PENALTY = 0.003
"""Weight of the squared weights of `FeatureDistance.with_weights`."""


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
    weights: np.ndarray | None = None
    """(F + 1,) weights of the features' standard scores, and an offset: their sum is the logarithm of the odds that an
    image is unlike those of the training. None if no such images were at hand."""

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

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Return the standard scores (N, F) of (N, F) features, cut at `LARGEST_SCORE`; 0 for average images."""
        out: np.ndarray = ((_compressed(features) - self.mean) / self.scale).clip(-LARGEST_SCORE, LARGEST_SCORE)
        return out

    def odds(self, features: np.ndarray) -> np.ndarray:
        """Return the logarithm of the odds (N,) that (N, F) features are those of images unlike the training's."""
        assert self.weights is not None, "fitted without images of other kinds"
        out: np.ndarray = self.scores(features) @ self.weights[:-1] + self.weights[-1]
        return out

    def with_weights(self, like: np.ndarray, unlike: np.ndarray, penalty: float = PENALTY) -> FeatureDistance:
        """Return it with the weights by which features of like images (N, F) differ most from unlike ones (M, F).

        A logistic regression in which both kinds count the same; `penalty` is that of the squared weights.
        """
        from scipy.optimize import minimize

        scores = self.scores(np.concatenate([like, unlike]))
        target = np.repeat([0.0, 1.0], [len(like), len(unlike)])
        share = np.repeat([0.5 / len(like), 0.5 / len(unlike)], [len(like), len(unlike)])

        def cost(weights: np.ndarray) -> tuple[float, np.ndarray]:
            odds = scores @ weights[:-1] + weights[-1]
            loss = float((share * np.logaddexp(0, np.where(target == 1, -odds, odds))).sum())
            left = share * (1 / (1 + np.exp(-odds)) - target)
            slope = np.append(scores.T @ left + penalty * weights[:-1], left.sum())
            return loss + penalty / 2 * float((weights[:-1] ** 2).sum()), slope

        start = np.zeros(scores.shape[1] + 1)
        found = minimize(cost, start, jac=True, method="L-BFGS-B", options={"maxiter": 300})
        return replace(self, weights=found.x)

    def state(self) -> dict[str, torch.Tensor]:
        """Return it as tensors, for a file."""
        import torch

        parts = {"mean": self.mean, "scale": self.scale, "axes": self.axes, "spread": self.spread}
        if self.weights is not None:
            parts["weights"] = self.weights
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
            found = {name: state[name].double().numpy() for name in ("mean", "scale", "axes", "spread")}
            return cls(**found, weights=state["weights"].double().numpy() if "weights" in state else None)
        except Exception as error:  # torch raises several types of error for a file of another kind
            raise BundleError(f"{path}: expected statistics of the training images' features: {error}") from error


def _compressed(features: np.ndarray) -> np.ndarray:
    """Return features with large values on a logarithmic scale: their tails are longer than a Gaussian's."""
    out: np.ndarray = np.sign(features) * np.log1p(10 * np.abs(features))
    return out


@dataclass(frozen=True)
class OddsLimit:
    """The largest odds of being unlike the training images with which a class is given (see `FeatureDistance.odds`)."""

    same_size: float
    """Logarithm of the odds, for images of the training's size."""
    other_size: float
    """The same for others: on images of their size nothing was validated, so less is needed to give no class."""
    spread: float
    """Standard deviation of the logarithm over the validation images."""

    def distance(self, odds: float, *, other_size: bool) -> float:
        """Return how far an image is, where 1 is the limit, and above it 1 more is one standard deviation."""
        return 1 + (odds - (self.other_size if other_size else self.same_size)) / self.spread


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
    odds_limit: OddsLimit | None = None
    """The same for the odds of being unlike; None if they are not known."""
    sides: tuple[int, int] | None = None
    """Smallest and largest shorter side of the training images, in pixels; None if not stated."""
    layers: tuple[str, ...] = ()
    """Names of the layers whose statistics are the features of the distance."""
    file: Path | None = None
    """File of the `FeatureDistance`."""
    note: str = ""
    """What is missing, for the sidecar and the report; empty if nothing is."""

    @classmethod
    def of(cls, bundle: Bundle) -> Calibration:
        """Read it from a bundle's metadata; a calibration of other weights is not used.

        Raises BundleError for a bundle in one file without its calibration: answers would not be those of the bundle.
        """
        stated = bundle.block.get("calibration")
        if not isinstance(stated, Mapping):
            return cls(note="the bundle is not calibrated: it has no confidence and never abstains")
        weights, file = bundle.root / WEIGHTS, bundle.root / str(stated["file"])
        # in one file weights are a part of the network, whose metadata state what they were made of
        digest = sha256_of(weights) if weights.is_file() else bundle.block.get("export", {}).get("weights_sha256")
        if digest is None or not file.is_file():
            raise BundleError(
                f"bundle {bundle.name}: its calibration did not come with it, so no class would have a confidence, and "
                "images unlike those of the training would get one: medkit bundle export writes files with it; medkit "
                "run bundle gives plain probabilities"
            )
        if stated.get("weights_sha256") != digest:
            return cls(note="the bundle was calibrated with other weights: it has no confidence and never abstains")
        return cls(
            scalings={
                str(aspect): Scaling(float(own["temperature"]), tuple(map(float, own.get("offsets", ()))))
                for aspect, own in stated.get("aspects", {"": stated}).items()
            },
            threshold=float(stated["threshold"]),
            odds_limit=OddsLimit(**{k: float(v) for k, v in odds.items()}) if (odds := stated.get("odds")) else None,
            sides=(int(sides[0]), int(sides[1])) if (sides := stated.get("sides")) else None,
            layers=tuple(map(str, stated["layers"])),
            file=file,
        )

    @cached_property
    def feature_distance(self) -> FeatureDistance | None:
        """The distance from the training images; None if the bundle does not know it."""
        return FeatureDistance.read(self.file) if self.file else None

    def calibrated(self, logits: np.ndarray, aspect: str = "") -> np.ndarray | None:
        """Return (C,) probabilities for the (C,) logits of an aspect, see `Scaling`; None if not calibrated."""
        scaling = self.scalings.get(aspect)
        return scaling(logits) if scaling else None

    def distance(self, statistics: np.ndarray | None, side: int | None = None) -> float | None:
        """Return the distance of an image from the training images, where 1 is the limit, from its (S,) statistics.

        side: the shorter side of the image in pixels, as it was read; None if that says nothing. The distance is the
        larger one of two: that of the Gaussian, and that of the odds of being unlike.
        """
        found = self.feature_distance
        if found is None or self.threshold is None or statistics is None:
            return None
        features = statistics[None].astype(np.float64)
        gaussian = float(found.distances(features)[0] / self.threshold)
        if found.weights is None or self.odds_limit is None:
            return gaussian
        other = self.size_in_words(side) != ""
        odds = self.odds_limit.distance(float(found.odds(features)[0]), other_size=other)
        return float(np.maximum(gaussian, odds))  # NaN stays NaN

    def size_in_words(self, side: int | None) -> str:
        """Return `larger` or `smaller` for an image of another size than those of the training; empty if it is not."""
        if self.sides is None or side is None:
            return ""
        if side > OTHER_SIZE * self.sides[1]:
            return "larger"
        return "smaller" if side * OTHER_SIZE < self.sides[0] else ""

    def difference_in_words(self, statistics: np.ndarray | None, side: int | None = None) -> str:
        """Return how an image differs from those of the training, such as `larger and sharper`; empty if not clear."""
        words = [self.size_in_words(side)]
        if self.feature_distance is not None and statistics is not None:
            scores = self.feature_distance.scores(statistics[None].astype(np.float64))[0]
            words += [
                more if scores[place] > CLEAR else less if scores[place] < -CLEAR else ""
                for place, more, less in _WORDS
            ]
        named = [word for word in words if word]
        return listed(named) if named else ""


CLEAR = 1.5
"""Standard score from which a property of an image is named as a reason."""
_WORDS = (
    (len(QUANTILES) + 1, "sharper", "smoother"),
    (QUANTILES.index(0.5), "brighter", "darker"),
    (len(QUANTILES), "of more contrast", "of less contrast"),
)
"""Places in `image_statistics` (differences of neighbours, median, standard deviation) -> words for more and less."""


def is_out_of_distribution(distance: float | None) -> bool:
    """Return whether an image is further from the training images than the limit; False if the distance is unknown."""
    return distance is not None and not distance <= 1  # a distance that is NaN is beyond the limit, too
