"""The kind of scanner that made an image, judged by its values."""

from __future__ import annotations

import numpy as np

CT_OFFSET = 1024
"""What some programs add to Hounsfield units, so that they can be stored without a sign."""


def is_ct(values: np.ndarray) -> bool:
    """Return whether voxels (of any shape) are Hounsfield units, because there are both air and water."""
    air, tissue = (values > -1100) & (values < -700), np.abs(values) < 200
    return bool(values.min() < -700 and air.mean() > 0.01 and tissue.mean() > 0.03)


def is_ct_with_offset(values: np.ndarray) -> bool:
    """Return whether voxels (of any shape) would be Hounsfield units without `CT_OFFSET`.

    That is true of many images of other scanners too: it tells something only of images known to be CT.
    """
    return bool(values.min() > -100) and is_ct(values.astype(np.float32) - CT_OFFSET)
