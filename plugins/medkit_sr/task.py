"""The task `sr`: an image on a finer grid, which scanned again gives the image."""

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
_BYTES_PER_VOXEL = 24
"""Of the result: its float32 forms that are in memory at once."""


def superresolution(wishes: ResolveChoices, bundles: Sequence[Bundle], settings: RunSettings) -> Task:
    """The task for one set of options; `bundles` are those whose network may be used. Raises what bundle_task does."""
    base = bundle_task("sr", bundles, settings)
    target = wishes.target
    return replace(
        base,
        outputs=[OUTPUT],
        setup=functools.partial(set_up, wishes=wishes, bundles=bundles, settings=settings),
        arguments={
            **base.arguments,
            "spacing": target.spacing,
            "scale": target.scale,
            "axes": target.axes,
            "method": wishes.method,
            "style": wishes.style,
            "fuse": wishes.fuse,
            "sequence": wishes.sequence,
        },
        accepts=("reference", "guide"),
        shared=wishes.shared,
        arity="all" if wishes.fuse else "each",
        whole=wishes.fuse,
        staged=not wishes.fuse,
        memory=functools.partial(memory_needed, target=wishes.target, fuse=wishes.fuse),
    )


def memory_needed(scan: Grid, *, target: Target, fuse: bool) -> int:
    """Bytes that an image on this grid takes at its peak, roughly."""
    where = Path("the image")
    grid = target.common([scan], where) if fuse else target.grid(scan, where)
    return _PROGRAM_BYTES + _BYTES_PER_VOXEL * math.prod(grid.shape)


def set_up(
    runtime: Runtime, *, wishes: ResolveChoices, bundles: Sequence[Bundle], settings: RunSettings
) -> Stages | Callable[[Case], Result]:
    """The work on a case, in three stages where it is one image; networks are loaded when a case first needs them."""
    networks = Networks(runtime, bundles, settings)
    if wishes.method == "network" and len(bundles) == 1:  # what is true of all cases is said once
        networks.open(bundles[0])
    resolver = Resolver(wishes, networks)
    if wishes.fuse:
        from medkit_sr.fuse_task import Fuser

        return Fuser(resolver).case
    return Stages(resolver.prepare, resolver.compute, resolver.finish)
