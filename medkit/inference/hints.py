"""What may be wrong with a case, or may help, where a bundle's transforms or network fail on it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from medkit.bundles.contract import Contract
from medkit.errors import size_text
from medkit.space import SMALL_FIELD_OF_VIEW, Grid

_SIZES = re.compile(r"Sizes of tensors must match|size of tensor a \(\d+\) must match|multiples? of|divisible by")
"""In errors of networks whose way up does not meet their way down."""
_USUAL_MULTIPLE = 16
"""Sizes are multiples of this for four steps down, as most networks take."""


def hints(
    error: str,
    contract: Contract,
    shape: tuple[int, ...] | None,
    *,
    task: str | None = None,
    planes: bool = False,
    grid: Grid | None = None,
) -> str:
    """Return what to add to an error: sentences that begin with a semicolon, or nothing.

    `shape`: of the prepared image, (C, I, J, K) or (C, I, J); None if it could not be prepared. `task`: the medkit task
    that the bundle is for. `planes`: whether the network is given single planes. `grid`: of the case's own image.
    """
    found = (*_about_the_image(error, contract, shape, planes), *_about_the_grid(grid), *_about_the_task(task))
    return "".join(f"; {hint}" for hint in found)


def _about_the_grid(grid: Grid | None) -> Iterator[str]:
    """Yield a hint for an image in which no organ fits."""
    size = None if grid is None else grid.spacing * grid.shape
    if grid is not None and size is not None and size.max() < SMALL_FIELD_OF_VIEW:
        yield (
            f"the image measures {size_text(size, '.3g')} mm ({size_text(grid.shape)} voxels): is its spacing right, "
            f"and is it the whole image?"
        )


def _about_the_task(task: str | None) -> Iterator[str]:
    if task is not None:
        yield f"medkit run {task} prepares images for it"


def _about_the_image(error: str, contract: Contract, shape: tuple[int, ...] | None, planes: bool) -> Iterator[str]:
    if shape is not None and _SIZES.search(error):
        multiple = contract.multiple or _USUAL_MULTIPLE
        stated = "by its metadata" if contract.multiple else "as most networks do"
        yield (
            f"its network probably takes sizes that are multiples of {multiple}, {stated}, and got "
            f"{size_text(shape[1:])}: its preprocessing would need a DivisiblePadd, or the image other voxels"
        )
    names = contract.channels
    if shape is not None and len(names) > 1 and shape[0] != len(names):
        files = ", ".join(f'"{name}": ...' for name in names[1:])
        yield (
            f'by its metadata it takes {len(names)} channels: a record names their files ({{"path": ..., "inputs": '
            f"{{{files}}}}}), or one file has {len(names)} frames"
        )
    if planes and (shape is None or len(shape) > 3):
        yield "it takes planes, images with two axes, not volumes"
