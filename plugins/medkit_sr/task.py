"""The task `sr`: brings an image to a finer grid, so that scanning the result again reproduces the image."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from medkit.inference import Bundle, RunSettings, bundle_task
from medkit.task import Case, Output, Result, Runtime, Stages, Task
from medkit_sr.methods import ResolveChoices
from medkit_sr.resolver import Networks, Resolver
from medkit_sr.target import Target

if TYPE_CHECKING:
    from medkit.space import Grid

OUTPUT = Output("image", "image", "sr", as_picture=True)
_PROGRAM_BYTES = 500 * 2**20
"""Memory of the process without images."""
_BYTES_PER_VOXEL = 24
"""Memory for each voxel of the result: six float32 volumes at once."""


def superresolution(choices: ResolveChoices, bundles: Sequence[Bundle], settings: RunSettings) -> Task:
    """Return the task for one set of options. Raises what `bundle_task` raises.

    bundles: those whose network may be used.
    """
    base = bundle_task("sr", bundles, settings)
    target = choices.target
    return replace(
        base,
        outputs=[OUTPUT],
        setup=functools.partial(set_up, choices=choices, bundles=bundles, settings=settings),
        arguments={
            **base.arguments,
            "spacing": target.spacing,
            "scale": target.scale,
            "axes": target.axes,
            "method": choices.method,
            "style": choices.style,
            "fuse": choices.fuse,
            "sequence": choices.sequence,
        },
        accepts=("reference", "guide"),
        shared=choices.shared,
        arity="all" if choices.fuse else "each",
        whole=choices.fuse,
        staged=not choices.fuse,
        memory=functools.partial(memory_needed, target=choices.target, fuse=choices.fuse),
    )


def memory_needed(scan: Grid, *, target: Target, fuse: bool) -> int:
    """Return roughly the peak memory for a scan on this grid, in bytes."""
    where = Path("the image")
    grid = target.common([scan], where) if fuse else target.grid(scan, where)
    return _PROGRAM_BYTES + _BYTES_PER_VOXEL * math.prod(grid.shape)


def set_up(
    runtime: Runtime, *, choices: ResolveChoices, bundles: Sequence[Bundle], settings: RunSettings
) -> Stages | Callable[[Case], Result]:
    """Return the work on a case: three stages for a single image, one function for `fuse`.

    Networks are loaded when a case first needs them.
    """
    networks = Networks(runtime, bundles, settings)
    if choices.method == "network" and len(bundles) == 1:
        networks.open(bundles[0])  # errors that concern all cases are reported once
    resolver = Resolver(choices, networks)
    if choices.fuse:
        from medkit_sr.fuse_task import Fuser

        return Fuser(resolver).case
    return Stages(resolver.prepare, resolver.compute, resolver.finish)
