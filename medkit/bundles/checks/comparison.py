"""Whether `medkit run bundle` returns what MONAI's own run of a bundle returns."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from medkit.bundles.bundle import Bundle

if TYPE_CHECKING:
    import numpy as np

GRID, FINER = "grid", "finer"
"""Entry of the metadata's medkit block for a bundle whose results have a finer grid than the scan."""
LABELS_APART = 0.01
"""Largest share of voxels whose labels may differ: ties of resampling may be broken either way."""
IMAGES_APART = 0.01
"""Largest root mean square difference of images, as a share of the standard deviation of MONAI's."""
_SECONDS = 900
"""Longest time that `medkit run bundle` may take for one synthetic scan."""


def difference(bundle: Bundle, scan: Path, expected: Path, folder: Path) -> str | None:
    """Return how the result of `medkit run bundle` for a scan differs from the file that MONAI's run has made.

    None if it does not, or if medkit does not run such a bundle or such a scan, which is no fault of the bundle: `run
    bundle` puts results on the scan's grid, so that bundles with a finer one are run by their own task.
    """
    if bundle.block.get(GRID) == FINER:
        return None
    command = [sys.executable, "-m", "medkit", "run", "bundle", "--bundle", str(bundle.root), "--trust"]
    command += ["--precision", "float32", "--device", "cpu", str(scan), "-o", str(folder)]
    # the trust of this run is not remembered
    environment = os.environ | {"MEDKIT_TRUST": str(folder / "trust.json")}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL
    )
    if done.returncode or len(lines := done.stdout.splitlines()) != 1:
        return None
    import nibabel
    import numpy as np

    made, theirs = (np.squeeze(np.asanyarray(nibabel.load(path).dataobj)) for path in (lines[0], expected))
    return _apart(made, theirs)


def _apart(made: np.ndarray, expected: np.ndarray) -> str | None:
    if made.shape != expected.shape:
        return f"medkit run bundle returns the shape {made.shape}, MONAI {expected.shape}"
    if made.dtype.kind in "iub":
        different = int((made != expected.round()).sum())
        if different > LABELS_APART * made.size:
            return f"medkit run bundle returns other labels than MONAI at {different} of {made.size} voxels"
        return None
    distance = float(((made - expected) ** 2).mean() ** 0.5)
    if distance > IMAGES_APART * max(float(expected.std()), 1e-6):
        return f"medkit run bundle returns another image than MONAI: they differ by {distance:.3g} (root mean square)"
    return None
