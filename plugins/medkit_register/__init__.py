"""Registration: `medkit run register` aligns scans with a fixed image."""

from __future__ import annotations

from medkit import hookimpl
from medkit.specs import TaskSpec


@hookimpl
def medkit_tasks() -> list[TaskSpec]:
    """The task `register`."""
    return [TaskSpec("register", "Align images with a fixed image.", "medkit_register.command:register")]
