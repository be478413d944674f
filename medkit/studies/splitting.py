"""Which volumes of a series become one NIfTI file: those of one echo and one part (magnitude, phase), in time order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medkit.images.dicom.places import open_file
from medkit.images.dicom.reader import stack_values
from medkit.images.dicom.series import Series
from medkit.images.dicom.types import DicomFile
from medkit.images.dicom.volumes import Stack, at_even_steps, grid_of, stacks_of
from medkit.space import Grid
from medkit.studies.summary import PROJECTIONS

_PARTS = {"P": "phase", "PHASE": "phase", "R": "real", "REAL": "real", "I": "imag", "IMAGINARY": "imag"}
"""Words of Image Type -> the part of a complex image, as BIDS names it."""
_MAPS = {"FIELD_MAP": "fieldmap", "B0": "fieldmap", "ADC": "adc", "FA": "fa", "TRACEW": "trace"}
"""Words of Image Type -> a map that lies in one series with images."""


@dataclass(frozen=True, eq=False)
class VolumeSet:
    """The volumes that one file holds."""

    files: Sequence[DicomFile]
    """All files of the series."""
    stacks: tuple[Stack, ...]
    """One for each volume, in the order of time."""
    grid: Grid
    """The grid of the file: DICOM's columns, its rows from bottom to top, and slices along their normal."""
    warnings: tuple[str, ...]
    """What was odd about the slices."""
    echo: int = 0
    """Number of the echo from 1; 0 if the series has one."""
    part: str = ""
    """`phase`, `real`, `imag`, or a map such as `fieldmap`; empty for images."""
    view: int = 0
    """Number of the X-ray from 1; 0 if the series has one."""

    def voxels(self, factors: Sequence[float] | None = None) -> np.ndarray:
        """Return the values, (I, J, K) or (I, J, K, T), each volume times its factor; integers if all values are.

        Raises InputError.
        """
        volumes = []
        for number, stack in enumerate(self.stacks):
            values = at_even_steps(stack_values(self.files, stack), stack.heights, self.grid.shape[2])
            if factors is not None and factors[number] != 1:
                values = (values * np.float64(factors[number])).astype(np.float32)
            volumes.append(values[:, ::-1])
        return np.stack(volumes, axis=-1) if len(volumes) > 1 else volumes[0]

    def headers(self) -> list[Any]:
        """Return for each volume the whole header, without pixels, of the file that its first slice lies in."""
        return [_whole_header(stack.slices[0].path) for stack in self.stacks]


def _whole_header(path: Path) -> Any:
    import pydicom

    with open_file(path) as stream:
        return pydicom.dcmread(stream, stop_before_pixels=True, force=True)


def volume_sets(path: Path, series: Series) -> list[VolumeSet]:
    """Return what becomes a file each, by echo and part. Raises InputError for slices that fit no volume."""
    images = series.images
    if series.first.modality in PROJECTIONS and len(images) > 1:
        return [
            replace(_set(path, [image], stacks_of(path, [image]), 0, ""), view=number)
            for number, image in enumerate(images, start=1)
        ]
    stacks = stacks_of(path, images)
    echoes = sorted({_echo(stack) for stack in stacks})
    groups: dict[tuple[int, str], list[Stack]] = {}
    for stack in stacks:
        echo = echoes.index(_echo(stack)) + 1 if len(echoes) > 1 else 0
        groups.setdefault((echo, _part(stack)), []).append(stack)
    return [_set(path, images, _in_order(groups[key]), *key) for key in sorted(groups)]


def _set(path: Path, images: Sequence[DicomFile], stacks: list[Stack], echo: int, part: str) -> VolumeSet:
    grid, warnings = grid_of(path, stacks[0], images[0].slice_step)
    flip = np.diag([1.0, -1.0, 1.0, 1.0])
    flip[1, 3] = grid.shape[1] - 1
    return VolumeSet(images, tuple(stacks), Grid(grid.shape, grid.affine @ flip), tuple(warnings), echo, part)


def _echo(stack: Stack) -> float:
    return float(stack.slices[0].order.get("echo", 0.0))


def _part(stack: Stack) -> str:
    words = [word.strip().upper() for word in str(stack.slices[0].order.get("type", "")).split("/")][2:]
    return next((names[word] for names in (_MAPS, _PARTS) for word in words if word in names), "")


def _in_order(stacks: list[Stack]) -> list[Stack]:
    """Return the volumes by the lowest Instance Number of their slices, where that tells them apart."""
    numbers = [min(float(one.order.get("number", 0.0)) for one in stack.slices) for stack in stacks]
    if len({stack.slices[0].path for stack in stacks}) < len(stacks) or len(set(numbers)) < len(stacks):
        return stacks
    return [stacks[n] for n in np.argsort(numbers, kind="stable")]
