"""The slices that a DICOM file holds: of classic and enhanced images, doses and mosaics."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import InputError
from medkit.images.dicom.types import DicomSlice, PixelLayout
from medkit.images.dicom.values import directions_of, lut_of, number, numbers, order_of, scaling_of, spacing_of

SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
TILES = (0x0019, 0x100A)
SIEMENS = ((0x0029, 0x1010), (0x0029, 0x0010), TILES, (0x0019, 0x0010))
"""Siemens' own tags: what it says of a mosaic, how many tiles are slices, and the marks that both are Siemens'."""


def slice_step(path: Path, dataset: Any) -> float | None:
    """mm between slices as the file states it, at the top or in the groups that all frames share."""
    shared = dataset.get(SHARED)
    measures = _Groups(None, shared[0] if shared else None).group("PixelMeasuresSequence")
    for place in (dataset, measures):
        found = number(path, place, "SpacingBetweenSlices")
        if found is not None:
            return abs(found)
    return None


def classic_slices(path: Path, dataset: Any, pixels: PixelLayout, spacing: np.ndarray | None) -> list[DicomSlice]:
    """One slice, or the frames of an old multi-frame file, whose places are not known."""
    order = order_of(dataset)
    one = DicomSlice(
        path, 0,
        numbers(path, dataset, "ImagePositionPatient", 3), directions_of(path, dataset), spacing,
        number(path, dataset, "SliceThickness"), scaling_of(path, dataset), lut_of(path, dataset), order,
    )  # fmt: skip
    if pixels.frames == 1:
        return [one]
    return [replace(one, index=n, origin=None, order=order | {"number": float(n)}) for n in range(pixels.frames)]


def enhanced_slices(
    path: Path, dataset: Any, pixels: PixelLayout, spacing: np.ndarray | None, note: str
) -> tuple[list[DicomSlice], str]:
    """The frames of an enhanced file: each has what its own functional groups state, else what the shared ones do."""
    frames = dataset[PER_FRAME].value
    if len(frames) != pixels.frames:
        raise InputError(f"{path}: expected groups for {pixels.frames} frames, got {len(frames)}")
    shared = dataset[SHARED].value[0] if dataset.get(SHARED) else None
    slices = [_frame(path, _Groups(frame, shared), n, spacing) for n, frame in enumerate(frames)]
    return slices, note if any(s.spacing is None or s.spacing is spacing for s in slices) else ""


@dataclass(frozen=True)
class _Groups:
    """The functional groups of one frame."""

    own: Any
    shared: Any

    def group(self, keyword: str) -> Any:
        """The item of a group, the frame's own first; an empty data set where neither has it."""
        for groups in (self.own, self.shared):
            items = groups.get(keyword) if groups is not None else None
            if items:
                return items[0]
        return {}


def _frame(path: Path, groups: _Groups, index: int, spacing: np.ndarray | None) -> DicomSlice:
    measures = groups.group("PixelMeasuresSequence")
    own = spacing_of(path, measures)
    segment = groups.group("SegmentIdentificationSequence").get("ReferencedSegmentNumber")
    return DicomSlice(
        path, index,
        numbers(path, groups.group("PlanePositionSequence"), "ImagePositionPatient", 3),
        directions_of(path, groups.group("PlaneOrientationSequence")),
        spacing if own is None else own,
        number(path, measures, "SliceThickness"),
        scaling_of(path, groups.group("PixelValueTransformationSequence")),
        None, _frame_order(groups, index), int(segment or 0),
    )  # fmt: skip


def _frame_order(groups: _Groups, index: int) -> dict[str, Any]:
    """What tells frames at one place apart, the most informative first; `number` is the place in the file."""
    content = groups.group("FrameContentSequence")
    out: dict[str, Any] = {}
    diffusion = groups.group("MRDiffusionSequence")
    kinds = (groups.group(f"{name}ImageFrameTypeSequence") for name in ("MR", "CT", "PET"))
    kind: Any = next(filter(None, kinds), {})
    for name, value in {
        "time point": content.get("TemporalPositionIndex"),
        "echo": groups.group("MREchoSequence").get("EffectiveEchoTime"),
        "b value": diffusion.get("DiffusionBValue"),
        "type": kind.get("FrameType"),
        "trigger": groups.group("CardiacSynchronizationSequence").get("NominalCardiacTriggerDelayTime"),
    }.items():
        if value is not None:
            out[name] = "/".join(map(str, value)) if name == "type" else float(value)
    stack = content.get("InStackPositionNumber")
    indices = content.get("DimensionIndexValues") or ()
    for n, value in enumerate([indices] if isinstance(indices, int) else indices):
        if value != stack:
            out[f"dimension {n + 1}"] = float(value)
    return out | {"number": float(index)}


def dose_slices(path: Path, dataset: Any, pixels: PixelLayout, spacing: np.ndarray | None) -> list[DicomSlice]:
    """The planes of a dose grid, in Gy: Grid Frame Offset Vector is relative to the position, or (axial) absolute."""
    scale = number(path, dataset, "DoseGridScaling")
    origin, directions = numbers(path, dataset, "ImagePositionPatient", 3), directions_of(path, dataset)
    offsets = numbers(path, dataset, "GridFrameOffsetVector", pixels.frames) if pixels.frames > 1 else np.zeros(1)
    if scale is None or origin is None or directions is None or offsets is None:
        raise InputError(f"{path}: a dose without its scaling, position or Grid Frame Offset Vector")
    if offsets[0] != 0:
        offsets = offsets - origin[2]
    return [
        DicomSlice(path, n, origin + offset * directions[:, 2], directions, spacing, None, (scale, 0.0), None, {})
        for n, offset in enumerate(offsets)
    ]


def tile_count(dataset: Any) -> int:
    """How many tiles of a mosaic are slices; 0 where the header does not say."""
    value = dataset[TILES].value if TILES in dataset else 0
    return int.from_bytes(value[:2], "little") if isinstance(value, bytes) else int(value or 0)


def mosaic_slices(path: Path, dataset: Any, spacing: np.ndarray | None) -> list[DicomSlice]:
    """The tiles of a Siemens mosaic as slices, placed as nibabel's MosaicWrapper places them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel says of these readers that they know Siemens' files only
        from nibabel.nicom.csareader import get_csa_header
        from nibabel.nicom.dicomwrappers import MosaicWrapper

    count = tile_count(dataset)
    affine = MosaicWrapper(dataset, get_csa_header(dataset, "image"), count).affine
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    # nibabel's first axis runs along the columns of a file's rows; ours along its rows
    directions = directions[:, [1, 0, 2]]
    scaling, order = scaling_of(path, dataset), order_of(dataset)
    return [
        DicomSlice(path, k, affine[:3] @ [0, 0, k, 1], directions, spacing, None, scaling, None, order)
        for k in range(count)
    ]
