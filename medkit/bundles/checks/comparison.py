"""Whether `medkit run bundle` returns what MONAI's own run of a bundle returns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.bundles.bundle import Bundle
from medkit.pipe.lines import text_lines

if TYPE_CHECKING:
    import numpy as np

GRID, FINER = "grid", "finer"
"""Entry of the metadata's medkit block for a bundle whose results have a finer grid than the scan."""
LABELS_APART = 0.01
"""Largest share of voxels whose labels may differ: ties of resampling may be broken either way."""
IMAGES_APART = 0.01
"""Largest root mean square difference of images, as a share of the standard deviation of MONAI's."""


@dataclass(frozen=True)
class SyntheticCase:
    """A case that is made for the check."""

    item: Mapping[str, Any]
    """Key -> path, or list of paths; an item of MONAI's dataset."""
    record: Mapping[str, Any]
    """The same as a record of medkit."""
    words: str
    """What it is, for people."""


def medkit_results(bundle: Bundle, case: SyntheticCase, folder: Path) -> dict[str, Path] | str:
    """Return role -> file of what `medkit run bundle` makes of a case, or the reason why it makes nothing."""
    command = [sys.executable, "-m", "medkit", "run", "bundle", "--bundle", str(bundle.root), "--trust", "--json"]
    command += ["--precision", "float32", "--device", "cpu", "-o", str(folder)]
    # the trust of this run is not remembered
    environment = os.environ | {"MEDKIT_TRUST": str(folder / "trust.json")}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, input=json.dumps(dict(case.record)) + "\n"
    )
    block = json.loads(text_lines(done.stdout)[0])["medkit"] if done.stdout else {}
    if block.get("status") == "ok":
        return {role: Path(entry["path"]) for role, entry in block["outputs"].items()}
    words = [line.removeprefix("medkit: ") for line in done.stderr.splitlines() if line.startswith("medkit: ")]
    return str(block.get("error") or (words[-1] if words else f"ended with {done.returncode}"))


def difference(path: Path, expected: Path) -> str | None:
    """Return how a result of medkit differs from the file that MONAI's run has made; None if it does not."""
    import nibabel
    import numpy as np

    made = np.squeeze(np.asanyarray(nibabel.load(path).dataobj))
    if expected.name.endswith(".png"):
        from PIL import Image

        with Image.open(expected) as picture:
            theirs = np.squeeze(np.asarray(picture).T)
        if made.dtype.kind != "f" and made.max() <= 1:  # a mask, which MONAI may have made white
            theirs = (theirs > 0).astype(np.uint8)
    else:
        theirs = np.squeeze(np.asanyarray(nibabel.load(expected).dataobj))
    return _apart(made, theirs)


def is_blended(path: Path) -> bool:
    """Return whether a NIfTI file of several labels has values between them, by interpolation."""
    import nibabel
    import numpy as np

    values = np.asanyarray(nibabel.load(path).dataobj)
    return bool(values.max() > 1 and not np.allclose(values, values.round()))


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
