"""PNG and JPEG pictures without texts, EXIF, previews and what stands behind the picture; the pixels stay as they are.

PNG: w3.org/TR/png; JPEG: ITU-T T.81 annex B.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medkit.errors import InputError
from medkit.privacy.report import Changes
from medkit.privacy.text_in_pixels import find_text

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"sBIT", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"bKGD")
_ORIENTATION = 0x0112
_APP0, _APP1, _APP14, _APP15, _COMMENT = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_START_OF_SCAN, _END = 0xDA, 0xD9


def clean_picture(path: Path, changes: Changes, *, blank: bool) -> list[bytes]:
    """Return a PNG or JPEG picture, in parts. Raises InputError for pictures with text that is not to be blanked."""
    from PIL import Image

    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as picture:
            orientation = int(picture.getexif().get(_ORIENTATION, 1))
            pixels = np.asarray(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path.name}: expected a PNG or JPEG picture") from error
    boxes = find_text(pixels.astype(np.float32))
    if boxes and not (blank and content.startswith(_PNG)):
        hint = "PNG pictures can be blanked" if blank else "--blank blanks it in PNG pictures"
        raise InputError(f"{path.name}: {len(boxes)} lines in its pixels look like text ({hint})")
    if boxes:
        content = _blanked(content, boxes)
        changes.add("blanked", "text in pixels")
    turned = _only_orientation(orientation) if orientation != 1 else b""
    return list(_png(content, turned, changes) if content.startswith(_PNG) else _jpeg(path, content, turned, changes))


def _blanked(content: bytes, boxes: list[tuple[int, int, int, int]]) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    with Image.open(io.BytesIO(content)) as picture:
        for top, bottom, left, right in boxes:
            picture.paste(0, (left, top, right, bottom))
        picture.save(out, "PNG", dpi=picture.info.get("dpi"))
    return out.getvalue()


def _only_orientation(orientation: int) -> bytes:
    """Return an EXIF block that holds nothing but how the picture is turned."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, _ORIENTATION, 3, 1, orientation, 0, 0)


def _png(content: bytes, exif: bytes, changes: Changes) -> Iterator[bytes]:
    yield _PNG
    at = len(_PNG)
    while at + 12 <= len(content):
        (length,), kind = struct.unpack_from(">I", content, at), content[at + 4 : at + 8]
        end = at + 12 + length
        if kind in _PNG_CHUNKS:
            yield content[at:end]
        else:
            changes.add("removed", "texts and other extra parts")
        if kind == b"IHDR" and exif:
            yield _chunk(b"eXIf", exif)
        at = end
        if kind == b"IEND":
            break
    if content[at:]:
        changes.add("removed", "bytes behind the picture")


def _chunk(kind: bytes, content: bytes) -> bytes:
    import zlib

    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _jpeg(path: Path, content: bytes, exif: bytes, changes: Changes) -> Iterator[bytes]:
    yield content[:2]
    at, wrote_exif = 2, not exif
    while at + 4 <= len(content):
        marker = content[at + 1]
        if marker == _END:
            break
        if content[at] != 0xFF:
            raise InputError(f"{path.name}: a damaged JPEG picture")
        (length,) = struct.unpack_from(">H", content, at + 2)
        segment = content[at : at + 2 + length]
        at += 2 + length
        if marker != _APP0 and not wrote_exif:
            yield b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif
            wrote_exif = True
        if marker == _APP0 and segment[4:9] == b"JFIF\0":
            yield b"\xff\xe0\0\x10" + segment[4:16] + b"\0\0"  # without the preview
        elif marker == _COMMENT or (_APP0 <= marker <= _APP15 and marker != _APP14):
            changes.add("removed", "texts and other extra parts")
        else:
            yield segment
        if marker == _START_OF_SCAN:
            end = _end_of_scan(content, at)
            yield content[at:end]
            at = end
    yield b"\xff\xd9"
    if content[at + 2 :].strip(b"\0\xff"):
        changes.add("removed", "bytes behind the picture")


def _end_of_scan(content: bytes, at: int) -> int:
    """Where the next marker is behind compressed pixels: in them, FF stands before 00 or a restart only."""
    while True:
        at = content.find(b"\xff", at)
        if at < 0 or at + 1 >= len(content):
            return len(content)
        if content[at + 1] not in (0x00, 0xFF, *range(0xD0, 0xD8)):
            return at
        at += 1
