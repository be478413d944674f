"""Scores of label images: overlap, distances between surfaces, volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medkit.errors import InputError
from medkit.evaluation.measures.grids import check_space, on_grid, read_side, reoriented
from medkit.evaluation.measures.label_maps import names_next_to, present, translated
from medkit.evaluation.results import EvaluationSettings, Pair, ScoreRow, Scores
from medkit.images.image import Image
from medkit.images.label_values import background_label

_NONE = float("nan")
_SEVERAL = 3
"""Labels on either side from which on a total miss is not taken for a finding."""
_LISTED = 20
"""Largest number of labels that a warning names; it counts the others."""


def score_labels(pair: Pair, settings: EvaluationSettings) -> Scores:
    """Compare two label images. Raises InputError."""
    reference = read_side(pair.reference, labels=True)
    given = read_side(pair.result, labels=True)
    result = on_grid(given, reference, resample=settings.resample, labels=True)
    doubts = [*check_space(given, reference, labels=True), *_check_overlap(given, result, reference)]
    expected = reference.data[0]
    names = {**names_next_to(pair.reference), **names_next_to(pair.result)}
    in_result = present(result)
    left_out: list[int] = []
    if settings.label_map:
        expected = translated(expected, settings.label_map.numbers)
        names = {**names_next_to(pair.result), **settings.label_map.names}
        left_out = sorted(in_result - set(settings.label_map.targets))
        in_result -= set(left_out)
    in_reference = present(expected)
    labels = settings.labels or tuple(sorted(in_result | in_reference))
    grid = reference.grid
    steps = grid.affine[:3, :3] if grid.is_sheared else grid.spacing
    table = compare_labels(result, expected, steps, labels)
    rows = tuple(ScoreRow(str(label), names.get(label, ""), values) for label, values in table.items())
    doubts += _doubts_about_background(reference, given, labels)
    doubts += _warnings(labels, in_result, in_reference, left_out)
    return Scores(pair, _over_labels(table), rows, tuple(doubts))


def _check_overlap(given: Image, result: np.ndarray, reference: Image) -> list[str]:
    """Return a warning if several labels have no voxel in common with any label of the reference.

    One structure may be missed; several at once are more likely in another space. Raises InputError if they came from
    another grid as well.
    """
    expected = reference.data[0]
    if min(len(present(result)), len(present(expected))) < _SEVERAL or ((result != 0) & (expected != 0)).any():
        return []
    doubt = f"no labelled voxel in common with {reference.path}, so probably in another space"
    if reoriented(given, reference.grid) is None:
        raise InputError(f"{given.path}: {doubt}: bring it there with medkit transform apply")
    return [doubt]


def compare_labels(
    result: np.ndarray,
    reference: np.ndarray,
    steps: Sequence[float] | np.ndarray,
    labels: Sequence[int] | None = None,
    *,
    surfaces: bool = True,
) -> dict[int, dict[str, float]]:
    """Return label -> measures of two label images (I, J, K) on one grid.

    `steps` are the spacings (3,) mm of orthogonal axes, or for other grids (3, 3) mm with the step from a voxel to the
    next along I, J and K in its columns.

    `dice` (0 .. 1); `hd95_mm`, the larger of the two directions' 95th percentiles of the distances between surfaces;
    `assd_mm`, the mean of these distances in both directions together; `volume_error_percent` of the reference's
    volume and `volume_error_mm3`, result minus reference. A surface is the voxels with a neighbour across a face
    that is outside the label or outside the image; distances are between centres of voxels (as MONAI defines both).

    A label in only one of the images has Dice 0 and distances NaN, and percent NaN if the reference lacks it. A label
    in neither has NaN. `labels` are those to compare; None: all but 0. Without `surfaces` the distances, which take
    most of the time, are left out.
    """
    if result.shape != reference.shape:
        raise ValueError(f"expected two label images on one grid, got {result.shape} and {reference.shape}")
    if labels is None:
        labels = sorted(present(result) | present(reference))
    numbers = {label: number for number, label in enumerate(labels, start=1)}
    a, b = translated(result, numbers), translated(reference, numbers)
    count = len(labels) + 1
    sizes_a, sizes_b = (np.bincount(side.ravel(order="K"), minlength=count) for side in (a, b))
    shared = np.bincount(a[a == b], minlength=count)
    voxel = float(np.prod(steps) if np.ndim(steps) == 1 else abs(np.linalg.det(np.asarray(steps))))
    distances = _distances(a, b, steps, count - 1) if surfaces else {}
    return {
        label: _overlap(int(sizes_a[n]), int(sizes_b[n]), int(shared[n]), voxel) | distances.get(n, {})
        for label, n in numbers.items()
    }


def surface_distances(
    a: np.ndarray, b: np.ndarray, steps: Sequence[float] | np.ndarray, axes: Sequence[int]
) -> tuple[Any, Any]:
    """Return the distances in mm of each surface voxel of mask `a` to the surface of `b`, and the other way round.

    Masks (I, J, K) bool, neither of them empty; `steps` as in `compare_labels`; `axes`: those with more than one voxel.
    """
    from scipy.ndimage import distance_transform_edt
    from scipy.spatial import KDTree

    surface_a, surface_b = surface(a, axes), surface(b, axes)
    if np.ndim(steps) == 2:  # the distance transform only knows orthogonal axes
        places_a, places_b = (np.argwhere(side) @ np.asarray(steps).T for side in (surface_a, surface_b))
        return KDTree(places_b).query(places_a)[0], KDTree(places_a).query(places_b)[0]
    to_b = distance_transform_edt(~surface_b, sampling=steps)[surface_a]
    to_a = distance_transform_edt(~surface_a, sampling=steps)[surface_b]
    return to_b, to_a


def surface(mask: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Return the voxels of a mask (I, J, K) with a neighbour outside it, or outside the image, along one of `axes`."""
    inner = mask.copy()
    for axis in axes:
        ours, theirs = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        ours[1:] &= theirs[:-1]
        ours[:-1] &= theirs[1:]
        ours[0] = ours[-1] = False
    return mask & ~inner


