"""The hooks: everything a plugin can add to medkit.

A plugin is an importable package named by an entry point of the group `medkit`. It implements any of these functions
with `@medkit.hookimpl` and returns values; it must not import torch, monai, numpy, nibabel or itk when it is imported.
"""

from __future__ import annotations

from collections.abc import Sequence

from pluggy import HookspecMarker

from medkit.specs import BundleSpec, CommandSpec, TaskSpec

HOOK_API = 1
"""Version of this contract. A plugin may set `HOOK_API = 1` in its package; another number is reported, not loaded."""

hookspec = HookspecMarker("medkit")


@hookspec
def medkit_tasks() -> Sequence[TaskSpec]:  # type: ignore[empty-body]
    """The tasks this plugin adds under `medkit run`."""


@hookspec
def medkit_bundles() -> Sequence[BundleSpec]:  # type: ignore[empty-body]
    """The MONAI bundles this plugin brings, for its own tasks or for another plugin's."""


@hookspec
def medkit_commands() -> Sequence[CommandSpec]:  # type: ignore[empty-body]
    """The commands this plugin adds under `medkit`."""
