"""Enhancement: `medkit run enhance` removes noise and bias fields and strengthens contrast."""

from __future__ import annotations

from pathlib import Path

from medkit import hookimpl
from medkit.specs import BundleSpec, TaskSpec

_BUNDLES = Path(__file__).parent / "bundles"


@hookimpl
def medkit_tasks() -> list[TaskSpec]:
    """Return the task `enhance`."""
    return [TaskSpec("enhance", "Remove noise and bias fields.", "medkit_enhance.command:enhance")]


@hookimpl
def medkit_bundles() -> list[BundleSpec]:
    """Return the bundles of the task `enhance`."""
    return [
        BundleSpec("enhance", "mri_enhancement", _BUNDLES / "mri_enhancement", modality="MR"),
        BundleSpec("enhance", "lowfield_to_highfield", _BUNDLES / "lowfield_to_highfield", modality="MR", auto=False),
    ]
