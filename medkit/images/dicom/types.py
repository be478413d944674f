"""What is known of a DICOM file: how its pixels are stored, and its slices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", BIG_ENDIAN, DEFLATED)
"""Transfer syntaxes whose pixels are not compressed."""


@dataclass(frozen=True)
class PixelLayout:
    """How and where a file stores its pixels."""

    start: int
    """Byte of the file at which the value of Pixel Data starts; in a deflated file, of the inflated data set."""
    length: int | None
    """Bytes of the value; None where it is encapsulated (compressed)."""
    syntax: str
    """UID of the transfer syntax."""
    rows: int
    columns: int
    frames: int
    allocated: int
    """Bits of a stored pixel."""
    used: int
    """Bits of them that hold the value."""
    high: int
    """Number of the highest of these bits."""
    signed: bool
    floating: bool
    inverted: bool
    """MONOCHROME1: low values are bright."""

    @property
    def promised(self) -> int:
        """Bytes that uncompressed pixels need."""
        return (self.rows * self.columns * self.frames * self.allocated + 7) // 8

    @property
    def dtype(self) -> np.dtype:
        """Type of stored pixels, in the byte order of the file."""
        kind = "f" if self.floating else "i" if self.signed else "u"
        return np.dtype(f"{'>' if self.syntax == BIG_ENDIAN else '<'}{kind}{max(1, self.allocated // 8)}")


@dataclass(frozen=True, eq=False)
class Lut:
    """A modality look-up table: stored values from `first` on become `values`, outside it the nearest of them."""

    first: int
    values: np.ndarray


@dataclass(frozen=True, eq=False)
class DicomSlice:
    """One slice of a file: where it is, and how stored values become real ones."""

    path: Path
    index: int
    """Its number in the file, 0 in a file of one slice."""
    origin: np.ndarray | None
    """(3,) LPS mm, the centre of its first voxel; None where the file does not say."""
    directions: np.ndarray | None
    """(3, 3) LPS; columns: the directions of I, J and the normal; None where the file does not say."""
    spacing: np.ndarray | None
    """(2,) mm along I and J; None where the file does not say."""
    thickness: float | None
    """mm; None where the file does not say."""
    scaling: tuple[float, float] | None
    """Slope and intercept; None where the file has none."""
    lut: Lut | None
    order: Mapping[str, Any] = field(default_factory=dict)
    """What tells frames at one place apart: name -> value (time point, echo, ...), the most informative first."""
    segment: int = 0
    """Number of the segment, in a segmentation of one bit."""


@dataclass(frozen=True, eq=False)
class DicomFile:
    """One file with an image."""

    path: Path
    series: tuple[str, str, str]
    """Series UID, number and description."""
    kind: str
    """`image`, `mosaic`, `plane of a mosaic` (with an unknown number of tiles), `segments` (one bit each), `labels` or
    `dose`."""
    pixels: PixelLayout
    spacing_note: str
    """What is doubtful about the spacing, or an empty text."""
    slice_step: float | None
    """mm between slices as the file states it; None where it does not."""
    slices: tuple[DicomSlice, ...] = field(repr=False)
