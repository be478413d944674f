"""How well labels and landmarks of two scans match after a registration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medkit.images import read_image
from medkit.transforms import Transform, read_points, resample


def scores(inputs: Mapping[str, Path], transform: Transform) -> tuple[dict[str, Any], list[str]]:
    """Return Dice of labels and TRE of landmarks, after and before registration, and warnings about missing files.

    `transform` takes fixed points to moving points. A score needs the file of both scans; `inputs` are paths by role.
    """
    metrics: dict[str, Any] = {}
    warnings = []
    for what, score in (("labels", _label_scores), ("landmarks", _landmark_scores)):
        fixed, moving = (inputs.get(f"{side}_{what}") for side in ("fixed", "moving"))
        if fixed and moving:
            metrics |= score(fixed, moving, transform)
        elif fixed:
            warnings.append(f"no {what} of the moving image to compare with {fixed.name}")
    return metrics, warnings


def _label_scores(fixed: Path, moving: Path, transform: Transform) -> dict[str, Any]:
    """Return the mean Dice over the labels that both files have, and their number; resampled by nearest neighbour."""
    from medkit.evaluation import dice

    a, b = (read_image(path, labels=True) for path in (fixed, moving))
    shared = sorted((set(np.unique(a.data).tolist()) & set(np.unique(b.data).tolist())) - {0})
    values: dict[str, Any] = {"labels": len(shared)}
    for name, used in (("dice", transform), ("dice_before", None)):
        moved = resample(b, a.grid, used, interpolation="nearest")
        first, second = (torch.from_numpy(np.ascontiguousarray(i.data[0]).astype(np.int64)) for i in (a, moved))
        overlap = dice(first, second)
        values[name] = round(float(np.mean([overlap.get(int(label), 0.0) for label in shared])), 4) if shared else None
    return values


def _landmark_scores(fixed: Path, moving: Path, transform: Transform) -> dict[str, Any]:
    """Return the mean and the largest distance in mm, and the mean before registration."""
    from medkit.evaluation import matched, target_registration_error

    _, ours, theirs, _ = matched(read_points(moving), read_points(fixed))
    after = target_registration_error(transform.map_points(theirs), ours)
    before = target_registration_error(theirs, ours)
    return {
        "tre_mm": round(after["mean"], 4),
        "tre_max_mm": round(after["max"], 4),
        "tre_before_mm": round(before["mean"], 4),
    }
