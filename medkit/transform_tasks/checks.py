"""Check by the digests of grids whether transforms fit the images they are used with."""

from __future__ import annotations

from medkit.errors import InputError
from medkit.space import Grid
from medkit.transforms.transform import Transform


def check_ends(transform: Transform, fixed: Grid | None, moving: Grid | None, advice: str) -> list[str]:
    """Return warnings if a transform was made for other grids than those of the fixed and the moving image.

    That is not a mistake in itself, because transforms are maps of millimetres. But it is one if the transform was made
    for these two images in exchanged roles: then InputError is raised, with `advice`.
    """
    ends = [None if grid is None else grid.digest() for grid in (fixed, moving)]
    made_for = [transform.from_grid, transform.to_grid]
    if None not in ends and made_for[0] != made_for[1] and ends[::-1] == made_for:
        raise InputError(
            f"the transform leads the other way, from the grid of the moving image ({made_for[0]}) to the grid of the "
            f"fixed image ({made_for[1]}): {advice}"
        )
    words = ("from", "the fixed image"), ("to", "the moving image")
    return [
        f"the transform was made to lead {word} the grid {made}, and {image} has the grid {end}"
        for (word, image), made, end in zip(words, made_for, ends, strict=True)
        if made is not None and end is not None and made != end
    ]
