"""Registration: `medkit run register` aligns scans with a fixed image, `medkit run template` averages a group."""

from __future__ import annotations

from pathlib import Path

from medkit import hookimpl
from medkit.specs import BundleSpec, TaskSpec

_BUNDLES = Path(__file__).parent / "bundles"


@hookimpl
def medkit_tasks() -> list[TaskSpec]:
    """Return the tasks `register` and `template`."""
    return [
        TaskSpec("register", "Align images with a fixed image.", "medkit_register.command:register"),
        TaskSpec("template", "Make one template of all images.", "medkit_register.template_command:template"),
    ]


@hookimpl
def medkit_bundles() -> list[BundleSpec]:
    """Return the bundle of the task `register`."""
    return [BundleSpec("register", "brain_mri_registration", _BUNDLES / "brain_mri_registration", modality="MR")]
