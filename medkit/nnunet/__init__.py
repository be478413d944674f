"""Models of nnU-Net v2 as MONAI bundles: `medkit bundle import nnunet`, and what the configs of such bundles name.

Isensee F. et al., nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation, Nature
Methods 18, 2021. nnU-Net's own package is not needed. A name is imported at its first use, since most of them need
torch and monai; `__init__.pyi` lists them with their modules.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
