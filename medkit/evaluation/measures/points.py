"""Scores of landmarks: distances between points that should coincide."""

from __future__ import annotations

import numpy as np

from medkit.errors import InputError
from medkit.evaluation.results import EvaluationSettings, Pair, ScoreRow, Scores
from medkit.transforms.files import read_transform
from medkit.transforms.points import Points, read_points


def score_points(pair: Pair, settings: EvaluationSettings) -> Scores:
    """Return the target registration errors of two files of points, in mm. Raises InputError.

    A transform first takes the reference's points (of the fixed image) to the space of the result's points (of the
    moving image), which is the direction of ITK's convention.
    """
    result, reference = read_points(pair.result), read_points(pair.reference)
    names, ours, theirs, warnings = matched(result, reference)
    if pair.transform is not None:
        theirs = read_transform(pair.transform).map_points(theirs)
    distances = np.linalg.norm(ours - theirs, axis=1)
    values = {
        "mean_tre_mm": float(distances.mean()),
        "median_tre_mm": float(np.median(distances)),
        "max_tre_mm": float(distances.max()),
    }
    rows = tuple(ScoreRow(name, "", {"tre_mm": float(d)}) for name, d in zip(names, distances, strict=True))
    return Scores(pair, values, rows, tuple(warnings))


def matched(result: Points, reference: Points) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, list[str]]:
    """Return names and positions of the points that both have, by name if both have names, else by order; and warnings.

    Positions are (N, 3) RAS+ mm. Raises InputError if points without common names differ in number.
    """
    if result.named and reference.named and set(result.names) & set(reference.names):
        names = tuple(name for name in reference.names if name in result.names)
        unmatched = sorted(set(result.names) ^ set(reference.names))
        ours = result.positions[[result.names.index(name) for name in names]]
        theirs = reference.positions[[reference.names.index(name) for name in names]]
        return names, ours, theirs, [f"points on one side only: {', '.join(unmatched)}"] if unmatched else []
    if len(result.names) != len(reference.names):
        raise InputError(
            f"{result.path}: expected as many points as in {reference.path}, {len(reference.names)}, or common names; "
            f"got {len(result.names)}"
        )
    return reference.names, result.positions, reference.positions, []
