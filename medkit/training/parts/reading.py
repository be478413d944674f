"""Reading images in a train config as `medkit run` reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ImageReader

from medkit.images.image import Image, read_image
from medkit.pipe.names import PICTURE_SUFFIXES


class ScanReader(ImageReader):
    """A reader for MONAI's `LoadImage`, for all images that medkit reads but pictures, which MONAI's readers take.

    So a network learns from DICOM and NIfTI in the same form as it is given them later: inverted X-rays
    (MONOCHROME1), rescaled values, and the order of axes.
    """

    def verify_suffix(self, filename: Sequence[str] | str) -> bool:
        """Return whether none of the files is a picture."""
        return not any(name.lower().endswith(PICTURE_SUFFIXES) for name in _names(filename))

    def read(self, data: Sequence[str] | str, **kwargs: Any) -> list[Image]:
        """Read images. Raises InputError."""
        return [read_image(Path(name)) for name in _names(data)]

    def get_data(self, img: Sequence[Image]) -> tuple[np.ndarray, dict[str, Any]]:
        """Return (I, J, K), or (I, J) of a plane, or several of them stacked first; and MONAI's metadata of them."""
        arrays = [image.data[0, ..., 0] if image.grid.shape[2] == 1 else image.data[0] for image in img]
        affine = img[0].grid.affine
        meta = {
            "affine": affine.copy(),
            "original_affine": affine.copy(),
            "spatial_shape": np.array(arrays[0].shape),
            "space": "RAS",
            "original_channel_dim": 0 if len(arrays) > 1 else float("nan"),
        }
        return (np.stack(arrays) if len(arrays) > 1 else arrays[0]), meta


def _names(given: Sequence[str] | str) -> tuple[str, ...]:
    return (str(given),) if isinstance(given, str | Path) else tuple(map(str, given))
