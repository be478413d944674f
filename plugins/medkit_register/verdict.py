"""Whether a registration ended better than it began, and what is tried if it did not.

The engine follows its metric inside the object that it found. Here the scans are compared once more by a coarse measure
that does not depend on the start, the metric or the object: the mutual information of the ranks of their intensities at
all points of the fixed scan, where the outside of the moving scan counts as background. So a result that is worse than
the scans as they were is seen, and a result that leaves the field of view as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.functional import grid_sample

from medkit.errors import MedkitError, size_text
from medkit.space import apply_affine
from medkit.transforms import AffineTransform, Transform
from medkit_register.affine import UNFINISHED, AffineResult, AffineSettings, register_affine
from medkit_register.descriptor_affine import follow_descriptors
from medkit_register.optimise import rigid_part
from medkit_register.problem import FEWEST
from medkit_register.pyramid import Pyramid

CLASSES = 16
"""Classes of equal size into which the object's intensities are put; background is one more."""
POINTS = 40
"""Points along the field of view."""
FALL = 0.9
"""Share of the information at the start below which a result is worse: interpolation alone costs up to 3 %."""
LITTLE = 0.1
"""Nats of information in common below which a result is doubtful: slabs of the neck with unlike contrasts have 0.11."""
UNCONFIRMED = 0.2
"""The same where the headers do not confirm the result: a chest on a head reaches 0.17, scans of the same part of the
body have 0.22 to 1.4."""
CONFIRMED = 0.5
"""Share of the information at the end that the headers alone have if they confirm the result."""
SIZES = (0.5, 2.0)
"""Range of the volume factor of a map between unlike contrasts, for which mutual information may be highest where one
scan lies within a part of the other: two scans of one person, T2 and FLAIR in thick slices, ended at 0.42."""

TURNED = 60.0
"""Degrees from which on a turn between two scans, by their headers, is doubtful: people do not lie so differently."""

SAME, OTHER = 1e-3, 0.05
"""Relative differences of spacing up to which it is the same, and from which on it is another."""
BETTER = 1.03
"""Factor by which scans must match better voxel by voxel than by their headers."""
DICE, TRE = 0.02, 0.5
"""Dice, and mm, by which labels and landmarks may be off for other reasons than the registration."""


def register_better(fixed: Pyramid, moving: Pyramid, settings: AffineSettings) -> AffineResult:
    """Register as `register_affine` does; if that ends worse than it began, from other starts as well.

    The result with the most information in common is returned, with a warning if even this one is worse than the scans
    were before. Raises MedkitError where the scans do not overlap at all, and what `register_affine` raises.
    """
    found = register_affine(fixed, moving, settings)
    starts = [information(fixed, moving, AffineTransform(start)) for start in _starts(settings)]
    began = max(starts)
    ended = information(fixed, moving, AffineTransform(found.matrix))
    for other in _others(settings):
        if ended >= max(FALL * began, LITTLE):
            break
        tried = register_affine(fixed, moving, other)
        reached = information(fixed, moving, AffineTransform(tried.matrix))
        if reached > ended:
            found, ended = replace(tried, start=_named(other)), reached
    if settings.descriptors and found.metric == "mi" and fixed.planar_axis is None:
        found = follow_descriptors(fixed, moving, found, rigid=settings.type == "rigid")
        ended = information(fixed, moving, AffineTransform(found.matrix))
    if overlap(fixed, moving, found.matrix) == 0:
        raise MedkitError(f"the scans do not overlap where they are aligned from the start {_named(settings)}")
    doubts = (*_doubts(found, settings, began, ended), *_doubts_about_borders(fixed, moving, found))
    if fixed.planar_axis is None and isinstance(settings.init, str):
        doubts += tuple(_doubts_about_turn(found.matrix))
    return replace(found, information=ended, headers_fit=starts[0] >= CONFIRMED * ended, warnings=doubts)


