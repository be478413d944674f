"""What a task needs of the series of a study; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SeriesNeeds:
    """What a task needs of a series."""

    task: str
    """Name of the task, for messages."""
    modalities: Sequence[str] = ()
    """Those that it takes, such as `MR`; empty: any."""
    planes: bool = False
    """Whether it takes single slices."""
    frame_picked: bool = False
    """Whether `--frame` picks one of several frames."""
