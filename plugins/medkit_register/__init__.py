"""Registration: `medkit run register` aligns scans with a fixed image, `medkit run template` averages a group."""

from __future__ import annotations

from medkit import hookimpl
from medkit.specs import TaskSpec


@hookimpl
def medkit_tasks() -> list[TaskSpec]:
    """The tasks `register` and `template`."""
    return [
        TaskSpec("register", "Align images with a fixed image.", "medkit_register.command:register"),
        TaskSpec("template", "Make one template of all images.", "medkit_register.template_command:template"),
    ]
