"""How well labels and landmarks meet after a registration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import UsageError

if TYPE_CHECKING:
    from medkit.transforms import Transform

SCORED = ("labels", "landmarks")
"""What may be given of both scans, as `fixed_labels` and `moving_labels`."""


def check_pairs(shared: Mapping[str, Path]) -> None:
    """Raises UsageError for a moving file without the fixed one to compare it with."""
    for what in SCORED:
        if f"moving_{what}" in shared and f"fixed_{what}" not in shared:
            raise UsageError(f"--moving-{what} needs --fixed-{what} to be compared with")


def scores(inputs: Mapping[str, Path], transform: Transform) -> tuple[dict[str, Any], list[str]]:
    """Dice of labels and TRE of landmarks, where both scans have them, after and before; and what is missing.

    `transform` takes fixed points to moving points.
    """
    metrics: dict[str, Any] = {}
    warnings = []
    for what, score in (("labels", _dice), ("landmarks", _errors)):
        fixed, moving = (inputs.get(f"{side}_{what}") for side in ("fixed", "moving"))
        if fixed and moving:
            metrics |= score(fixed, moving, transform)
        elif fixed:
            warnings.append(f"no {what} of the moving image to compare with {fixed.name}")
    return metrics, warnings


def _dice(fixed: Path, moving: Path, transform: Transform) -> dict[str, Any]:
    """Mean over the labels that both have, and how many these are; labels are moved by nearest neighbour."""
    import torch

    from medkit.evaluation import dice
    from medkit.images import read_image
    from medkit.transforms import resample

    a, b = (read_image(path, labels=True) for path in (fixed, moving))
    shared = sorted((set(np.unique(a.data).tolist()) & set(np.unique(b.data).tolist())) - {0})
    values: dict[str, Any] = {"labels": len(shared)}
    for name, used in (("dice", transform), ("dice_before", None)):
        moved = resample(b, a.grid, used, interpolation="nearest")
        first, second = (torch.from_numpy(np.ascontiguousarray(i.data[0]).astype(np.int64)) for i in (a, moved))
        overlap = dice(first, second)
        values[name] = round(float(np.mean([overlap.get(int(label), 0.0) for label in shared])), 4) if shared else None
    return values


def _errors(fixed: Path, moving: Path, transform: Transform) -> dict[str, Any]:
    """Mean and largest distance in mm, and the mean before."""
    from medkit.evaluation import matched, target_registration_error
    from medkit.transforms import read_points

    _, ours, theirs, _ = matched(read_points(moving), read_points(fixed))
    after = target_registration_error(transform.map_points(theirs), ours)
    before = target_registration_error(theirs, ours)
    return {
        "tre_mm": round(after["mean"], 4),
        "tre_max_mm": round(after["max"], 4),
        "tre_before_mm": round(before["mean"], 4),
    }
