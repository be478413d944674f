"""MetaImage files without comments, names and free texts (itk.org/Wiki/ITK/MetaIO/Documentation)."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np

from medkit.errors import InputError
from medkit.pipe.lines import text_lines
from medkit.privacy.formats.nifti import check_length, note_tail
from medkit.privacy.formats.nrrd import NUMBERS, UNITS, detached, inflated
from medkit.privacy.report import Changes

_NUMERIC = """
NDims TransformMatrix Rotation Orientation Offset Origin Position CenterOfRotation ElementSpacing ElementSize DimSize
ElementMin ElementMax ElementNumberOfChannels SequenceID ElementToIntensityFunctionSlope
ElementToIntensityFunctionOffset
"""
_FIELDS = {
    "ObjectType": "Image",
    "ObjectSubType": "",
    **dict.fromkeys(("BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB"), "True|False|true|false|0|1"),
    "AnatomicalOrientation": r"[A-Z?]{1,4}",
    "Modality": r"MET_MOD_[A-Z]{2,7}",
    "ElementType": r"MET_(U?(CHAR|SHORT|INT|LONG|LONG_LONG)|FLOAT|DOUBLE)(_ARRAY)?",
    "DistanceUnits": UNITS,
    **dict.fromkeys(_NUMERIC.split(), NUMBERS.pattern),
}
"""Field -> what its value is made of."""
_PLACES = ("CompressedData", "CompressedDataSize", "ElementDataFile", "HeaderSize", "HeaderSizePerSlice")
_WIDTHS = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}


def clean_metaimage(path: Path, changes: Changes) -> list[bytes]:
    """Return a MetaImage file, header and voxels in one, in parts. Raises InputError."""
    content = path.read_bytes()
    match = re.search(rb"^ElementDataFile[ \t]*=[^\n]*\n?", content, re.MULTILINE)
    if match is None or not re.match(rb"\s*[A-Za-z]+[ \t]*=", content):
        raise InputError(f"{path.name}: expected a MetaImage file, got something else")
    fields: dict[str, str] = {}
    kept = []
    for line in text_lines(content[: match.end()].decode("latin-1")):
        name, _, value = (part.strip() for part in line.partition("="))
        fields[name] = value
        if name in _FIELDS and re.fullmatch(_FIELDS[name], value):
            kept.append(f"{name} = {value}")
        elif name and name not in _PLACES:
            changes.add("removed", "free text fields")
    voxels = _voxels(path, fields, content[match.end() :], changes)
    compressed = _is_compressed(fields)
    voxels = zlib.compress(voxels) if compressed else voxels
    kept += [f"CompressedData = {compressed}"] + ([f"CompressedDataSize = {len(voxels)}"] if compressed else [])
    return ["\n".join([*kept, "ElementDataFile = LOCAL", ""]).encode("latin-1"), voxels]


def _is_compressed(fields: dict[str, str]) -> bool:
    return fields.get("CompressedData", "").lower() in ("true", "1")


def _voxels(path: Path, fields: dict[str, str], body: bytes, changes: Changes) -> bytes:
    """Return the voxels, unpacked."""
    if fields.get("BinaryData", "True").lower() not in ("true", "1"):
        raise InputError(f"{path.name}: voxels written as text are not treated")
    if fields["ElementDataFile"].upper() not in ("LOCAL", "LOCAL.RAW"):
        body = detached(path, fields["ElementDataFile"])
    try:
        sizes = [int(size) for size in fields["DimSize"].split()]
        skip, channels = int(fields.get("HeaderSize") or 0), int(fields.get("ElementNumberOfChannels") or 1)
        packed = int(fields.get("CompressedDataSize") or 0)
        width = _WIDTHS[fields["ElementType"].removeprefix("MET_").removesuffix("_ARRAY").removeprefix("U")]
    except (KeyError, ValueError) as error:
        raise InputError(f"{path.name}: expected the type and sizes of the voxels in the header") from error
    size = width * channels * int(np.prod(sizes, dtype=object))
    if _is_compressed(fields):
        note_tail(body[packed:] if packed else b"", changes)
        body = inflated(path, body[: packed or None])
    body = body[-size:] if skip == -1 else body[skip:]
    check_length(path, body, size)
    note_tail(body[size:], changes)
    return body[:size]
