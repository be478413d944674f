"""Scans of one person brought together by `medkit run register`, in a process of its own.

Plugins do not know each other: whichever one brings that task does it, as it would for a user.
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

KEPT = ("MEDKIT_PLUGINS", "MEDKIT_HOME", "MEDKIT_THREADS")
"""Variables that the call inherits; others, such as an output folder, are for this run."""


def aligned(fixed: Image, moving: Sequence[Image], threads: int) -> list[np.ndarray]:
    """(4, 4) for each image: takes points of the fixed image's space to its own, rigid, RAS+ mm.

    Raises MedkitError where an image could not be aligned.
    """
    from medkit.transforms import read_transform

    with tempfile.TemporaryDirectory(prefix="medkit_") as folder:
        paths = []
        for number, image in enumerate([fixed, *moving]):
            paths.append(Path(folder) / f"scan_{number}.nii")
            image.write(paths[-1])
        command = ["run", "register", "--type", "rigid", "--fixed", str(paths[0]), "--json", "--threads", str(threads)]
        done = _medkit([*command, "-o", str(Path(folder) / "out"), *map(str, paths[1:])])
        records = [json.loads(line) for line in done.stdout.splitlines()]
        if done.returncode or len(records) != len(moving):
            raise MedkitError(f"the scans could not be aligned: {done.stderr.strip()[-500:]}")
        files = [record["medkit"]["outputs"]["transform"]["path"] for record in records]
        return [np.array(read_transform(Path(file)).matrix) for file in files]  # type: ignore[attr-defined]


def _medkit(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MEDKIT_") or name in KEPT}
    return subprocess.run(
        [sys.executable, "-m", "medkit", *arguments], env=kept, capture_output=True, text=True, check=False
    )
