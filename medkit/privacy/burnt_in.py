"""Text in the pixels of DICOM objects: suspected from what the header says, looked for, refused or blanked."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import InputError, MedkitError
from medkit.images.dicom.frames import tile_count
from medkit.privacy.text_in_pixels import Box, find_text, merged

_SUSPECT_CLASSES = ("Ultrasound", "Secondary Capture", "Photographic", "Endoscopic")
"""Words in the names of classes whose images usually have text in them, or are pictures of a screen or a person."""
_SUSPECT_TYPES = re.compile(r"SCREEN|SCRSHOT|REPORT|DEMOGRAPHIC|DOSE|LABEL|OVERVIEW|THUMBNAIL")
"""Words of the image type of pictures of screens, dose reports and the labels of glass slides."""
_SUSPECT_DESCRIPTIONS = re.compile(r"dose\s*(report|info|record)|screen\s*(save|shot)|patient protocol|summary", re.I)
_SLICES = ("CT Image", "MR Image", "Positron Emission", "Nuclear Medicine", "RT Image", "MR Color")
"""Words in the names of classes whose images usually have none."""
_NO_PICTURES = ("Segmentation", "RT Dose", "Parametric Map", "Surface", "Deformable", "Label Map")
"""Words in the names of classes whose pixels are computed, not taken."""
_MOST_PASSES = 4
"""How often blanked images are looked at again before they are refused."""


@dataclass(frozen=True)
class BurntIn:
    """What is known about text in the pixels of one object."""

    suspicion: str = ""
    """Why text is to be expected, in words; empty if it is not."""
    declared: str = ""
    """What the header says: `YES`, `NO` or nothing."""
    boxes: tuple[Box, ...] = ()
    """Where lines that look like text were found, in any frame."""
    regions: tuple[Box, ...] = ()
    """Where the images of an ultrasound scan lie; outside them the picture shows text of the scanner."""
    likely: bool = True
    """Whether the image is of a kind that may well have text."""
    tiles: int = 1
    """Into how many tiles along each axis the plane is divided."""

    @property
    def refusal(self) -> str:
        """Why the object must not be passed on as it is, in words; empty if nothing speaks against it."""
        if self.boxes:
            return f"{len(self.boxes)} lines in its pixels look like text"
        if self.declared == "YES":
            return "the header says that its pixels show text (Burned In Annotation)"
        return "" if self.declared == "NO" else self.suspicion


def look_for_text(path: Path, dataset: Any) -> BurntIn:
    """Return what speaks for text in the pixels of an object. Raises InputError for pixels that cannot be decoded."""
    name = dataset.SOPClassUID.name
    if "PixelData" not in dataset or any(word in name for word in _NO_PICTURES):
        return BurntIn()
    suspicion = _suspicion(dataset)
    likely = bool(suspicion) or not any(word in name for word in _SLICES)
    tiles = _tiles_along(dataset)
    boxes = [box for plane in _planes(path, dataset) for box in _boxes(plane, tiles, is_likely=likely)]
    declared = str(dataset.get("BurnedInAnnotation") or "").strip()
    return BurntIn(suspicion, declared, tuple(merged(boxes)), tuple(_regions(dataset)), likely, tiles)


def _tiles_along(dataset: Any) -> int:
    """Into how many tiles along each axis a plane is divided: slices of a mosaic in a row look like letters."""
    is_mosaic = "MOSAIC" in list(dataset.get("ImageType") or ())
    return math.ceil(math.sqrt(max(1, tile_count(dataset)))) if is_mosaic else 1


def _boxes(plane: np.ndarray, tiles: int, *, is_likely: bool) -> Iterator[Box]:
    """Yield the boxes of text in each tile of a plane."""
    rows, columns = plane.shape[0] // tiles, plane.shape[1] // tiles
    for top in range(0, rows * tiles, rows):
        for left in range(0, columns * tiles, columns):
            tile = plane[top : top + rows, left : left + columns]
            for a, b, c, d in find_text(tile, is_likely=is_likely):
                yield top + a, top + b, left + c, left + d


def _suspicion(dataset: Any) -> str:
    name = dataset.SOPClassUID.name
    if any(word in name for word in _SUSPECT_CLASSES):
        return f"objects of its class ({name.removesuffix(' Storage')}) usually show text"
    if _SUSPECT_TYPES.search("/".join(map(str, dataset.get("ImageType") or ()))):
        return "its image type is one of pictures that show text"
    if _SUSPECT_DESCRIPTIONS.search(str(dataset.get("SeriesDescription") or "")):
        return "its series is described as one of pictures that show text"
    return ""


def _regions(dataset: Any) -> Iterator[Box]:
    for region in dataset.get("SequenceOfUltrasoundRegions") or ():
        corners = [region.get(f"RegionLocation{corner}") for corner in ("MinY0", "MaxY1", "MinX0", "MaxX1")]
        if None not in corners:
            top, bottom, left, right = map(int, corners)
            yield top, bottom + 1, left, right + 1


def _planes(path: Path, dataset: Any) -> Iterator[np.ndarray]:
    """Yield the frames, (rows, columns) or (rows, columns, colours); pydicom's, else those that medkit reads."""
    from pydicom.pixels.utils import iter_pixels

    try:
        yield from iter_pixels(dataset)
    except Exception as error:  # pydicom raises errors of many types for damaged and unknown pixels
        from medkit.images.dicom.header import read_header
        from medkit.images.dicom.pixels import stored_values

        try:
            file = read_header(path)
            assert file is not None
            planes = stored_values(file)
        except (MedkitError, AssertionError):
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"{path.name}: its pixels cannot be looked at for text: {reason}") from error
        yield from planes.transpose(2, 1, 0)