def _doubts(found: AffineResult, settings: AffineSettings, began: float, ended: float) -> Iterator[str]:
    """Yield what is doubtful about a result, `began` and `ended` with this information in common."""
    if ended < FALL * began:
        yield f"the scans match less than before: {ended:.2f} nats of information in common, {began:.2f} at the start"
    elif ended < (least := LITTLE if began > CONFIRMED * ended else UNCONFIRMED):
        yield f"the scans have little in common: {ended:.2f} nats of information, at least {least} are expected"
    grown = 1 / abs(float(np.linalg.det(found.matrix[:3, :3])))
    if found.metric == "mi" and not SIZES[0] <= grown <= SIZES[1]:
        yield f"the moving image changes its volume by a factor of {grown:.2g}; of one person, try --type rigid"
    if found.start and not (isinstance(settings.init, str) and settings.init == "auto"):
        yield f"the start {_named(settings)} led nowhere; the result is that of {found.start}"
    # steps that ran out do no harm where another measure confirms the result
    yield from (text for text in found.warnings if ended <= began or not text.startswith(UNFINISHED))


def _doubts_about_borders(fixed: Pyramid, moving: Pyramid, found: AffineResult) -> Iterator[str]:
    """Yield that only one scan is cut out, where mutual information was followed and no mask says what is compared."""
    if found.metric == "mi" and not (fixed.masked or moving.masked) and fixed.cut_out != moving.cut_out:
        cut, whole = ("fixed", "moving") if fixed.cut_out else ("moving", "fixed")
        yield (
            f"the {cut} scan was cut out, as a brain without its skull, the {whole} scan was not, and their contrasts "
            "differ: borders may lie in the wrong place; cut out both (heads by segment --bundle brain_mri_mask)"
        )


def _doubts_about_turn(matrix: np.ndarray) -> Iterator[str]:
    """Yield that a map (4, 4) turns more than people are turned in scanners: a header may be that of a mirror image."""
    turned = float(np.trace(rigid_part(matrix[:3])[:, :3]))
    turn = float(np.degrees(np.arccos(np.clip((turned - 1) / 2, -1, 1))))
    if turn > TURNED:
        yield (
            f"by their headers the scans are turned by {turn:.0f} degrees: if one header is wrong, left and right may "
            "be exchanged"
        )


def _starts(settings: AffineSettings) -> Iterator[np.ndarray]:
    """Yield maps (4, 4) that a result must not be worse than: first that of the headers, then a given one."""
    yield np.eye(4)
    if not isinstance(settings.init, str):
        yield settings.init


def _others(settings: AffineSettings) -> Iterator[AffineSettings]:
    """Yield settings to try instead: other starts, and at last a rigid map from the headers."""
    starts: tuple[Literal["header", "moments", "auto"], ...] = ("header", "moments", "auto")
    for init in starts:
        if not (isinstance(settings.init, str) and settings.init == init):
            yield replace(settings, init=init)
    if settings.type != "rigid":
        yield replace(settings, init="header", type="rigid")


def _named(settings: AffineSettings) -> str:
    return f"{settings.init if isinstance(settings.init, str) else 'given'} ({settings.type})"


def doubts_about(fixed: Pyramid, moving: Pyramid, whole: Transform, affine: AffineResult) -> Iterator[str]:
    """Yield what is doubtful about the `whole` map, which takes fixed to moving points, with `affine` as its part."""
    began = max(information(fixed, moving, AffineTransform(np.eye(4))), affine.information or 0.0)
    ended = information(fixed, moving, whole)
    if ended < FALL * began and not affine.warnings:
        yield f"the warp made the match worse: {ended:.2f} nats of information in common, {began:.2f} before"


def doubts_about_spacing(fixed: Pyramid, moving: Pyramid) -> Iterator[str]:
    """Yield that a slice spacing may be wrong: voxels of scans of one kind match better than their places in mm."""
    change = np.abs(moving.spacing / fixed.spacing - 1)
    slices = int(np.argmax(change))
    others = [axis for axis in range(3) if axis != slices]
    if (fixed.size != moving.size).any() or change[others].max() > SAME or change[slices] < OTHER:
        return
    voxel_to_voxel = moving.affine @ np.linalg.inv(fixed.affine)
    by_place, by_voxel = (information(fixed, moving, AffineTransform(m)) for m in (np.eye(4), voxel_to_voxel))
    if by_voxel > BETTER * by_place:
        first, second = (f"{float(scan.spacing[slices]):.3g}" for scan in (fixed, moving))
        yield (
            f"the slice spacing in a header may be wrong: both scans have {size_text(fixed.size.tolist())} voxels, of "
            f"the same size but for {first} and {second} mm along one axis, and match better voxel by voxel "
            f"({by_voxel:.2f} nats) than by their headers ({by_place:.2f})"
        )


