"""Align scans of one person with `medkit run register`, in a separate process.

Plugins do not import each other: the command runs whichever installed plugin provides that task.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medkit.errors import MedkitError

if TYPE_CHECKING:
    from medkit.images import Image

KEPT = ("MEDKIT_PLUGINS", "MEDKIT_THREADS")
"""Variables of medkit that the registration inherits; others, such as an output folder, are for this run only."""


def aligned(fixed: Image, moving: Sequence[Image], threads: int) -> list[np.ndarray]:
    """Return for each moving image a rigid matrix (4, 4) from the fixed image's points to its own, RAS+ mm.

    Raises MedkitError if an image could not be aligned.
    """
    from medkit.transforms import read_transform

    with tempfile.TemporaryDirectory(prefix="medkit_") as folder:
        paths = []
        for number, image in enumerate([fixed, *moving]):
            paths.append(Path(folder) / f"scan_{number}.nii")
            image.write(paths[-1])
        command = ["run", "register", "--type", "rigid", "--fixed", str(paths[0]), "--json", "--threads", str(threads)]
        done = _medkit([*command, "-o", str(Path(folder) / "out"), *map(str, paths[1:])])
        records = [json.loads(line) for line in done.stdout.split("\n") if line]
        if done.returncode or len(records) != len(moving):
            raise MedkitError(f"the scans could not be aligned: {done.stderr.strip()[-500:]}")
        files = [record["medkit"]["outputs"]["transform"]["path"] for record in records]
        return [np.array(read_transform(Path(file)).matrix) for file in files]  # type: ignore[attr-defined]


def _medkit(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a medkit command without the variables meant for this run, and without modules of the working directory."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MEDKIT_") or name in KEPT}
    return subprocess.run(
        [sys.executable, "-P", "-m", "medkit", *arguments],
        env=kept,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
