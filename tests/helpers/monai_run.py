"""MONAI's own run of a bundle, to compare medkit's with."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np


def monai_run(
    root: Path,
    item: dict[str, Any],
    out: Path,
    *,
    configs: Sequence[str] = ("inference.json",),
    run_id: str = "run",
    data: str = "dataset::data",
    **changes: Any,
) -> dict[str, np.ndarray]:
    """Return the ending of each file that MONAI's run of a case writes (`trans`) -> its voxels.

    It runs in the bundle's folder, as its authors do. `changes` are config ids.
    """
    from monai.bundle import ConfigWorkflow

    from medkit.bundles.config import put_code_first, silence_monai

    silence_monai()
    put_code_first(root)
    before = Path.cwd()
    os.chdir(root)
    try:
        with warnings.catch_warnings(action="ignore"):
            theirs = ConfigWorkflow(
                [f"configs/{name}" for name in configs],
                workflow_type="infer", logging_file=False, run_id=run_id,
                **{data: [item], "output_dir": str(out), **changes},
            )  # fmt: skip
            theirs.initialize()
            theirs.run()
    finally:
        os.chdir(before)
    files = sorted(out.rglob("*.nii.gz"))
    return {path.name.removesuffix(".nii.gz").rpartition("_")[2]: voxels(path) for path in files}


def voxels(path: Path) -> np.ndarray:
    """Return the voxels of a NIfTI file, unscaled."""
    return np.asanyarray(nibabel.load(path).dataobj)
