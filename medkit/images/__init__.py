"""Images: reading with checks, writing on an exact grid, in every format medkit knows.

One frame (RAS+, mm) and one layout, (C, I, J, K). The face of this package for plugins; each format has a module.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