def blank(path: Path, dataset: Any, found: BurntIn) -> int:
    """Blank text in the pixels of an object, in all frames; return the number of boxes that were blanked.

    Compressed pixels become uncompressed ones. Raises InputError if the text cannot be found, or is still there.
    """
    if found.declared == "YES" and not found.boxes and not found.regions:
        raise InputError(f"{path.name}: {found.refusal}, and none was found that could be blanked")
    if not found.boxes and not found.regions:
        return 0
    frames = np.stack(list(_planes(path, dataset)))
    count = len(found.boxes) + bool(found.regions)
    if found.regions:
        _keep(frames, found.regions)
    boxes = list(found.boxes)
    for _ in range(_MOST_PASSES):
        for top, bottom, left, right in boxes:
            frames[:, top:bottom, left:right] = frames.min()
        boxes = merged([box for plane in frames for box in _boxes(plane, found.tiles, is_likely=found.likely)])
        if not boxes:
            break
        count += len(boxes)
    else:
        raise InputError(f"{path.name}: what looks like text is still there after {_MOST_PASSES} passes of blanking")
    _store(path, dataset, frames)
    return count


def _keep(frames: np.ndarray, regions: tuple[Box, ...]) -> None:
    """Blank all that lies outside of the regions."""
    outside = np.ones(frames.shape[1:3], bool)
    for top, bottom, left, right in regions:
        outside[top:bottom, left:right] = False
    frames[:, outside] = frames.min()


def _store(path: Path, dataset: Any, frames: np.ndarray) -> None:
    kind = str(dataset.PhotometricInterpretation)
    if frames.ndim == 4:
        kind = "RGB"
    voxels = frames if len(frames) > 1 else frames[0]
    bits = int(dataset.BitsStored)
    try:
        dataset.set_pixel_data(voxels, kind, bits, generate_instance_uid=False)
    except Exception as error:  # pydicom knows fewer kinds of pixels than it decodes
        raise InputError(f"{path.name}: its pixels cannot be blanked: {' '.join(str(error).split())[:120]}") from error