def doubts_about_scores(scores: Mapping[str, Any]) -> Iterator[str]:
    """Yield which scores are worse than before registration; `scores` are those of `label_scores`."""
    dice, before = scores.get("dice"), scores.get("dice_before")
    if dice is not None and before is not None and dice < before - DICE:
        yield f"the labels overlap less than before: Dice {dice:.2f}, {before:.2f} before"
    error, before = scores.get("tre_mm"), scores.get("tre_before_mm")
    if error is not None and before is not None and error > before / FALL + TRE:
        yield f"the landmarks are farther apart than before: {error:.1f} mm, {before:.1f} mm before"


def information(fixed: Pyramid, moving: Pyramid, transform: Transform) -> float:
    """Return the mutual information (nats) of the scans under a map from fixed to moving points."""
    level = fixed.level(fixed.extent / POINTS)
    image, kept = _sampled(fixed, moving, transform)
    if level.mask is not None:
        kept &= level.mask > 0.5
    if int(kept.sum()) < FEWEST:
        return 0.0
    pairs = classes(level.image, fixed)[kept] * (CLASSES + 1) + classes(image, moving)[kept]
    joint = torch.bincount(pairs, minlength=(CLASSES + 1) ** 2).double().reshape(CLASSES + 1, -1)
    joint /= joint.sum()
    apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    some = joint > 0
    return float((joint[some] * torch.log(joint[some] / apart[some])).sum())


def classes(image: torch.Tensor, pyramid: Pyramid) -> torch.Tensor:
    """Return the class of each value of a level: 0 for background, then ranks among the object of the whole scan."""
    own = pyramid.level(pyramid.extent / POINTS).image
    floor = 0.5 * pyramid.threshold
    values = own[own > floor]
    shares = torch.linspace(0, 1, CLASSES + 1)[1:-1]
    edges = torch.quantile(values, shares) if values.numel() else torch.ones(CLASSES - 1)
    return torch.bucketize(image, edges).add_(1).where(image > floor, torch.zeros((), dtype=torch.int64))


def overlap(fixed: Pyramid, moving: Pyramid, matrix: np.ndarray) -> float:
    """Return the larger share of one object that lies inside the field of view of the other scan."""
    return max(_inside(fixed, moving, matrix), _inside(moving, fixed, np.linalg.inv(matrix)))


def _inside(scan: Pyramid, other: Pyramid, matrix: np.ndarray) -> float:
    level = scan.level(scan.extent / POINTS, margin=False)
    points = (level.image > scan.threshold).nonzero().numpy()
    at = apply_affine(np.linalg.inv(other.affine) @ matrix @ level.affine, points)
    several = other.size > 1
    inside = ((at > -0.5) & (at < other.size - 0.5))[:, several].all(axis=1)
    return float(np.mean(inside)) if len(points) else 0.0


def _sampled(fixed: Pyramid, moving: Pyramid, transform: Transform) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the moving level at the points of the fixed one, 0 outside of it, and which points its mask keeps."""
    level, other = fixed.level(fixed.extent / POINTS), moving.level(moving.extent / POINTS)
    points = np.stack(np.meshgrid(*map(np.arange, level.image.shape), indexing="ij"), -1).reshape(-1, 3)
    size = np.asarray(other.image.shape)
    index = apply_affine(other.index_from_world, transform.map_points(apply_affine(level.affine, points)))
    at = index * 2 / np.maximum(size - 1, 1) - 1
    at[:, size == 1] = 0.0  # planes are compared as if they lay in each other
    grid = torch.from_numpy(at[:, ::-1].astype(np.float32)).reshape(1, *level.image.shape, 3)

    def sampled(values: torch.Tensor) -> torch.Tensor:
        return grid_sample(values[None, None], grid, mode="bilinear", padding_mode="zeros", align_corners=True)[0, 0]

    kept = torch.ones(level.image.shape, dtype=torch.bool)
    if other.mask is not None:
        kept = sampled(1 - other.mask) < 0.5
    return sampled(other.image), kept
