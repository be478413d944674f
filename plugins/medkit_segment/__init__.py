"""Segmentation: networks that label structures in scans, and `medkit run segment`, which runs them."""

from __future__ import annotations

from pathlib import Path

from medkit import hookimpl
from medkit.specs import BundleSpec, TaskSpec

_BUNDLES = Path(__file__).parent / "bundles"


@hookimpl
def medkit_tasks() -> list[TaskSpec]:
    """Return the task `segment`."""
    return [TaskSpec("segment", "Label structures in images.", "medkit_segment.command:segment")]


@hookimpl
def medkit_bundles() -> list[BundleSpec]:
    """Return the bundles of the task `segment`."""
    return [BundleSpec("segment", "brain_mri_segmentation", _BUNDLES / "brain_mri_segmentation", modality="MR")]
