"""The hooks: everything that a plugin can add to medkit.

A plugin is an importable package named by an entry point of the group `medkit`. It implements any of these functions
with `@medkit.hookimpl` and returns values. Importing it must not import torch, monai, numpy, nibabel or itk.
"""

from __future__ import annotations

from collections.abc import Sequence

from pluggy import HookspecMarker

from medkit.specs import BundleSpec, CommandSpec, TaskSpec

HOOK_API = 1
"""Version of the hooks. A plugin may set `HOOK_API = 1` in its package; one with another number is not loaded."""

hookspec = HookspecMarker("medkit")


@hookspec
def medkit_tasks() -> Sequence[TaskSpec]:  # type: ignore[empty-body]
    """Return the tasks that this plugin adds under `medkit run`."""


@hookspec
def medkit_bundles() -> Sequence[BundleSpec]:  # type: ignore[empty-body]
    """Return the MONAI bundles that this plugin brings, for its own tasks or for those of other plugins."""


@hookspec
def medkit_commands() -> Sequence[CommandSpec]:  # type: ignore[empty-body]
    """Return the commands that this plugin adds under `medkit`."""
