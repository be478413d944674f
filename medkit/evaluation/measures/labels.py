"""Label images against references: overlap, distances between surfaces, volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medkit.evaluation.measures.grids import on_grid
from medkit.evaluation.measures.label_maps import names_beside, present, translated
from medkit.evaluation.results import EvaluationSettings, Pair, ScoreRow, Scores
from medkit.images.image import read_image

_NONE = float("nan")
_LISTED = 20
"""Labels that a warning names before it counts the rest."""


def score_labels(pair: Pair, settings: EvaluationSettings) -> Scores:
    """Compare two label images. Raises InputError."""
    reference = read_image(pair.reference, labels=True)
    result = on_grid(read_image(pair.result, labels=True), reference, resample=settings.resample, labels=True)
    expected = reference.data[0]
    names = {**names_beside(pair.reference), **names_beside(pair.result)}
    here = present(result)
    left_out: list[int] = []
    if settings.label_map:
        expected = translated(expected, settings.label_map.numbers)
        names = {**names_beside(pair.result), **settings.label_map.names}
        left_out = sorted(here - set(settings.label_map.targets))
        here -= set(left_out)
    there = present(expected)
    labels = settings.labels or tuple(sorted(here | there))
    table = compare_labels(result, expected, reference.grid.spacing, labels)
    rows = tuple(ScoreRow(str(label), names.get(label, ""), values) for label, values in table.items())
    return Scores(pair, _over_labels(table), rows, tuple(_warnings(labels, here, there, left_out)))


def compare_labels(
    result: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float] | np.ndarray,
    labels: Sequence[int] | None = None,
    *,
    surfaces: bool = True,
) -> dict[int, dict[str, float]]:
    """Measures of each label of two label images (I, J, K) on one grid with axes at right angles, `spacing` (3,) in mm.

    `dice` (0 .. 1); `hd95_mm`, the larger of the two directions' 95th percentiles of the distances between surfaces;
    `assd_mm`, the mean of these distances of both directions together; `volume_error_percent` of the reference's
    volume and `volume_error_mm3`, result minus reference. A surface is the voxels with a neighbour across a face
    that is outside the label or outside the image; distances are between centres of voxels (as MONAI defines both).

    A label that one side alone has: Dice 0, distances NaN, percent NaN where the reference lacks it. One that
    neither has: NaN. `labels`: those to compare, all but 0 where None. Without `surfaces` the distances, which take
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
    voxel = float(np.prod(spacing))
    distances = _distances(a, b, spacing, count - 1) if surfaces else {}
    return {
        label: _overlap(int(sizes_a[n]), int(sizes_b[n]), int(shared[n]), voxel) | distances.get(n, {})
        for label, n in numbers.items()
    }


def surface_distances(
    a: np.ndarray, b: np.ndarray, spacing: Sequence[float] | np.ndarray, axes: Sequence[int]
) -> tuple[Any, Any]:
    """Distances in mm of each surface voxel of mask `a` to the surface of `b`, and of each of `b` to that of `a`.

    Masks (I, J, K) bool, neither of them empty; `axes`: those along which an image extends.
    """
    from scipy.ndimage import distance_transform_edt

    surface_a, surface_b = surface(a, axes), surface(b, axes)
    to_b = distance_transform_edt(~surface_b, sampling=spacing)[surface_a]
    to_a = distance_transform_edt(~surface_a, sampling=spacing)[surface_b]
    return to_b, to_a


def surface(mask: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """The voxels of a mask (I, J, K) that have a neighbour outside it, or outside the image, along one of `axes`."""
    inner = mask.copy()
    for axis in axes:
        ours, theirs = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        ours[1:] &= theirs[:-1]
        ours[:-1] &= theirs[1:]
        ours[0] = ours[-1] = False
    return mask & ~inner


def _distances(
    a: np.ndarray, b: np.ndarray, spacing: Sequence[float] | np.ndarray, count: int
) -> dict[int, dict[str, float]]:
    """`hd95_mm` and `assd_mm` of the labels 1 to `count`, each inside the box that holds it on both sides."""
    from scipy.ndimage import find_objects

    axes = [axis for axis, size in enumerate(a.shape) if size > 1]
    out = {}
    for number, (one, other) in enumerate(zip(*(find_objects(side, count) for side in (a, b)), strict=True), start=1):
        if one is None or other is None:
            out[number] = {"hd95_mm": _NONE, "assd_mm": _NONE}
            continue
        box = tuple(slice(min(x.start, y.start), max(x.stop, y.stop)) for x, y in zip(one, other, strict=True))
        there, back = surface_distances(a[box] == number, b[box] == number, spacing, axes)
        hd95 = max(float(np.percentile(way, 95)) for way in (there, back))
        out[number] = {"hd95_mm": hd95, "assd_mm": float(np.concatenate([there, back]).mean())}
    return out


def _overlap(ours: int, theirs: int, shared: int, voxel: float) -> dict[str, float]:
    """Dice and volume errors from numbers of voxels of `voxel` mm3."""
    return {
        "dice": 2 * shared / (ours + theirs) if ours + theirs else _NONE,
        "volume_error_percent": 100 * (ours - theirs) / theirs if theirs else _NONE,
        "volume_error_mm3": (ours - theirs) * voxel if ours + theirs else _NONE,
    }


def _over_labels(table: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """The means over the labels for which a measure is defined; errors of volumes without their sign."""

    def mean(name: str) -> float:
        values = np.abs([row[name] for row in table.values()])
        defined = values[np.isfinite(values)]
        return float(defined.mean()) if len(defined) else _NONE

    names = ("volume_error_percent", "volume_error_mm3")
    return {n: mean(n) for n in ("dice", "hd95_mm", "assd_mm")} | {f"absolute_{n}": mean(n) for n in names}


def _warnings(labels: Sequence[int], here: set[int], there: set[int], left_out: Sequence[int]) -> list[str]:
    wanted = set(labels)
    groups = (
        (wanted & there - here, "missing in the result: Dice 0, no distance"),
        (wanted & here - there, "missing in the reference: Dice 0, no distance, no volume error in percent"),
        (wanted - here - there, "on neither side: not scored"),
        (left_out, "in the result, and no number of the label map: not scored"),
    )
    found = [f"{_listed(group)} {what}" for group, what in groups if group]
    return found if labels else [*found, "no label on either side: not scored"]


def _listed(labels: Sequence[int] | set[int]) -> str:
    """`label 4`, `labels 4, 7, 9`, a long list cut short."""
    numbers = sorted(labels)
    rest = f" and {len(numbers) - _LISTED} more" if len(numbers) > _LISTED else ""
    return f"label{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:_LISTED]))}{rest}"
