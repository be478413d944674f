"""Files of every format with a name in each text field of their headers, and a search for it in what programs leave."""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from PIL import ExifTags, Image, PngImagePlugin
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataset import Dataset, FileMetaDataset

NAME = "Quillfeather"
"""A name that is in no other text."""
NUMBER = "QF471180"
DATE = "19310727"
TOKENS = tuple(token.casefold() for token in (NAME, NUMBER, DATE, "1931-07-27", "Q^UILL"))
"""What no output may hold."""
TEXTS = ("SH", "LO", "ST", "LT", "UT", "UC", "PN", "AE", "UR")
READ = (
    *("ImageType", "Modality", "PhotometricInterpretation", "SegmentationType", "FrameType", "SpecificCharacterSet"),
    *("SOPClassUID", "BurnedInAnnotation", "LossyImageCompression", "ValueType", "RelationshipType"),
)
"""Attributes without which a file could not be read."""
GEOMETRY = np.diag([4.0, 4.0, 5.0, 1.0])


@functools.cache
def _texts(*, codes: bool) -> Dataset:
    """A data set with the name in every attribute of the dictionary that holds text."""
    dataset = Dataset()
    for tag, (vr, *_, keyword) in DicomDictionary.items():
        if tag >> 16 in (0x0000, 0x0002, 0x0004, 0xFFFE) or not keyword or keyword in READ:
            continue
        if vr in TEXTS:
            dataset.add_new(tag, vr, NAME if vr != "PN" else f"{NAME}^Anna")
        elif vr == "CS" and codes:
            dataset.add_new(tag, vr, NAME.upper())
    return dataset


def plant(dataset: Dataset, *, codes: bool = False) -> None:
    """Put the name into every attribute that holds text and is not there, and into private and nested ones.

    With `codes`, also into those that hold words of a list (CS).
    """
    for element in _texts(codes=codes):
        if element.tag not in dataset:
            dataset.add(element)
    dataset.PatientID, dataset.PatientBirthDate, dataset.OtherPatientIDs = NUMBER, DATE, NUMBER
    block = dataset.private_block(0x0029, "MAKER OF THINGS", create=True)
    block.add_new(0x01, "LO", f"{NAME} in private")
    inner = Dataset()
    inner.PatientName, inner.CodeMeaning, inner.CodeValue, inner.CodingSchemeDesignator = NAME, NAME, "1", "99X"
    inner.private_block(0x0031, "MAKER OF THINGS", create=True).add_new(0x02, "LT", NAME)
    outer = Dataset()
    outer.PurposeOfReferenceCodeSequence = [inner]
    dataset.SourceInstanceSequence = [outer]
    dataset.add_new((0x6000, 0x0010), "US", 2)
    dataset.add_new((0x6000, 0x4000), "LT", NAME)
    dataset.add_new((0xFFFC, 0xFFFC), "OB", NAME.encode())


def dicom_series(folder: Path, voxels: np.ndarray, modality: str = "CT", *, person: str = "", **tags: Any) -> Path:
    """Write a series of planted slices; `voxels` (I, J, K) int16, on a grid of 4 x 4 x 5 mm. Return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    root = pydicom.uid.generate_uid(entropy_srcs=[str(folder)])
    for k in range(voxels.shape[2]):
        data = Dataset()
        data.SOPClassUID = {"CT": pydicom.uid.CTImageStorage, "MR": pydicom.uid.MRImageStorage}[modality]
        data.SOPInstanceUID, data.SeriesInstanceUID, data.StudyInstanceUID = (
            f"{root[:50]}.{k + 1}",
            root[:52],
            root[:48],
        )
        data.FrameOfReferenceUID, data.Modality, data.ImageType = f"{root[:46]}.9", modality, ["ORIGINAL", "PRIMARY"]
        data.StudyDate, data.AcquisitionDateTime, data.StudyTime = "20190412", "20190412101500.5+0100", "101500"
        data.SeriesNumber, data.InstanceNumber = 3, k + 1
        data.Rows, data.Columns, data.PixelSpacing = voxels.shape[1], voxels.shape[0], [4.0, 4.0]
        data.ImagePositionPatient, data.ImageOrientationPatient = [-60, -60, 5.0 * k], [1, 0, 0, 0, 1, 0]
        data.SamplesPerPixel, data.PhotometricInterpretation, data.SliceThickness = 1, "MONOCHROME2", 5.0
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation, data.RescaleSlope, data.RescaleIntercept = 15, 1, 1, 0
        data.PixelData = np.ascontiguousarray(voxels[:, :, k].astype("<i2").T).tobytes()
        for name, value in tags.items():
            setattr(data, name, value)
        plant(data)
        data.PatientName, data.PatientID = f"{person or NAME}^Anna", person or NUMBER
        save(data, folder / f"{(k * 7) % 101:03}.dcm")
    return folder


def save(data: Dataset, path: Path) -> Path:
    """Write a data set as a file whose preamble and header are planted too."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    meta.SourceApplicationEntityTitle = NAME
    data.file_meta, data.preamble = meta, NAME.encode().ljust(128, b"\0")
    data.save_as(path, enforce_file_format=True)
    return path