def _distances(
    a: np.ndarray, b: np.ndarray, steps: Sequence[float] | np.ndarray, count: int
) -> dict[int, dict[str, float]]:
    """Return `hd95_mm` and `assd_mm` of the labels 1 to `count`, each from the box that holds it in both images."""
    from scipy.ndimage import find_objects

    axes = [axis for axis, size in enumerate(a.shape) if size > 1]
    out = {}
    for number, (one, other) in enumerate(zip(*(find_objects(side, count) for side in (a, b)), strict=True), start=1):
        if one is None or other is None:
            out[number] = {"hd95_mm": _NONE, "assd_mm": _NONE}
            continue
        box = tuple(slice(min(x.start, y.start), max(x.stop, y.stop)) for x, y in zip(one, other, strict=True))
        directions = surface_distances(a[box] == number, b[box] == number, steps, axes)
        hd95 = max(float(np.percentile(distances, 95)) for distances in directions)
        out[number] = {"hd95_mm": hd95, "assd_mm": float(np.concatenate(directions).mean())}
    return out


def _overlap(ours: int, theirs: int, shared: int, voxel: float) -> dict[str, float]:
    """Return Dice and volume errors from numbers of voxels; `voxel`: volume of one in mm3."""
    return {
        "dice": 2 * shared / (ours + theirs) if ours + theirs else _NONE,
        "volume_error_percent": 100 * (ours - theirs) / theirs if theirs else _NONE,
        "volume_error_mm3": (ours - theirs) * voxel if ours + theirs else _NONE,
    }


def _over_labels(table: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Return the means over the labels for which a measure is defined, volume errors as absolute values."""

    def mean(name: str) -> float:
        values = np.abs([row[name] for row in table.values()])
        defined = values[np.isfinite(values)]
        return float(defined.mean()) if len(defined) else _NONE

    names = ("volume_error_percent", "volume_error_mm3")
    return {n: mean(n) for n in ("dice", "hd95_mm", "assd_mm")} | {f"absolute_{n}": mean(n) for n in names}


def _doubts_about_background(reference: Image, given: Image, labels: Sequence[int]) -> list[str]:
    """Return that a label on both sides is probably their background, whose Dice of nearly 1 raises the mean."""
    outside = background_label(given.data)
    if outside not in labels or background_label(reference.data) is None:
        return []
    return [f"label {outside} fills all corners: if it is the background, leave it out by --labels or --label-map"]


def _warnings(labels: Sequence[int], in_result: set[int], in_reference: set[int], left_out: Sequence[int]) -> list[str]:
    wanted = set(labels)
    groups = (
        (wanted & in_reference - in_result, "missing in the result: Dice 0, no distance"),
        (
            wanted & in_result - in_reference,
            "missing in the reference: Dice 0, no distance, no volume error in percent",
        ),
        (wanted - in_result - in_reference, "on neither side: not scored"),
        (left_out, "in the result, but not in the label map: not scored"),
    )
    found = [f"{_listed(group)} {what}" for group, what in groups if group]
    return found if labels else [*found, "no label on either side: not scored"]


def _listed(labels: Sequence[int] | set[int]) -> str:
    """Return `label 4` or `labels 4, 7, 9`; a long list is cut short."""
    numbers = sorted(labels)
    rest = f" and {len(numbers) - _LISTED} more" if len(numbers) > _LISTED else ""
    return f"label{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:_LISTED]))}{rest}"
