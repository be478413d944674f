"""Training images drawn from label maps, or degraded as by scanners, as MONAI transforms for train configs.

Configs and plugins name everything as `medkit.synthesis.NAME`. A name is imported at its first use, since most of them
need torch and monai; `__init__.pyi` lists them with their modules.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
