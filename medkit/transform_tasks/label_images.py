"""Which images hold labels: by their record, by the intent of a NIfTI header, and by their values."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from medkit.images.image import Image
from medkit.pipe.names import suffix_of

_LABEL_INTENT = 1002
"""NIFTI_INTENT_LABEL."""
_FLAT = 0.8
"""Share of neighbours with the same number, among voxels other than 0, from which on whole numbers look like labels."""


def stated_kind(path: Path, kind: str) -> str:
    """Return `kind`, or `labels` if it is `image` and the NIfTI header states that the values are labels."""
    if kind != "image" or not suffix_of(path).lower().startswith(".nii"):
        return kind
    import nibabel

    # an unreadable file is refused where it is read
    with contextlib.suppress(Exception):
        if int(nibabel.load(path).header["intent_code"]) == _LABEL_INTENT:
            return "labels"
    return kind


def is_whole(image: Image) -> bool:
    """Return whether all values are whole numbers."""
    return image.data.dtype.kind != "f" or bool((image.data == np.rint(image.data)).all())


def looks_like_labels(image: Image) -> bool:
    """Return whether an image holds whole numbers from 0 on, in regions of one number each, as label images do."""
    data = image.data
    if data.min() < 0 or not is_whole(image):
        return False
    longest = max(range(1, 4), key=lambda axis: data.shape[axis])
    first, second = (data.take(range(n, data.shape[longest] - 1 + n), longest) for n in (0, 1))
    inside = (first > 0) & (second > 0)
    return bool(inside.any() and (first == second)[inside].mean() > _FLAT)
