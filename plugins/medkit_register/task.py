"""The task `register`: files in, aligned image and transforms out. The work on them is in `registration`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import UsageError
from medkit.inference import bundle_identity
from medkit.task import Output, Task, absolute
from medkit_register.label_scores import SCORED, check_pairs
from medkit_register.registration import set_up

if TYPE_CHECKING:
    from medkit.space import Grid
    from medkit_register.choices import RegisterChoices

_STARTS = ("auto", "moments", "centre", "header")


def registration(shared: Mapping[str, Path], choices: RegisterChoices) -> Task:
    """The task for one set of options.

    `shared` has the role `fixed` and, where given, `fixed_mask`, `fixed_labels`, `fixed_landmarks` and the same of
    `moving_`. Raises UsageError for an `init` that is neither a known word nor a file, and for moving labels or
    landmarks without fixed ones.
    """
    check_pairs(shared)
    if choices.kind == "joint" and choices.midpoint:
        raise UsageError("--midpoint: takes --type rigid, affine or deformable, not joint")
    if choices.init not in _STARTS:
        if not Path(choices.init).is_file():
            raise UsageError(f"--init {choices.init}: expected {', '.join(_STARTS)} or a transform file")
        shared = {**shared, "init": absolute(choices.init)}
        choices = replace(choices, init="file")
    arguments: dict[str, Any] = {"type": choices.kind, "metric": choices.metric, "init": choices.init}
    if choices.bends:
        arguments["quality"] = choices.quality
    if choices.midpoint:
        arguments["midpoint"] = True
    return Task(
        name="register",
        outputs=_outputs(shared["fixed"], choices),
        setup=functools.partial(set_up, shared=shared, choices=choices),
        staged=True,
        arguments=arguments,
        role="moving",
        accepts=("moving_mask", *(f"moving_{what}" for what in SCORED)),
        shared=shared,
        devices=("cpu", "cuda"),
        memory=functools.partial(memory_needed, shared["fixed"], quality=choices.quality if choices.bends else None),
        bundle=bundle_identity(choices.bundle) if choices.bundle and choices.bends else None,
    )


def _outputs(fixed: Path, choices: RegisterChoices) -> tuple[Output, ...]:
    """The files of one case: the moving image and its transforms, with a midpoint those of the fixed one as well."""
    output = functools.partial(Output, reference=fixed)
    extension = ".nii.gz" if choices.bends else ".tfm"
    space = "midpoint" if choices.midpoint else "{space}"
    outputs = [
        output("image", "image", "registered", entities={"space": space, "desc": "registered"}),
        output("transform", "transform", "transform", extension, _direction("{suffix}", space)),
        output("inverse_transform", "transform", "inverse_transform", extension, _direction(space, "{suffix}")),
    ]
    if choices.kind == "joint":
        outputs += [
            output(
                f"{part}_transform",
                "transform",
                f"{part}_transform",
                ".tfm",
                {**_direction("{suffix}", space), "desc": part},
            )
            for part in ("rigid", "affine")
        ]
    if choices.midpoint:
        there, back = _direction("{space}", space), _direction(space, "{space}")
        outputs += [
            output("fixed_image", "image", "fixed", entities={"space": space, "desc": "fixed"}),
            output("fixed_transform", "transform", "fixed_transform", extension, there),
            output("fixed_inverse_transform", "transform", "fixed_inverse_transform", extension, back),
        ]
    return tuple(outputs)


def _direction(start: str, end: str) -> dict[str, str]:
    return {"from": start, "to": end, "mode": "image"}


def memory_needed(fixed: Path, moving: Grid, *, quality: str | None) -> int:
    """Bytes that aligning one image after the other takes at its peak, torch included.

    The images lie on grids like `moving`; `quality` is that of the warp, None where there is none. Measured on brains
    of 5.5 million voxels (peak_rss_mb of the last of four): 1.1 GB for affine maps, 1.4 GB with a warp, 3.0 GB by
    `best`.
    """
    from medkit.images import read_grid

    voxels = [int(np.prod(grid.shape)) for grid in (read_grid(fixed), moving)]
    needed = _PROGRAM_BYTES + _BYTES_PER_VOXEL * sum(voxels)
    if quality is not None:
        from medkit_register.deformable import LARGEST

        needed += _BYTES_PER_POINT[quality] * min(voxels[0], LARGEST)
    return needed


_PROGRAM_BYTES = 400 * 2**20
_BYTES_PER_VOXEL = 75
_BYTES_PER_POINT = {"fast": 50, "default": 70, "best": 350}
