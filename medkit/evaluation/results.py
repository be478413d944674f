"""The values of an evaluation: its pairs and settings, its scores and summaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medkit.evaluation.measures.label_maps import LabelMap

Kind = Literal["labels", "images", "points", "classes"]

ROW_METRICS: Mapping[str, tuple[str, ...]] = {
    "labels": ("dice", "hd95_mm", "assd_mm", "volume_error_percent", "volume_error_mm3"),
    "images": (),
    "points": ("tre_mm",),
}
"""Kind -> measures of each label or point. Volume errors are positive if the result is larger."""
CASE_METRICS: Mapping[str, tuple[str, ...]] = {
    "labels": ("dice", "hd95_mm", "assd_mm", "absolute_volume_error_percent", "absolute_volume_error_mm3"),
    "images": ("mse", "ssim", "psnr_db", "ncc"),
    "points": ("mean_tre_mm", "median_tre_mm", "max_tre_mm"),
}
"""Kind -> measures of each pair; for labels the means over its labels."""
RESAMPLES = 2000
"""Number of bootstrap samples: with another seed the ends of an interval differ by about 2 % of its width."""


@dataclass(frozen=True)
class Pair:
    """A result and its reference."""

    name: str
    """Name of the case, for people."""
    result: Path
    """Labels, an image or points (with a transform: points of the moving image)."""
    reference: Path
    """The reference's labels, image or points (with a transform: points of the fixed image)."""
    mask: Path | None = None
    """For images: where to compare them."""
    transform: Path | None = None
    """For points: takes the reference's points (fixed) to the result's space (moving) before they are compared."""


@dataclass(frozen=True)
class EvaluationSettings:
    """How pairs are compared."""

    kind: Kind
    """Kind of the files."""
    labels: tuple[int, ...] = ()
    """Labels to compare, in the result's numbers; if empty, all that result or reference has. 0 never counts."""
    label_map: LabelMap | None = None
    """Translates the reference's numbers into the result's."""
    resample: bool = False
    """Resample a result (and a mask) on another grid onto the reference's grid, instead of refusing the pair."""
    data_range: float | None = None
    """Span of the intensities for SSIM and PSNR; None: the span of each reference."""
    seed: int = 0
    """Seed of the bootstrap."""


@dataclass(frozen=True)
class ScoreRow:
    """The scores of one label or one point of a pair."""

    label: str
    """Number of the label, or name of the point."""
    name: str
    """Name of the structure; empty if unknown."""
    values: Mapping[str, float]
    """Measure of `ROW_METRICS` -> value; NaN if not defined, such as the distance to a missing structure."""


@dataclass(frozen=True)
class Scores:
    """The scores of one pair."""

    pair: Pair
    values: Mapping[str, float]
    """Measure of `CASE_METRICS` -> value, and for images the `data_range` that was used."""
    rows: tuple[ScoreRow, ...] = ()
    """Scores of its labels or points."""
    warnings: tuple[str, ...] = ()
    """What to know when reading the scores, in plain sentences."""


@dataclass(frozen=True)
class Failure:
    """A pair that could not be compared."""

    pair: Pair
    error: str
    """The reason, with the name of the file."""
    refused: bool = False
    """Whether the sanity check refused an input."""


@dataclass(frozen=True)
class Summary:
    """A measure over those cases in which it is finite."""

    n: int
    """Number of these cases."""
    mean: float
    sd: float
    """Standard deviation of a sample (n - 1); NaN for one case."""
    low: float
    """2.5th percentile of the mean over bootstrap samples of the cases; NaN for one case."""
    high: float
    """97.5th percentile of the mean over bootstrap samples of the cases; NaN for one case."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of all pairs, and their summaries."""

    settings: EvaluationSettings
    scores: tuple[Scores, ...]
    failures: tuple[Failure, ...] = ()
    summary: Mapping[str, Summary] = field(default_factory=dict)
    """Measure of `CASE_METRICS` -> its summary over cases."""
    labels: Mapping[str, Mapping[str, Summary]] = field(default_factory=dict)
    """Label -> measure of `ROW_METRICS` -> its summary over cases; empty for images and points."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Label -> name of the structure, if known."""
