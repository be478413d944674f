"""`--method grow`: structures that grow from named seeds, in images of any kind."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import InputError
from medkit.space import apply_affine
from medkit.task import Case
from medkit_segment.results import Found

if TYPE_CHECKING:
    from medkit.images import Image

UNNAMED = "grown"
"""Name of the structure if the seeds have none."""
MOST = 0.5
"""Share of an image's voxels above which a region has leaked into everything."""
MUCH = 0.1
"""Share of an image's voxels above which a region that reaches the border may have leaked."""
FEWEST = 8
"""Voxels; a smaller region is nothing that has grown."""
SHARED = 0.02
"""Share of the smaller of two regions that both may have in common."""
FACE_MM2 = 200.0
"""Area on a face of the volume above which a region is cut off by it."""


@dataclass(frozen=True)
class Seeds:
    """Where structures start."""

    groups: Mapping[str, np.ndarray]
    """Name of a structure -> places (N, 3), RAS+ mm."""

    @classmethod
    def read(cls, path: Path, frame: str) -> Seeds:
        """Read a file of points; points of one name, and `liver-1`, `liver_2`, are seeds of one structure.

        frame: `RAS` or `LPS`, of tables. Raises InputError.
        """
        from medkit.transforms import read_points

        points = read_points(path, frame)
        words = [re.sub(r"[-_ ]\d+$", "", name.strip()) or UNNAMED for name in points.stated]
        groups: dict[str, list[np.ndarray]] = {}
        for word, position in zip(words, points.positions, strict=True):
            groups.setdefault(word, []).append(position)
        return cls({name: np.array(places) for name, places in groups.items()})

    def names(self) -> dict[int, str]:
        """Return label -> name, in the order of the file."""
        return dict(enumerate(self.groups, start=1))


def grown_from(
    case: Case, image: Image, *, limits: tuple[float, float] | None, frame: str, labels: Sequence[str]
) -> Found:
    """Grow the structures of a case's seeds, those named in `labels` only if there are any. Raises InputError."""
    if "seeds" not in case.inputs:
        raise InputError(f'{case.path}: no seeds; give --seeds FILE, or "seeds" in its record')
    seeds = Seeds.read(case.inputs["seeds"], frame)
    names = {n: name for n, name in seeds.names().items() if not labels or name in labels}
    if not names:
        raise InputError(
            f"{case.inputs['seeds']}: expected seeds of {', '.join(labels)}, got {', '.join(seeds.groups)}"
        )
    out = np.zeros(image.grid.shape, np.uint8 if len(seeds.groups) < 256 else np.uint16)
    doubts: list[str] = []
    ranges: dict[str, Any] = {}
    for number, name in names.items():
        region = Region(name, image, _indices(name, seeds.groups[name], image, case.path))
        mask, ranges[name] = region.grown(limits, doubts)
        _check_apart(name, mask, out, names)
        out[mask & (out == 0)] = number
    return Found(out, names, doubts, {"ranges": ranges})


def _indices(name: str, places: np.ndarray, image: Image, path: Path) -> np.ndarray:
    """Return the voxels (N, 3) of seeds. Raises InputError for seeds outside of the image."""
    index = np.rint(apply_affine(image.grid.to_index, places)).astype(int)
    outside = ((index < 0) | (index >= image.grid.shape)).any(1)
    if outside.any():
        where = ", ".join(f"{n:g}" for n in places[outside][0])
        raise InputError(f"{path}: seed of {name} at ({where}) mm RAS+ lies outside of the image")
    return index


def _check_apart(name: str, mask: np.ndarray, out: np.ndarray, names: Mapping[int, str]) -> None:
    """Raise InputError if a region has grown into one that is there already."""
    numbers, counts = np.unique(out[mask], return_counts=True)
    for number, count in zip(numbers, counts, strict=True):
        if number and count > SHARED * min(np.count_nonzero(mask), np.count_nonzero(out == number)):
            raise InputError(f"{name} and {names[int(number)]} have grown into each other; narrow --range")


@dataclass(frozen=True)
class Region:
    """One structure that is to grow."""

    name: str
    image: Image
    seeds: np.ndarray
    """(N, 3) voxel indices."""

    def grown(self, limits: tuple[float, float] | None, doubts: list[str]) -> tuple[np.ndarray, list[float]]:
        """Return the mask and the range of values that it took in; adds to `doubts`. Raises InputError."""
        from medkit_segment import leaks
        from medkit_segment.growing import grow

        values = self.image.data[0]
        made = grow(values, self.seeds, limits)
        size = np.count_nonzero(made.mask)
        low, high = made.limits
        if size < FEWEST:
            found = ", ".join(f"{values[tuple(seed)]:g}" for seed in self.seeds)
            raise InputError(f"{self.name}: nothing grew from values of {found} within {low:g} to {high:g}")
        share = size / made.mask.size
        if share > MOST:
            values_in = f"with values from {low:g} to {high:g}"
            raise InputError(f"{self.name}: leaked over {share:.0%} of the image, {values_in}; narrow --range")
        mask = made.mask
        inside = self.seeds[mask[tuple(self.seeds.T)]]
        if (leak := leaks.find(mask, inside, self.image.grid.spacing)) is not None:
            mask = mask & ~leak.mask
            where = ", ".join(f"{n:.0f}" for n in apply_affine(self.image.grid.affine, leak.place[None])[0])
            voxels, grid = np.count_nonzero(leak.mask), self.image.grid
            much = f"{voxels} pixels" if grid.dims == 2 else f"{voxels * grid.voxel_volume / 1000:.3g} ml"
            doubts.append(f"{self.name} leaked at ({where}) mm, and {much} behind were left out")
        if self._at_a_face(mask):
            much = f", covers {share:.0%} of it and may have leaked" if share > MUCH else ""
            doubts.append(f"{self.name} reaches the border of the image{much}")
        return mask, [round(low, 4), round(high, 4)]

    def _at_a_face(self, mask: np.ndarray) -> bool:
        spacing = self.image.grid.spacing
        return any(
            np.count_nonzero(np.take(mask, end, axis)) * np.prod(np.delete(spacing, axis)) > FACE_MM2
            for axis in range(3)
            if mask.shape[axis] > 1
            for end in (0, -1)
        )
