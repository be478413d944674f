"""What a series is, by its headers only: its size, its grid, its frames. Nothing here names a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medkit.errors import InputError
from medkit.images.dicom.reader import SEGMENTATIONS
from medkit.images.dicom.segments import label_grid
from medkit.images.dicom.series import Series, path_of
from medkit.images.dicom.volumes import grid_of, stacks_of

PROJECTIONS = ("CR", "DX", "RG", "MG", "PX", "IO")
"""Modalities whose images are planes that do not belong together, such as two views of a chest."""
_SAME_DIRECTION = 0.9
"""Cosine of the angle between normals above which slices count as of one orientation: 26 degrees."""


@dataclass(frozen=True, eq=False)
class SeriesSummary:
    """What is known of a series without its pixels."""

    series: Series
    """Its files."""
    path: Path
    """The path that names it as an input."""
    shape: tuple[int, int, int]
    """Columns, rows and slices of one frame; 0 without an image."""
    spacing: tuple[float, float, float] | None
    """mm between voxels along these axes; None if it is not known."""
    frames: int
    """Time points, echoes and so on; 0 without an image."""
    orientations: int
    """How many directions its slices have."""
    problem: str
    """Why it cannot be read as a volume; empty if it can, or has no image."""

    @property
    def modality(self) -> str:
        """The modality that its files state, such as `MR`; `?` if they state none."""
        return self.series.first.modality or "?"

    @property
    def views(self) -> list[Path]:
        """The files of a series of X-rays, each of which is an image of its own; empty for other series."""
        several = self.modality in PROJECTIONS and len(self.series.images) > 1
        return [image.path for image in self.series.images] if several else []

    @property
    def image_type(self) -> str:
        """Image Type, such as `ORIGINAL/PRIMARY/M`."""
        return "/".join(self.series.first.image_type)

    @property
    def has_image(self) -> bool:
        """Whether there are pixels, readable or not."""
        return bool(self.series.images or self.series.problems)

    def title(self) -> str:
        """Return the series in words that hold no name: number, modality, image type and size."""
        size = " x ".join(map(str, self.shape)) if self.has_image else ""
        size += f" x {self.frames}" if self.frames > 1 else ""
        facts = ", ".join(filter(None, (self.modality, self.image_type, size)))
        return f"series {self.series.number or '?'} ({facts})"


def summaries_of(known: Sequence[Series]) -> list[SeriesSummary]:
    """Return the summary of each series. `known`: all series of a study, or of several."""
    return [_summary(one, path_of(one, known)) for one in known]


def _summary(one: Series, path: Path) -> SeriesSummary:
    columns, rows, frames = one.first.shape
    shape, spacing, count, problem = (columns, rows, frames), None, int(bool(one.images)), next(iter(one.problems), "")
    if one.images:
        try:
            shape, spacing, count = _volume(path, one)
        except InputError as error:
            problem = problem or str(error)
            shape = (columns, rows, sum(len(image.slices) for image in one.images))
    return SeriesSummary(one, path, shape, spacing, count, _orientations(one), problem)


def _volume(path: Path, one: Series) -> tuple[tuple[int, int, int], tuple[float, float, float] | None, int]:
    """Return shape, spacing and number of frames. Raises InputError for slices that are no volume."""
    first = one.images[0]
    if first.kind in SEGMENTATIONS:
        grid, count = label_grid(path, one.images)[0], 1
    elif one.first.modality in PROJECTIONS:
        grid, count = grid_of(path, stacks_of(path, [first])[0], first.slice_step)[0], len(one.images)
    else:
        stacks = stacks_of(path, one.images)
        grid, count = grid_of(path, stacks[0], first.slice_step)[0], len(stacks)
    columns, rows, slices = (int(size) for size in grid.shape)
    if first.slices[0].spacing is None:
        return (columns, rows, slices), None, count
    between, along, apart = (float(step) for step in grid.spacing)
    return (columns, rows, slices), (between, along, apart), count


def _orientations(one: Series) -> int:
    normals: list[np.ndarray] = []
    for image in one.images:
        for part in image.slices:
            if part.directions is None:
                continue
            normal = part.directions[:, 2]
            if all(abs(float(normal @ other)) < _SAME_DIRECTION for other in normals):
                normals.append(normal)
    return len(normals)
