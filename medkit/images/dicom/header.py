"""Reading the header of a DICOM file with pydicom.

Names, dates and identifiers of the patient are not read: only the tags listed here are.
"""

from __future__ import annotations

import functools
import logging
import os
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from medkit.errors import InputError
from medkit.images.dicom.frames import (
    PER_FRAME,
    SHARED,
    SIEMENS,
    classic_slices,
    dose_slices,
    enhanced_slices,
    mosaic_slices,
    slice_step,
    tile_count,
)
from medkit.images.dicom.places import Stamp, in_memory, open_file, size_of, stamp_of
from medkit.images.dicom.types import BIG_ENDIAN, DEFLATED, NATIVE, DicomFile, PixelLayout
from medkit.images.dicom.values import plain_spacing

TAGS = (
    *("SOPClassUID", "Modality", "ImageType", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription"),
    *("StudyInstanceUID", "SOPInstanceUID", "ProtocolName", "SequenceName"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "SliceThickness"),
    *("SpacingBetweenSlices", "PixelAspectRatio", "GridFrameOffsetVector", "DoseGridScaling"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("InstanceNumber", "AcquisitionNumber", "TemporalPositionIdentifier", "TemporalPositionIndex", "EchoTime"),
    *("EchoNumbers", "DiffusionBValue", "TriggerTime", "AcquisitionTime", "ContentTime", "SegmentationType"),
    *("SegmentsOverlap", SHARED, PER_FRAME),
)
"""Keywords of the tags that are read."""
FIRST_ELEMENTS = tuple(bytes([number, 0]) for number in (0x00, 0x01, 0x05, 0x08, 0x16))
"""Elements with which a header without a preamble may start."""
UNDEFINED = 0xFFFFFFFF
DIRECTORY = "1.2.840.10008.1.3.10"
"""UID of the class of a DICOMDIR."""


@dataclass(frozen=True, eq=False)
class Header:
    """What the header of one DICOM file says, whether or not it holds an image that can be read."""

    path: Path
    study: str
    """UID of the study, as the file states it."""
    series: tuple[str, str, str]
    """Series UID, number and description; the description may hold a name, and is never printed."""
    instance: tuple[str, int]
    """UID of the object, and size of the file in bytes: copies have both in common."""
    modality: str
    kind: str
    """UID of the SOP class."""
    image_type: tuple[str, ...]
    """Image Type, such as `ORIGINAL`, `PRIMARY`, `AXIAL`."""
    shape: tuple[int, int, int]
    """Columns, rows and frames; 0 without an image."""
    coloured: bool
    """Whether it has several values per pixel, or a palette of colours."""
    words: str
    """What may tell what was scanned: description, protocol and sequence, in lower case; never printed."""
    image: DicomFile | None
    """The image; None if there is none, or `problem` says why it cannot be read."""
    problem: str
    """Why an image cannot be read; empty if it can, and for an object without pixels."""


def looks_like_dicom(path: Path) -> bool:
    """Whether a file starts as DICOM does: with its preamble, or (old files) with a group of its header."""
    with open_file(path) as stream:
        head = stream.read(132)
    if head[128:] == b"DICM":
        return True
    # no preamble: the first elements of group 0008, or of 0002
    return head[:2] in (b"\x08\x00", b"\x02\x00") and head[2:4] in FIRST_ELEMENTS


def read_header(path: Path) -> DicomFile | None:
    """Read the header of one file; None for a DICOM object without pixels, such as a report.

    Raises InputError for a file that is damaged, truncated, or states something that cannot be.
    """
    header = header_of(path)
    if header.problem:
        raise InputError(header.problem)
    return header.image


def header_of(path: Path) -> Header:
    """Return what the header of a file says; it is read once, unless the file has changed."""
    try:
        return _header(path, stamp_of(path))
    except InputError as error:
        return _unreadable(path, str(error))


@functools.lru_cache(maxsize=1 << 14)
def _header(path: Path, stamp: Stamp) -> Header:
    try:
        with open_file(path) as stream:
            dataset, start, length = _dataset(path, stream)
            size = size_of(path)
            fragments = _fragments(stream, start, size) if start is not None and length is None else 0
    except InputError as error:
        return _unreadable(path, str(error))
    except Exception as error:  # pydicom raises errors of many types for torn headers
        return _unreadable(path, f"{path}: a DICOM header that cannot be read: {_words(error)}")
    try:
        image = None if start is None else _parsed(path, dataset, start, length, size, fragments)
        problem = ""
        if start is None and not _is_directory(dataset) and ("SOPClassUID" not in dataset or _is_image(dataset)):
            problem = f"{path}: a DICOM image that cannot be read: truncated before its pixels"
        return _described(path, dataset, image, problem)
    except InputError as error:
        return _described(path, dataset, None, str(error))
    except Exception as error:  # values are converted when they are asked for, and nibabel has errors of its own
        return _unreadable(path, f"{path}: its DICOM header states something that cannot be: {_words(error)}", dataset)


def _unreadable(path: Path, problem: str, dataset: Any = None) -> Header:
    """Return a header of which little can be read; whether it belongs to a series is found out if it can be."""
    try:
        return _described(path, dataset, None, problem)
    except Exception:  # any of the values may be what cannot be read
        return Header(path, "", ("", "", ""), ("", 0), "", "", (), (0, 0, 0), False, "", None, problem)


def _described(path: Path, dataset: Any, image: DicomFile | None, problem: str) -> Header:
    kind = dataset.get("ImageType") or ()
    texts = (str(dataset.get(name) or "") for name in ("SeriesDescription", "ProtocolName", "SequenceName"))
    columns, rows, frames = (int(dataset.get(name) or 0) for name in ("Columns", "Rows", "NumberOfFrames"))
    return Header(
        path=path,
        study=str(dataset.get("StudyInstanceUID") or "").strip(),
        series=_series(dataset),
        instance=(str(dataset.get("SOPInstanceUID") or ""), size_of(path)),
        modality=str(dataset.get("Modality") or "").strip(),
        kind=str(dataset.get("SOPClassUID") or ""),
        image_type=(kind,) if isinstance(kind, str) else tuple(map(str, kind)),
        shape=(columns, rows, frames or 1) if columns and rows else (0, 0, 0),
        coloured=_is_coloured(dataset),
        words=" ".join(texts).lower(),
        image=image,
        problem=problem,
    )


def _series(dataset: Any) -> tuple[str, str, str]:
    uid, number, text = (str(dataset.get(f"Series{k}") or "").strip() for k in ("InstanceUID", "Number", "Description"))
    return uid, number, text


def _is_coloured(dataset: Any) -> bool:
    samples = int(dataset.get("SamplesPerPixel") or 1)
    return samples > 1 or dataset.get("PhotometricInterpretation") == "PALETTE COLOR"


@functools.cache
def _pydicom() -> Any:
    """pydicom without its warnings about values: what matters is checked here."""
    import pydicom

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it would repeat values of headers
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom


def _dataset(path: Path, stream: IO[bytes]) -> tuple[Any, int | None, int | None]:
    """The tags of the header; where Pixel Data starts (None: there are none) and its length (None: encapsulated)."""
    pydicom = _pydicom()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=[*TAGS, *SIEMENS])
    if _syntax(dataset) == DEFLATED:
        whole = pydicom.dcmread(in_memory(path), force=True)
        value = whole.get("PixelData")
        return whole, None if value is None else 0, None if value is None else len(value)
    order = "<" if dataset.is_little_endian else ">"
    return dataset, *_pixel_element(stream, implicit=dataset.is_implicit_VR, order=order)


def _syntax(dataset: Any) -> str:
    meta = getattr(dataset, "file_meta", None)
    found = str(meta.get("TransferSyntaxUID") or "") if meta is not None else ""
    if found:
        return found
    return NATIVE[0] if dataset.is_implicit_VR else NATIVE[1] if dataset.is_little_endian else BIG_ENDIAN


def _pixel_element(stream: IO[bytes], *, implicit: bool, order: str) -> tuple[int | None, int | None]:
    """Start and length of the value of Pixel Data, at whose tag the stream stands."""
    head = stream.read(12)
    if len(head) < 8 or struct.unpack(f"{order}H", head[:2])[0] != 0x7FE0:
        return None, None
    if implicit:
        stream.seek(-4, os.SEEK_CUR)
        length = struct.unpack(f"{order}L", head[4:8])[0]
    else:
        if len(head) < 12:
            return None, None
        length = struct.unpack(f"{order}L", head[8:12])[0]
    return stream.tell(), None if length == UNDEFINED else length


def _fragments(stream: IO[bytes], start: int, size: int) -> int:
    """How many whole fragments compressed pixels have, the table of offsets left out; -1 where they do not end."""
    stream.seek(start)
    count = -1
    while len(head := stream.read(8)) == 8:
        group, element, length = struct.unpack("<HHL", head)
        if (group, element) == (0xFFFE, 0xE0DD):
            return count
        if (group, element) != (0xFFFE, 0xE000) or stream.tell() + length > size:
            return -1
        stream.seek(length, os.SEEK_CUR)
        count += 1
    return -1


def _is_directory(dataset: Any) -> bool:
    """Whether the file is a DICOMDIR, under whatever name."""
    meta = getattr(dataset, "file_meta", None)
    return meta is not None and meta.get("MediaStorageSOPClassUID") == DIRECTORY


def _is_image(dataset: Any) -> bool:
    """Whether the class of the object is one of images."""
    return "Image" in dataset.SOPClassUID.name and "Storage" in dataset.SOPClassUID.name


def _parsed(path: Path, dataset: Any, start: int, length: int | None, size: int, fragments: int) -> DicomFile:
    if _is_coloured(dataset):
        samples = int(dataset.get("SamplesPerPixel") or 1)
        raise InputError(f"{path}: expected one value per voxel, got colours ({samples} values per pixel)")
    pixels = _layout(path, dataset, start, length)
    _check_length(path, pixels, size, fragments)
    kind = _kind(path, dataset)
    spacing, note = plain_spacing(path, dataset)
    if kind == "mosaic":
        slices = mosaic_slices(path, dataset, spacing)
    elif kind == "dose":
        slices = dose_slices(path, dataset, pixels, spacing)
    elif PER_FRAME in dataset:
        slices, note = enhanced_slices(path, dataset, pixels, spacing, note)
    else:
        slices = classic_slices(path, dataset, pixels, spacing)
    if any(one.spacing is None and one.origin is not None for one in slices):
        raise InputError(f"{path}: expected a Pixel Spacing, got none, though the image has a position in the body")
    return DicomFile(path, _series(dataset), kind, pixels, note, slice_step(path, dataset), tuple(slices))


def _layout(path: Path, dataset: Any, start: int, length: int | None) -> PixelLayout:
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if min(rows, columns, frames) < 1:
        raise InputError(f"{path}: no voxels: expected rows, columns and frames, got {rows}, {columns} and {frames}")
    allocated = int(dataset.get("BitsAllocated") or 16)
    floating = allocated in (32, 64) and "PixelRepresentation" not in dataset
    if allocated not in (1, 8, 16, 32, 64) or (allocated == 64 and not floating):
        raise InputError(f"{path}: expected pixels of 1, 8, 16 or 32 bits, got {allocated}")
    used = min(int(dataset.get("BitsStored") or allocated), allocated)
    high = dataset.get("HighBit")
    return PixelLayout(
        start, length, _syntax(dataset), rows, columns, frames, allocated, used,
        used - 1 if high is None else min(max(int(high), used - 1), allocated - 1),
        bool(dataset.get("PixelRepresentation") or 0), floating,
        dataset.get("PhotometricInterpretation") == "MONOCHROME1",
    )  # fmt: skip


def _check_length(path: Path, pixels: PixelLayout, size: int, fragments: int) -> None:
    """Raises InputError where the file cannot hold the pixels that its header promises.

    What is missing would be memory of whatever was read before: another person's pixels.
    """
    promised = pixels.promised
    if pixels.length is None:
        if promised > max(1 << 28, 2000 * size):
            raise InputError(f"{path}: its header promises {promised >> 20} MiB of pixels, the file has {size} bytes")
        if fragments < pixels.frames:
            raise InputError(
                f"{path}: a DICOM image that cannot be read: truncated: its header promises {pixels.frames} compressed "
                f"frames, the file holds {max(0, fragments)} whole pieces"
            )
        return
    there = pixels.length if pixels.syntax == DEFLATED else min(pixels.length, size - pixels.start)
    if there < promised:
        raise InputError(
            f"{path}: a DICOM image that cannot be read: truncated: its header promises {promised} bytes of pixels, "
            f"the file holds {max(0, there)}"
        )


def _kind(path: Path, dataset: Any) -> str:
    modality = str(dataset.get("Modality") or "")
    if modality == "SEG":
        kind = str(dataset.get("SegmentationType") or "")
        if kind not in ("BINARY", "LABELMAP"):
            raise InputError(f"{path}: expected a segmentation of labels, got one of type {kind or 'unknown'}")
        return "segments" if kind == "BINARY" else "labels"
    if modality == "RTDOSE":
        return "dose"
    mosaic = "MOSAIC" in list(dataset.get("ImageType") or ())
    return ("mosaic" if tile_count(dataset) > 1 else "plane of a mosaic") if mosaic else "image"


def _words(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
