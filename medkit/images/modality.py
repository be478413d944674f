"""The kind of scanner that made an image, judged by its values."""

from __future__ import annotations

import numpy as np


def is_ct(values: np.ndarray) -> bool:
    """Return whether voxels (of any shape) are Hounsfield units, because there are both air and water."""
    air, tissue = (values > -1100) & (values < -700), np.abs(values) < 200
    return bool(values.min() < -700 and air.mean() > 0.01 and tissue.mean() > 0.03)
