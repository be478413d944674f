"""Results as DICOM objects for an archive: segmentations, derived series, contours, reports.

They belong to the series that a result was made from, and hold its patient and study. highdicom makes them, an optional
dependency (`medkit[dicom]`). This is the face of the package for plugins.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
