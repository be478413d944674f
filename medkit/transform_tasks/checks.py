"""Whether transforms fit the images they are used with, by the digests of the grids."""

from __future__ import annotations

from dataclasses import replace

from medkit.errors import InputError
from medkit.space import Grid
from medkit.transforms.transform import AffineTransform, Composite, DisplacementField, Transform


def check_ends(transform: Transform, fixed: Grid | None, moving: Grid | None, advice: str) -> list[str]:
    """Warnings where a transform was made for other grids than those of the fixed and the moving image.

    That is no mistake by itself: transforms are maps of millimetres. Where the two images are the ones it was made for
    but change places, it is: InputError with `advice`.
    """
    ends = [None if grid is None else grid.digest() for grid in (fixed, moving)]
    made_for = [transform.from_grid, transform.to_grid]
    if None not in ends and made_for[0] != made_for[1] and ends[::-1] == made_for:
        raise InputError(
            f"the transform leads the other way, from the grid of the moving image ({made_for[0]}) to that of the "
            f"fixed one ({made_for[1]}): {advice}"
        )
    words = ("from", "the fixed image"), ("to", "the moving image")
    return [
        f"the transform was made to lead {way} the grid {made}, and {what} has the grid {end}"
        for (way, what), made, end in zip(words, made_for, ends, strict=True)
        if made is not None and end is not None and made != end
    ]


def with_ends(transform: Transform, from_grid: str | None, to_grid: str | None) -> Transform:
    """The same map with other digests of the grids it leads between; None keeps what there is."""
    if isinstance(transform, Composite):
        *first, last = transform.transforms
        first[0] = with_ends(first[0], None, to_grid)
        return Composite((*first, with_ends(last, from_grid, None)))
    if not isinstance(transform, AffineTransform | DisplacementField):
        return transform
    return replace(transform, from_grid=from_grid or transform.from_grid, to_grid=to_grid or transform.to_grid)
