"""What goes into an evaluation and what comes out of it, as values."""

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
"""Kind -> what is measured of each label or point. Volume errors have a sign: + where the result is larger."""
CASE_METRICS: Mapping[str, tuple[str, ...]] = {
    "labels": ("dice", "hd95_mm", "assd_mm", "absolute_volume_error_percent", "absolute_volume_error_mm3"),
    "images": ("mse", "ssim", "psnr_db", "ncc"),
    "points": ("mean_tre_mm", "median_tre_mm", "max_tre_mm"),
}
"""Kind -> what is measured of each pair: for labels the mean over its labels."""
RESAMPLES = 2000
"""Bootstrap samples: the ends of an interval then repeat to some 2 % of its width."""


@dataclass(frozen=True)
class Pair:
    """A result and what it is compared with."""

    name: str
    """The case, for people."""
    result: Path
    """Labels, an image or points (for points with a transform: those of the moving space)."""
    reference: Path
    """The same of the reference (for points with a transform: those of the fixed space)."""
    mask: Path | None = None
    """Images: where to compare them."""
    transform: Path | None = None
    """Points: takes the reference's points (fixed) to the result's space (moving) first."""


@dataclass(frozen=True)
class EvaluationSettings:
    """How pairs are compared."""

    kind: Kind
    """What the files are."""
    labels: tuple[int, ...] = ()
    """The labels to compare, in the result's numbers; all that either side has where empty. 0 never counts."""
    label_map: LabelMap | None = None
    """The reference's numbers in the result's."""
    resample: bool = False
    """Put a result (and a mask) that lies on another grid onto the reference's, instead of refusing the pair."""
    data_range: float | None = None
    """Span of the intensities for SSIM and PSNR; where None that of each reference."""
    seed: int = 0
    """Of the bootstrap."""


@dataclass(frozen=True)
class ScoreRow:
    """The scores of one label or one point of a pair."""

    label: str
    """Number of the label, or name of the point."""
    name: str
    """Name of the structure, empty where unknown."""
    values: Mapping[str, float]
    """`ROW_METRICS`; NaN where not defined, such as the distance to a structure that is missing."""


@dataclass(frozen=True)
class Scores:
    """The scores of one pair."""

    pair: Pair
    values: Mapping[str, float]
    """`CASE_METRICS`, and for images the `data_range` that was used."""
    rows: tuple[ScoreRow, ...] = ()
    """Its labels or points."""
    warnings: tuple[str, ...] = ()
    """What to know when reading them, in plain sentences."""


@dataclass(frozen=True)
class Failure:
    """A pair that could not be compared."""

    pair: Pair
    error: str
    """The reason, naming the file."""
    refused: bool = False
    """Whether the sanity check refused an input."""


@dataclass(frozen=True)
class Summary:
    """A measure over the cases where it is finite."""

    n: int
    mean: float
    sd: float
    """Standard deviation of a sample (n - 1); NaN for one case."""
    low: float
    """2.5th percentile of the mean over bootstrap samples of the cases; NaN for one case."""
    high: float
    """97.5th percentile."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of all pairs, and what they amount to."""

    settings: EvaluationSettings
    scores: tuple[Scores, ...]
    failures: tuple[Failure, ...] = ()
    summary: Mapping[str, Summary] = field(default_factory=dict)
    """Measure of `CASE_METRICS` -> over cases."""
    labels: Mapping[str, Mapping[str, Summary]] = field(default_factory=dict)
    """Label -> measure of `ROW_METRICS` -> over cases; empty for images and points."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Label -> name of the structure, where known."""
