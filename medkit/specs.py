"""What plugins hand to medkit: plain frozen values, returned by the hooks, never mutated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "KINDS",
    "BundleSpec",
    "CommandSpec",
    "TaskSpec",
]

KINDS = ("image", "labels", "mask", "points", "transform", "table")
"""The kinds of file, as records and sidecars name them."""


@dataclass(frozen=True)
class TaskSpec:
    """A task: adds `medkit run <name>`."""

    name: str
    """The word after `medkit run`: a verb or the task's noun, such as `register`."""
    help: str
    """One line for `medkit run --help`, shown without importing the target."""
    target: str
    """`"package.module:attribute"` of a click command; imported only when the task is called."""
    trained: str = ""
    """`"package.module:attribute"` of a function that `medkit train` calls when a training of a bundle of this task has
    ended, with the new bundle's folder, the items (`medkit.training.DataList`) and the values of `--set`: it measures
    what only the final weights show, and adds it to the bundle. Empty: there is nothing to add."""


@dataclass(frozen=True)
class CommandSpec:
    """A command that is not a task: adds `medkit <name>`."""

    name: str
    """The word after `medkit`."""
    help: str
    """One line for `medkit --help`, shown without importing the target."""
    target: str
    """`"package.module:attribute"` of a click command or group; imported only when the command is called."""


@dataclass(frozen=True)
class BundleSpec:
    """A MONAI bundle for a task of this or another plugin."""

    task: str
    """The task that can run it, such as `segment`."""
    name: str
    """Its name for `--bundle`, such as `brain_mri_segmentation`."""
    root: Path
    """Its folder, which contains `configs/metadata.json`."""
    kinds: tuple[str, ...] = ("image",)
    """The kinds of file it takes (see `KINDS`)."""
    modality: str | None = None
    """`MR`, `CT`, `CR` and so on as in DICOM's Modality; None if it takes any."""
    auto: bool = True
    """Whether `--bundle auto`, the default of the tasks, may choose it; otherwise it must be named."""
