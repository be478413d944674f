"""Segmentation: networks that label structures in scans, and `medkit run segment`, which runs them."""

from __future__ import annotations

from pathlib import Path

from medkit import hookimpl
from medkit.specs import BundleSpec, TaskSpec

_BUNDLES = Path(__file__).parent / "bundles"


@hookimpl
def medkit_tasks() -> list[TaskSpec]:
    """Return the tasks `segment` and `deface`."""
    return [
        TaskSpec("segment", "Label structures in images.", "medkit_segment.command:segment"),
        TaskSpec("deface", "Remove face and ears from scans of heads.", "medkit_segment.deface_command:deface"),
    ]


@hookimpl
def medkit_bundles() -> list[BundleSpec]:
    """Return the bundles of the task `segment`."""
    return [
        BundleSpec("segment", name, _BUNDLES / name, modality=modality, auto=auto)
        for name, modality, auto in (
            ("brain_mri_segmentation", "MR", True),
            ("chest_ct_segmentation", "CT", True),
            ("infant_mri_segmentation", "MR", False),
            ("brain_mri_mask", "MR", False),
        )
    ]
