"""`--sequence`: refine planes that follow each other in time or in space, each with the help of its neighbours."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from medkit.errors import InputError, size_text
from medkit.task import Case

if TYPE_CHECKING:
    import torch

    from medkit.images import Image

ACROSS = 2
"""Axis of a stack along which its planes follow each other."""


def stacked(case: Case) -> Image:
    """Return the frames of a case as planes of one image: the slices of a volume, or planes over time.

    Raises InputError for a single plane, and for volumes over time.
    """
    from medkit.images import Image, count_frames, read_image
    from medkit.space import Grid

    count = count_frames(case.path)
    if count == 1:
        image = case.image(blended=True)
        if image.grid.shape[ACROSS] == 1:
            raise InputError(f"{case.path}: --sequence: expected a sequence of planes, got one")
        return image
    frames = [read_image(case.path, frame=number) for number in range(count)]
    for frame in frames:
        case.note(frame)
    first = frames[0]
    if first.grid.shape[ACROSS] != 1:
        shape = size_text((*first.grid.shape, count))
        raise InputError(f"{case.path}: --sequence: expected planes over time, got volumes ({shape})")
    grid = Grid((*first.grid.shape[:2], count), first.grid.affine, 3)
    data = np.concatenate([frame.data for frame in frames], axis=3)
    return Image(data, grid, first.path, first.dtype, first.warnings, first.doubts)


def over_time(case: Case) -> bool:
    """Return whether the frames of a case follow each other along its fourth axis."""
    from medkit.images import count_frames

    return count_frames(case.path) > 1


def unstacked(image: Image) -> Image:
    """Return planes over time, (1, I, J, T), as frames, (T, I, J, 1)."""
    from medkit.space import Grid

    grid = image.grid
    return image.with_data(image.data[0].transpose(2, 0, 1)[..., None], Grid((*grid.shape[:2], 1), grid.affine, 3))


def with_neighbours(frames: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return (3, I, J) for each of the frames (I, J): the frame, the previous one and the next one, aligned with it.

    Anatomy that moves between frames is sampled at a different subpixel position in each, so aligned frames together
    show more detail than one. The first and the last frame replace their missing neighbour.
    """
    import torch

    shifts = [shift(*pair) for pair in itertools.pairwise(frames)]
    out = []
    for n, frame in enumerate(frames):
        before = moved(frames[n - 1], -shifts[n - 1]) if n else frame
        after = moved(frames[n + 1], shifts[n]) if n + 1 < len(frames) else frame
        out.append(torch.stack([frame, before, after]))
    return out


def shift(fixed: torch.Tensor, moving: torch.Tensor, steps: int = 8) -> torch.Tensor:
    """Return the translation (2,) in pixels from `fixed` to `moving`, both (I, J); 0 if they have little in common.

    What lies at a place p in `fixed` lies at p plus the translation in `moving`. It is the peak of the
    cross-correlation, refined by at most `steps` Gauss-Newton steps (Lucas & Kanade 1981).
    """
    import torch

    size = torch.tensor(fixed.shape)
    spectra = [torch.fft.rfft2(frame - frame.mean()) for frame in (fixed, moving)]
    peak = int(torch.fft.irfft2(spectra[0].conj() * spectra[1], s=tuple(fixed.shape)).argmax())
    found = torch.tensor(divmod(peak, fixed.shape[1]))
    found = torch.where(2 * found > size, found - size, found).to(fixed)
    # compare only what is inside both frames
    i, j = (slice(m, n - m) for m, n in zip((found.abs().int() + 2).tolist(), fixed.shape, strict=True))
    for _ in range(steps):
        here = moved(moving, found)
        slopes = torch.stack([slope[i, j] for slope in torch.gradient(here)]).flatten(1)
        # lstsq, because the matrix of a constant frame is singular
        step = torch.linalg.lstsq(slopes @ slopes.T, slopes @ (fixed - here)[i, j].flatten()).solution
        found = found + step
        if float(step.abs().max()) < 0.01:
            break
    better = (moved(moving, found) - fixed).square().mean() < (moving - fixed).square().mean()
    near = (found.abs() < size.to(fixed) / 4).all()
    return found if bool(better & near) else torch.zeros_like(found)


def moved(frame: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Return the frame (I, J) sampled `pixels` (2,) further along its axes, bicubic; its edge is repeated outside."""
    import torch
    from torch.nn import functional

    theta = torch.eye(2, 3).to(frame)
    theta[:, 2] = 2 * pixels.flip(0) / pixels.new_tensor(frame.shape[::-1])
    where = functional.affine_grid(theta[None], [1, 1, *frame.shape], align_corners=False)
    sampled: torch.Tensor = functional.grid_sample(
        frame[None, None], where, mode="bicubic", padding_mode="border", align_corners=False
    )
    return sampled[0, 0]
