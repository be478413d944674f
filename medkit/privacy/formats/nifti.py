"""NIfTI and MGH files without free text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medkit.errors import InputError
from medkit.images import mgh, nifti
from medkit.privacy.report import Changes
from medkit.privacy.vocabulary import harmless_text

_TEXTS = ("descrip", "aux_file", "intent_name", "data_type", "db_name", "unused_str")
_CIFTI = range(3000, 3100)
"""Intents of CIFTI files, whose geometry is in an extension."""
_MGH_FIELDS_END = 90
"""Byte of an MGH header at which its fields end."""
_MGH_PARAMETERS = 20
"""Bytes of what stands behind the voxels: repetition time, flip angle, echo and inversion time, field of view."""
_MGH_WIDTHS = {0: 1, 1: 4, 3: 4, 4: 2}
"""Type in an MGH header -> bytes of a voxel."""


def clean_nifti(path: Path, changes: Changes) -> list[bytes]:
    """Return a NIfTI file without texts and extensions, in parts. Raises InputError for CIFTI and damaged files."""
    content, header = nifti.read_bytes(path), nifti.read_header(path)
    if int(header["intent_code"]) in _CIFTI:
        raise InputError(f"{path.name}: a CIFTI file, whose geometry is in an extension that may hold anything")
    size = int(header["sizeof_hdr"])
    first = max(int(header["vox_offset"]), size + 4)
    count = int(np.prod(nifti.promised_shape(path, header), dtype=object))
    end = first + count * nifti.stored_dtype(path, header).itemsize
    check_length(path, content, end)
    for name in set(_TEXTS) & set(header.keys()):
        _clean_field(header, name, changes)
    if any(content[size : size + 1]) and first > size + 4:
        changes.add("removed", "extensions")
    note_tail(content[end:], changes)
    header["vox_offset"] = start = size + 4
    return [header.binaryblock, bytes(start - size), bytes(content[first:end])]


def _clean_field(header: object, name: str, changes: Changes) -> None:
    """Empty a text of a header, with what stands behind its end; of the name of an intent harmless words stay."""
    text = bytes(header[name]).split(b"\0")[0].decode("latin-1")  # type: ignore[index]
    kept = harmless_text(text) if name == "intent_name" else ""
    if kept != text:
        changes.add("removed", name)
    header[name] = kept.encode("latin-1")  # type: ignore[index]


def clean_mgh(path: Path, changes: Changes) -> list[bytes]:
    """Return an MGH file without command lines, colour tables and names of other files, in parts. Raises InputError."""
    mgh.read_grid(path, None)  # refuses what is not MGH
    content = nifti.read_bytes(path)
    sizes, kind = np.frombuffer(content, ">i4", 4, 4), int(np.frombuffer(content, ">i4", 1, 20)[0])
    end = mgh.DATA_OFFSET + _MGH_WIDTHS[kind] * int(np.prod(sizes, dtype=object))
    check_length(path, content, end)
    if any(content[_MGH_FIELDS_END : mgh.DATA_OFFSET]):
        changes.add("removed", "unused bytes of the header")
    parameters = bytes(content[end : end + _MGH_PARAMETERS])
    if any(content[end + _MGH_PARAMETERS :]):
        changes.add("removed", "tags behind the voxels")
    unused = bytes(mgh.DATA_OFFSET - _MGH_FIELDS_END)
    return [bytes(content[:_MGH_FIELDS_END]), unused, bytes(content[mgh.DATA_OFFSET : end]), parameters]


def check_length(path: Path, content: bytes | bytearray, promised: int) -> None:
    """Raise InputError for a file that holds less than its header promises."""
    if len(content) < promised:
        raise InputError(f"{path.name}: truncated: the header promises {promised} bytes, the file holds {len(content)}")


def note_tail(tail: bytes | bytearray, changes: Changes) -> None:
    """Count what stands behind the voxels, and is left out."""
    if any(tail):
        changes.add("removed", "bytes behind the voxels")
