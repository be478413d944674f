"""Contours: `medkit run contours` turns label maps into polygons, RTSTRUCT and meshes, and polygons into label maps."""

from __future__ import annotations

from medkit import hookimpl
from medkit.specs import TaskSpec


@hookimpl
def medkit_tasks() -> list[TaskSpec]:
    """Return the task `contours`."""
    text = "Outline structures as polygons, RTSTRUCT and meshes, and back."
    return [TaskSpec("contours", text, "medkit_contours.command:contours")]
