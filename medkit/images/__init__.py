"""Images: reading with checks, writing on an exact grid, in every format medkit knows.

One frame (RAS+, mm) and one layout, (C, I, J, K). The face of this package for plugins; each format has a module.
"""

from __future__ import annotations

from medkit.images.image import Image, count_frames, read_grid, read_image
from medkit.images.modality import is_ct
from medkit.images.phantom import make_image
from medkit.images.pictures import is_coloured

__all__ = [
    "Image",
    "count_frames",
    "is_coloured",
    "is_ct",
    "make_image",
    "read_grid",
    "read_image",
]
