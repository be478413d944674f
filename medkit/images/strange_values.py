"""Values that no scanner makes, for which computations in single precision go wrong."""

from __future__ import annotations

import numpy as np

HUGE = 1e15
"""Largest value whose squares can be summed over an image in single precision."""
FAR = 1e5
"""Largest span of all values, in spans of the middle 99 % of them: next to a value that is farther away than that,
single precision keeps two digits of the others. One of 1e9 in a head of 1000 changed a fifth of the enhanced voxels."""
_SAMPLE = 100_000
"""Voxels of which the middle is estimated."""


def strange_values(values: np.ndarray) -> str | None:
    """Return in a phrase why no scanner makes these finite values (of any shape); None if one may."""
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
        return None
    low, high = float(values.min()), float(values.max())
    if max(-low, high) > HUGE:
        return f"its values reach from {low:.3g} to {high:.3g}: is the file damaged, or its scaling wrong?"
    sample = values.ravel(order="K")[:: max(1, values.size // _SAMPLE)]
    some_low, some_high = (float(share) for share in np.percentile(sample, [0.5, 99.5]))
    if high - low > FAR * (some_high - some_low) > 0:
        return (
            f"its values reach from {low:.3g} to {high:.3g}, and 99 % of them lie between {some_low:.3g} and "
            f"{some_high:.3g}: is one voxel damaged?"
        )
    return None
