"""The task `template`: the unbiased average of several scans, and the transforms from it to each of them.

The work itself is in `averaging`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from medkit.task import Case, Output, Result, Runtime, Task

if TYPE_CHECKING:
    from medkit.space import Grid
    from medkit_register.choices import TemplateChoices

_PROGRAM_BYTES = 500 * 2**20
"""Memory of Python and its libraries, torch included."""
_BYTES_PER_VOXEL = 100
"""Memory per voxel of one scan: its copies while it is registered, and the sums."""
_BYTES_PER_POINT = 180
"""Memory per voxel of one scan for a warp."""


def template_task(choices: TemplateChoices) -> Task:
    """Return the task for one set of options."""
    extension = ".nii.gz" if choices.kind == "deformable" else ".tfm"
    to_template = {"from": "{suffix}", "to": "template", "mode": "image"}
    from_template = {"from": "template", "to": "{suffix}", "mode": "image"}
    return Task(
        name="template",
        outputs=[Output("image", "image", "template", entities={"desc": "template"})],
        members=[
            Output("transform", "transform", "transform", extension, to_template),
            Output("inverse_transform", "transform", "inverse_transform", extension, from_template),
        ],
        setup=functools.partial(_set_up, choices=choices),
        arguments={
            "type": choices.kind,
            "iterations": choices.iterations,
            "sharpen": choices.sharpen,
            **({"quality": choices.quality} if choices.kind == "deformable" else {}),
        },
        arity="all",
        whole=True,
        devices=("cpu", "cuda"),
        memory=functools.partial(memory_needed, kind=choices.kind),
    )


def _set_up(runtime: Runtime, *, choices: TemplateChoices) -> Callable[[Case], Result]:
    from medkit_register.averaging import set_up  # torch and the engine are loaded when the work starts

    return set_up(runtime, choices=choices)


def memory_needed(scan: Grid, *, kind: str) -> int:
    """Return the bytes needed at the peak for scans on grids like this one, without the maps (12 MB per brain)."""
    voxels = int(np.prod(scan.shape))
    return _PROGRAM_BYTES + voxels * (_BYTES_PER_VOXEL + _BYTES_PER_POINT * (kind == "deformable"))
