"""Transforms as values, their files, resampling through them, and points.

A transform takes points of the fixed space to the moving space, RAS+ mm. The face of this package for plugins.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
