"""Whether the values of an image are labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from medkit.images.image import Image

_FLAT = 0.8
"""Share of neighbours with the same number, among voxels other than 0, from which on whole numbers look like labels."""


def is_whole(image: Image) -> bool:
    """Return whether all values are whole numbers."""
    return image.data.dtype.kind != "f" or bool((image.data == np.rint(image.data)).all())


def background_label(labels: np.ndarray) -> int | None:
    """Return the number other than 0 that all corners of a label map (C, I, J, K) hold, as a background's; or None."""
    ends = [0, -1]
    corners = labels[:, ends][:, :, ends][:, :, :, ends]
    return int(corners.flat[0]) or None if (corners == corners.flat[0]).all() else None


def looks_like_labels(image: Image) -> bool:
    """Return whether an image holds whole numbers from 0 on, in regions of one number each, as label images do."""
    data = image.data
    if data.min() < 0 or not is_whole(image):
        return False
    longest = max(range(1, 4), key=lambda axis: data.shape[axis])
    first, second = (data.take(range(n, data.shape[longest] - 1 + n), longest) for n in (0, 1))
    inside = (first > 0) & (second > 0)
    return bool(inside.any() and (first == second)[inside].mean() > _FLAT)
