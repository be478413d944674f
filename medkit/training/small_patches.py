"""Patches on which a network cannot be trained, because nothing is left of them at its deepest level."""

from __future__ import annotations

import re
from collections.abc import Sequence

from medkit.errors import size_text

_TOO_FEW = re.compile(
    r"Expected more than 1 (?:spatial element|value per channel) when training, got input size (\D*[\d, ]+)"
)
"""torch's words for a layer that normalises over one voxel: InstanceNorm, BatchNorm."""


def patch_too_small(text: str, network: str, patch: Sequence[int]) -> str | None:
    """Return in words that the patches of a training are too small for its network; None for another error.

    text: of the error, with those that it comes from. network: the name of its class. patch: the size in voxels of the
    images that it was given; empty if not known.
    """
    found = _TOO_FEW.search(text)
    if found is None:
        return None
    left = [int(n) for n in re.findall(r"\d+", found[1])][2:]
    given = f" of {size_text(patch)} voxels" if patch else ""
    what = f" of {size_text(left)}" if left else ""
    return (
        f"the patches{given} are too small to train {network}: at one of its levels an image{what} is left, and a "
        "layer that normalises images needs two voxels or more; expected larger patches"
    )
