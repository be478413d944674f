"""Training a bundle's network: the library behind `medkit train`, and what train configs may name.

Configs and plugins name everything as `medkit.training.NAME`; all of it works under `python -m monai.bundle run` too.
A name is imported at its first use, since most of them need torch and monai; `__init__.pyi` lists them with their
modules.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
