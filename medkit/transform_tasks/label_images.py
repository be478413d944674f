"""Which images hold labels: by the intent of a NIfTI header."""

from __future__ import annotations

import contextlib
from pathlib import Path

from medkit.pipe.names import suffix_of

_LABEL_INTENT = 1002
"""NIFTI_INTENT_LABEL."""


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
