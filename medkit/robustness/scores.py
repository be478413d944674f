"""Scores of a bundle's results against references (label images, images or classes), and measures over all cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medkit.evaluation.bootstrap import Measure
from medkit.evaluation.classes.metrics import overall
from medkit.evaluation.classes.predictions import Prediction
from medkit.evaluation.classes.run import gathered
from medkit.evaluation.measures.grids import on_grid
from medkit.evaluation.measures.images import compare_images
from medkit.evaluation.measures.label_maps import translated
from medkit.evaluation.measures.labels import compare_labels
from medkit.evaluation.results import EvaluationSettings, Kind
from medkit.images.image import Image, read_image
from medkit.run.task import Result

Score = Mapping[str, float] | Prediction
"""The score of one case: its measures, or the prediction of its class."""
KINDS: Mapping[str, Kind] = {"labels": "labels", "image": "images", "table": "classes"}
"""Kind of a bundle's output (`medkit.bundles.contract.Contract.kind`) -> kind of evaluation."""
MEASURES: Mapping[str, tuple[str, ...]] = {
    "labels": ("dice",),
    "images": ("ssim", "psnr_db"),
    "classes": ("auc", "accuracy", "balanced_accuracy", "ece"),
}
"""Kind of evaluation -> its measures, the main one first."""
LESS_IS_BETTER = ("ece",)
"""Measures of which smaller values are better."""


@dataclass(frozen=True)
class Scorer:
    """Computes the scores of a bundle's results."""

    settings: EvaluationSettings
    role: str
    """Name of the main output."""
    classes: tuple[str, ...] = ()
    """Names of the classes that count; empty: all."""

    def reference(self, stated: str) -> Any:
        """Return the reference: the image at the path `stated`, or the class `stated`. Raises InputError."""
        if self.settings.kind == "classes":
            return stated
        return read_image(Path(stated), labels=self.settings.kind == "labels")

    def score(self, result: Result, reference: Any, case: Path) -> Score:
        """Return the score of a case. Raises InputError if result and reference cannot be compared."""
        made: Any = result.outputs[self.role]
        if self.settings.kind == "classes":
            probabilities = dict(result.metrics["probabilities"])
            found = {name: probabilities[name] for name in self.classes or probabilities}
            chosen = max(found, key=lambda name: found[name])
            return Prediction(case, case, found, chosen, found[chosen])
        labels = self.settings.kind == "labels"
        voxels = on_grid(made, reference, resample=self.settings.resample, labels=labels)
        if labels:
            return {"dice": self._dice(voxels, reference)}
        values = compare_images(voxels, reference.data[0], None, self.settings.data_range)
        return {name: values[name] for name in MEASURES["images"]}

    def _dice(self, voxels: np.ndarray, reference: Image) -> float:
        """Return the mean Dice over the labels that result or reference has."""
        expected, wanted = reference.data[0], self.settings.labels or None
        if self.settings.label_map:
            expected = translated(expected, self.settings.label_map.numbers)
            wanted = wanted or self.settings.label_map.targets
        table = compare_labels(voxels, expected, reference.grid.spacing, wanted, surfaces=False)
        defined = [row["dice"] for row in table.values() if np.isfinite(row["dice"])]
        return float(np.mean(defined)) if defined else float("nan")


def measure_of(kind: str, scores: Sequence[Score], references: Sequence[Any]) -> Measure:
    """Return `MEASURES` of cases and their references, as a function of weights (see `medkit.evaluation.bootstrap`)."""
    if kind == "classes":
        given = gathered([s for s in scores if isinstance(s, Prediction)], references)
        return lambda weights: _of(MEASURES[kind], overall(given, weights))
    values = {name: np.array([s[name] for s in scores if isinstance(s, Mapping)]) for name in MEASURES[kind]}
    return lambda weights: {name: _mean(own, weights) for name, own in values.items()}


def difference(before: Measure, after: Measure) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return the values of `after`, and as `fall_<name>` how much worse they are than those of `before`."""

    def both(weights: np.ndarray) -> dict[str, np.ndarray]:
        then, now = before(weights), after(weights)
        signs = {name: -1.0 if name in LESS_IS_BETTER else 1.0 for name in now}
        # rounded, because sums of the same numbers in another order are not quite equal
        return dict(now) | {
            f"fall_{name}": np.round(sign * (then[name] - now[name]), 12) for name, sign in signs.items()
        }

    return both


def _of(names: Sequence[str], values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values[name] for name in names}


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return (R,) weighted means of the finite values among (N,), with weights (R, N); NaN if their weights are 0."""
    kept = np.isfinite(values)
    total = weights[:, kept].sum(axis=1)
    summed = weights[:, kept] @ values[kept]
    return np.divide(summed, total, out=np.full(len(total), np.nan), where=total > 0)