def nifti(path: Path, voxels: np.ndarray, affine: np.ndarray = GEOMETRY) -> Path:
    """Write a planted NIfTI-1 file, with the name in the gzip header and behind the voxels as well."""
    image = nibabel.Nifti1Image(voxels, affine)
    header = image.header
    for name in ("descrip", "aux_file", "intent_name", "data_type", "db_name"):
        header[name] = NAME.encode()
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", f"{NAME} {NUMBER}".encode()))
    content = image.to_bytes() + NAME.encode()
    if path.suffix == ".gz":
        with open(path, "wb") as raw, gzip.GzipFile(f"{NAME}.nii", "wb", fileobj=raw) as file:
            file.write(content)
    else:
        path.write_bytes(content)
    return path


def mgh(path: Path, voxels: np.ndarray, affine: np.ndarray = GEOMETRY) -> Path:
    """Write a planted MGH file: unused bytes, a command line behind the voxels."""
    content = bytearray(nibabel.MGHImage(voxels, affine).to_bytes())
    content[120 : 120 + len(NAME)] = NAME.encode()
    content += bytes(20 - len(content) % 4) + (3).to_bytes(4, "big") + f"mri_convert {NAME}".encode()
    path.write_bytes(gzip.compress(bytes(content)) if path.suffix == ".mgz" else bytes(content))
    return path


def nrrd(path: Path, voxels: np.ndarray, encoding: str = "gzip") -> Path:
    """Write a planted NRRD file: comments, content, labels, keys and values, the gzip header."""
    raw = voxels.astype("<i2").tobytes(order="F")
    packed = {"raw": raw, "gzip": gzip.compress(raw), "bzip2": bz2.compress(raw)}[encoding]
    lines = [
        "NRRD0004", f"# {NAME}", "type: short", "dimension: 3", "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, voxels.shape))}", "space directions: (4,0,0) (0,4,0) (0,0,5)", "endian: little",
        f"encoding: {encoding}", "space origin: (0,0,0)", f"content: {NAME}", f'labels: "{NAME}" "y" "z"',
        f"{NAME}:={NUMBER}", f"DICOM_0010_0010_PN:={NAME}", f"modality:={NAME}", "DWMRI_b-value:=1000",
    ]  # fmt: skip
    path.write_bytes("\n".join([*lines, "", ""]).encode() + packed)
    return path


def metaimage(path: Path, voxels: np.ndarray) -> Path:
    """Write a planted MetaImage file, compressed."""
    packed = zlib.compress(voxels.astype("<i2").tobytes(order="F"))
    lines = [
        "ObjectType = Image", "NDims = 3", f"Comment = {NAME}", f"Name = {NAME}", "BinaryData = True",
        "BinaryDataByteOrderMSB = False", "CompressedData = True", f"CompressedDataSize = {len(packed)}",
        "TransformMatrix = 1 0 0 0 1 0 0 0 1", "Offset = 0 0 0", "ElementSpacing = 4 4 5", f"PatientName = {NAME}",
        f"AcquisitionDate = {DATE}", f"DimSize = {' '.join(map(str, voxels.shape))}", "ElementType = MET_SHORT",
        "ElementDataFile = LOCAL",
    ]  # fmt: skip
    path.write_bytes("\n".join([*lines, ""]).encode() + packed + NAME.encode())
    return path


def picture(path: Path, pixels: np.ndarray) -> Path:
    """Write a planted PNG or JPEG: texts, EXIF, comments, bytes behind the picture; `pixels` (rows, columns) uint8."""
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    for tag in (ExifTags.Base.Artist, ExifTags.Base.ImageDescription, ExifTags.Base.Copyright):
        exif[tag] = NAME
    if path.suffix == ".png":
        texts = PngImagePlugin.PngInfo()
        texts.add_text("Author", NAME)
        texts.add_text("Comment", NAME, zip=True)
        texts.add_itxt("Title", NAME)
        image.save(path, pnginfo=texts, exif=exif)
    else:
        image.save(path, exif=exif, comment=NAME.encode(), quality=95)
    with open(path, "ab") as file:
        file.write(NAME.encode())
    return path


def found_in(*places: Path | str) -> list[str]:
    """Return where a planted text is, in texts, files and the files of folders, also in compressed ones."""
    found = []
    for place in places:
        if isinstance(place, str):
            found += [f"text: {line[:200]}" for line in place.splitlines() if _holds(line.encode(errors="replace"))]
            continue
        for path in [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file()):
            found += [f"{path}: {kind}" for kind, content in _contents(path) if _holds(content)]
    return found


def _holds(content: bytes) -> bool:
    small = content.lower()
    return any(token.encode(code) in small for token in TOKENS for code in ("utf-8", "utf-16-le"))


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """The bytes of a file, what gzip and zlib streams in it hold, and the texts of a picture or DICOM object."""
    raw = path.read_bytes()
    yield "bytes", raw
    for mark, wbits in ((b"\x1f\x8b\x08", 31), (b"\x78\x9c", 15), (b"\x78\x01", 15), (b"\x78\xda", 15)):
        at = raw.find(mark)
        while at >= 0:
            with contextlib.suppress(zlib.error):
                yield "packed", zlib.decompressobj(wbits).decompress(raw[at:])
            at = raw.find(mark, at + 1)
    if raw[128:132] == b"DICM":
        yield "DICOM", str(pydicom.dcmread(path)).encode()


def keywords_with(path: Path) -> list[str]:
    """Return the keywords of the attributes of a DICOM file that hold a planted text."""
    return [
        keyword_for_tag(e.tag) or str(e.tag) for e in pydicom.dcmread(path).iterall() if _holds(str(e.value).encode())
    ]
