"""Images: reading with checks and writing on an exact grid, in every format that medkit knows.

There is one frame, RAS+ mm, and one layout, (C, I, J, K). Each format has a module. This is the face of the package for
plugins.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
