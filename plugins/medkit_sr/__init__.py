"""Super-resolution: `medkit run sr` makes scans sharper than they were acquired."""

from __future__ import annotations

from pathlib import Path

from medkit import hookimpl
from medkit.specs import BundleSpec, TaskSpec

_BUNDLES = Path(__file__).parent / "bundles"


@hookimpl
def medkit_tasks() -> list[TaskSpec]:
    """Return the task `sr`."""
    return [TaskSpec("sr", "Make scans sharper, thick slices thin.", "medkit_sr.command:sr")]


@hookimpl
def medkit_bundles() -> list[BundleSpec]:
    """Return the bundles of the task `sr`."""
    return [
        BundleSpec("sr", "mri_super_resolution", _BUNDLES / "mri_super_resolution", modality="MR"),
        BundleSpec("sr", "ct_xray_super_resolution", _BUNDLES / "ct_xray_super_resolution"),
    ]
