"""Scores of images: mean squared error, structural similarity, peak signal-to-noise ratio, correlation."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from medkit.errors import InputError
from medkit.evaluation.measures import metrics
from medkit.evaluation.measures.grids import check_space, on_grid, read_side
from medkit.evaluation.results import EvaluationSettings, Pair, Scores
from medkit.images.image import Image

_FEW = 64
"""Largest number of different whole numbers in an image that is probably a label image."""


def score_images(pair: Pair, settings: EvaluationSettings) -> Scores:
    """Compare two images. Raises InputError."""
    reference, image = read_side(pair.reference), read_side(pair.result)
    result = on_grid(image, reference, resample=settings.resample, labels=False)
    doubts = check_space(image, reference, labels=False)
    mask = None
    if pair.mask is not None:
        mask = on_grid(read_side(pair.mask, labels=True), reference, resample=settings.resample, labels=True) > 0
        if not mask.any():
            raise InputError(f"{pair.mask}: the mask keeps no voxel of {pair.reference}")
    values = compare_images(result, reference.data[0], mask, settings.data_range)
    return Scores(pair, values, warnings=(*doubts, *_warnings(image, reference)))


def compare_images(
    result: np.ndarray, reference: np.ndarray, mask: np.ndarray | None = None, data_range: float | None = None
) -> dict[str, float]:
    """Return `mse` (squared units), `ssim`, `psnr_db`, `ncc` and `data_range` of two images (I, J, K) on one grid.

    `mask` (I, J, K) bool picks the voxels, for SSIM the centres of its windows. `data_range` is the span of the
    intensities for SSIM and PSNR; None: from the lowest to the highest value of the reference.
    """
    import torch

    a, b = (torch.from_numpy(np.ascontiguousarray(image, np.float32)) for image in (result, reference))
    kept = None if mask is None else torch.from_numpy(np.ascontiguousarray(mask))
    span = float(b.max() - b.min()) if data_range is None else data_range
    return {
        "mse": metrics.mse(a, b, kept),
        "ssim": metrics.ssim(a, b, kept, data_range=span),
        "psnr_db": metrics.psnr(a, b, kept, data_range=span),
        "ncc": metrics.ncc(a, b, kept),
        "data_range": span,
    }


def rounded_scores(image: Image, reference: Image) -> dict[str, float | None]:
    """Return `compare_images` of two images on one grid, for a sidecar: five digits; None for an infinite PSNR."""
    found = compare_images(image.data[0], reference.data[0])
    return {name: float(f"{value:.5g}") if math.isfinite(value) else None for name, value in found.items()}


def _warnings(image: Image, reference: Image) -> Iterator[str]:
    for side in (image, reference):
        # other warnings of the sanity check, such as thick slices, matter to networks only
        yield from (f"{side.path}: {warning}" for warning in side.warnings if "NaN" in warning)
    if _few_numbers(image) and _few_numbers(reference):
        yield "both files hold only a few whole numbers: if they are labels, use --kind labels"


def _few_numbers(image: Image) -> bool:
    return image.data.dtype.kind in "iu" and len(np.unique(image.data.reshape(-1, order="A")[::97])) <= _FEW
