"""Scans for the registration engine, with what of them is compared: masks and lesions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from medkit.errors import InputError
from medkit.images import Image, read_image
from medkit.space import Grid
from medkit.transforms import resample
from medkit_register.pyramid import Pyramid, ScanVolume

LITTLE = 0.1
"""Share of the object below which a mask may be of a lesion: the brain is about a third of a head with its neck."""


def volume_of(image: Image, mask: np.ndarray | None = None) -> ScanVolume:
    """Return a scan for the registration engine, with a mask (I, J, K) bool where there is one."""
    return ScanVolume(
        torch.from_numpy(image.data[0].astype(np.float32)),
        image.grid.affine,
        None if mask is None else torch.from_numpy(mask.astype(np.float32)),
    )


def compared(grid: Grid, mask: Path | None, lesion: Path | None) -> np.ndarray | None:
    """Return which voxels (I, J, K) bool are compared: those of the mask outside of the lesion; None: all.

    Raises InputError if there are none.
    """
    kept, left_out = _mask_on(grid, mask), _mask_on(grid, lesion)
    if left_out is None:
        return kept
    rest: np.ndarray = ~left_out if kept is None else kept & ~left_out
    if not rest.any():
        raise InputError(f"{lesion}: the lesion leaves nothing of the image to compare")
    return rest


def _mask_on(grid: Grid, path: Path | None) -> np.ndarray | None:
    """Return a mask (I, J, K) bool on `grid`, resampled if it is on another grid; None if there is no `path`."""
    if path is None:
        return None
    mask = read_image(path, labels=True)
    if mask.grid.digest() != grid.digest():
        mask = resample(mask, grid, interpolation="nearest")
    kept: np.ndarray = mask.data[0] > 0
    if not kept.any():
        raise InputError(f"{path}: expected a mask that covers a part of the image, got none of its voxels")
    return kept


def doubts_about_mask(image: Image, masked: Pyramid, path: Path) -> tuple[str, ...]:
    """Return a warning if little of the object is compared; `masked` is the pyramid of the image with its mask."""
    mask = masked.level(masked.extent / 40).mask
    if mask is None:
        return ()
    whole = Pyramid(volume_of(image))
    inside = whole.level(whole.extent / 40).image > whole.threshold
    share = float((mask * inside).sum()) / max(float(inside.sum()), 1.0)
    if share >= LITTLE:
        return ()
    return (
        f"only {100 * share:.2g} % of the object in {path.name} is compared: a mask states where to compare, and "
        "--lesion-mask (--fixed-lesion-mask) what to leave out",
    )
