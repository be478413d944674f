"""What a bundle's result is worth: against a label image, an image or a class, and over all cases."""

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
"""Of one case: measures, or what was said of its class."""
KINDS: Mapping[str, Kind] = {"labels": "labels", "image": "images", "table": "classes"}
"""What a bundle gives (`medkit.bundles.contract.Contract.kind`) -> the kind of evaluation."""
MEASURES: Mapping[str, tuple[str, ...]] = {
    "labels": ("dice",),
    "images": ("ssim", "psnr_db"),
    "classes": ("auc", "accuracy", "balanced_accuracy", "ece"),
}
"""Kind -> what is measured, the main measure first."""
LESS_IS_BETTER = ("ece",)


@dataclass(frozen=True)
class Scorer:
    """Scores the results of a bundle."""

    settings: EvaluationSettings
    role: str
    """What the main output is called."""
    classes: tuple[str, ...] = ()
    """Those that count; none: all."""

    def reference(self, stated: str) -> Any:
        """What is compared with: the image that a path stands for, or a class as it is stated. Raises InputError."""
        if self.settings.kind == "classes":
            return stated
        return read_image(Path(stated), labels=self.settings.kind == "labels")

    def score(self, result: Result, reference: Any, case: Path) -> Score:
        """The score of a case. Raises InputError where result and reference cannot be compared."""
        made: Any = result.outputs[self.role]
        if self.settings.kind == "classes":
            said = dict(result.metrics["probabilities"])
            found = {name: said[name] for name in self.classes or said}
            chosen = max(found, key=lambda name: found[name])
            return Prediction(case, case, found, chosen, found[chosen])
        labels = self.settings.kind == "labels"
        voxels = on_grid(made, reference, resample=self.settings.resample, labels=labels)
        if labels:
            return {"dice": self._dice(voxels, reference)}
        values = compare_images(voxels, reference.data[0], None, self.settings.data_range)
        return {name: values[name] for name in MEASURES["images"]}

    def _dice(self, voxels: np.ndarray, reference: Image) -> float:
        """The mean over the labels that either side has."""
        expected, wanted = reference.data[0], self.settings.labels or None
        if self.settings.label_map:
            expected = translated(expected, self.settings.label_map.numbers)
            wanted = wanted or self.settings.label_map.targets
        table = compare_labels(voxels, expected, reference.grid.spacing, wanted, surfaces=False)
        defined = [row["dice"] for row in table.values() if np.isfinite(row["dice"])]
        return float(np.mean(defined)) if defined else float("nan")


def measure_of(kind: str, scores: Sequence[Score], references: Sequence[Any]) -> Measure:
    """`MEASURES` of cases with their references, for any weighting of them (see `medkit.evaluation.bootstrap`)."""
    if kind == "classes":
        given = gathered([s for s in scores if isinstance(s, Prediction)], references)
        return lambda weights: _of(MEASURES[kind], overall(given, weights))
    values = {name: np.array([s[name] for s in scores if isinstance(s, Mapping)]) for name in MEASURES[kind]}
    return lambda weights: {name: _mean(own, weights) for name, own in values.items()}


def difference(before: Measure, after: Measure) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A measure of the same cases twice: the later values, and as `fall_<name>` by how much they are worse."""

    def both(weights: np.ndarray) -> dict[str, np.ndarray]:
        then, now = before(weights), after(weights)
        signs = {name: -1.0 if name in LESS_IS_BETTER else 1.0 for name in now}
        # rounded, for sums of the same numbers in another order are not quite equal
        return dict(now) | {
            f"fall_{name}": np.round(sign * (then[name] - now[name]), 12) for name, sign in signs.items()
        }

    return both


def _of(names: Sequence[str], values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values[name] for name in names}


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R,) weighted means of the values that are finite, (N,); NaN where there are none."""
    kept = np.isfinite(values)
    total = weights[:, kept].sum(axis=1)
    summed = weights[:, kept] @ values[kept]
    return np.divide(summed, total, out=np.full(len(total), np.nan), where=total > 0)
