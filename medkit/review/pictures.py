"""The pictures of the page: those of `--qc` where there are any, else drawn from the results."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medkit.pipe.records import record_of
from medkit.review.cases import ReviewCase
from medkit.run.pictures import OWNER, owner_digest
from medkit.viewer.layers import Layers, draw_layers, layers_of

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

log = logging.getLogger("medkit")
ROOM = 13_500_000
"""Bytes for all pictures of a page that is one file: mail servers take about 25 MB, and base64 adds a third twice."""
MOST = 160_000
"""Most bytes for one picture in such a file."""
_LEVELS = (
    *((1.0, 82, 1.0), (1.0, 65, 0.75), (0.8, 60, 0.55), (0.7, 50, 0.4), (0.6, 50, 0.3), (0.5, 45, 0.22)),
    *((0.4, 45, 0.15), (0.3, 40, 0.08)),
)
"""Scale, WebP quality, and the bytes that are left of those at the first level (measured on mosaics), best first."""
_SMALLEST = 240
"""Pixels: the width that a picture keeps."""


def pictures_of_qc(cases: Sequence[ReviewCase], files: Iterable[Path]) -> dict[str, Path]:
    """Return key of a case -> its picture of `--qc`: a PNG that holds the digest of where its result lies."""
    from medkit.figures.mosaic import text_in_png

    found: dict[str, Path] = {}
    digests: dict[Path, dict[str, str]] = {}
    for file in files:
        if owner := text_in_png(file, OWNER):
            if file.parent not in digests:
                digests[file.parent] = {owner_digest(case.path, file.parent, case.row_of): case.key for case in cases}
            if key := digests[file.parent].get(owner):
                found.setdefault(key, file)
    return found


def png_files(folder: Path) -> Iterator[Path]:
    """Yield the PNG files in a folder and below."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place) / name for name in sorted(names) if name.lower().endswith(".png"))


def layers_of_case(case: ReviewCase) -> Layers | None:
    """Return what a case shows: labels over their image, an image and its source; None if nothing can be shown."""
    record = case.record if case.path == case.record.path else record_of(case.path)
    arguments = case.record.medkit.get("arguments")
    try:
        return layers_of(record, arguments if isinstance(arguments, Mapping) else {})
    except Exception as error:
        _say_missing(case, error)
        return None


def opened(case: ReviewCase, file: Path | None, layers: Layers | None) -> Picture | None:
    """Return the picture of a case from its file, else drawn from its layers; None if there is none, or it fails."""
    from PIL import Image as Pillow

    try:
        if file is not None:
            with Pillow.open(file) as picture:
                return picture.convert("RGB")
        title = f"{case.task}  {case.path.name}"
        return None if layers is None else Pillow.fromarray(draw_layers(layers, title))
    except Exception as error:
        _say_missing(case, error)
        return None


def _say_missing(case: ReviewCase, error: Exception) -> None:
    result_is_image = not case.record.failed and case.record.kind in ("image", "labels", "mask")
    if not case.error and result_is_image:  # other results, and inputs on which a task failed, often show nothing
        log.warning("%s: no picture: %s", case.path.name, error)
    log.debug("", exc_info=True)


def encoded(picture: Picture, room: int | None) -> bytes:
    """Return a picture as WebP, without what else its file may hold; in at most `room` bytes if that is possible."""
    content = _webp(picture, *_LEVELS[0][:2])
    whole = len(content)
    for scale, quality, share in _LEVELS[1:]:
        if room is None or len(content) <= room:
            break
        if share * whole <= 1.2 * room or scale == _LEVELS[-1][0]:  # the others would be encoded for nothing
            content = _webp(picture, scale, quality)
    return content


def _webp(picture: Picture, scale: float, quality: int) -> bytes:
    if scale < 1 and picture.width * scale >= _SMALLEST:
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=2, use_sharp_yuv=True)
    return buffer.getvalue()


def room_for_each(count: int, room: int = ROOM) -> int:
    """Return the bytes that each of `count` pictures may have in a page that is one file."""
    return min(MOST, room // max(1, count))


def as_uri(content: bytes) -> str:
    """Return a WebP picture as an address that holds it."""
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"


def file_name(content: bytes) -> str:
    """Return the name of a picture's file in the folder of a page."""
    return f"{hashlib.sha256(content).hexdigest()[:20]}.webp"
