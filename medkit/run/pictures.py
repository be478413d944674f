"""The pictures of `--qc`: one for each case, drawn by the task or by default."""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medkit.errors import InputError
from medkit.pipe.names import stem
from medkit.run.looks import plain

if TYPE_CHECKING:
    import numpy as np

    from medkit.run.task import Case, Result, Task

log = logging.getLogger("medkit")
OWNER = "medkit-result"
"""Key of the text in a picture that tells which result it shows."""


def picture_path(folder: Path, main: Path, output: Path | None) -> Path:
    """Return where the picture of a result goes.

    It lies below `folder` as the result lies below `output`, or below the working directory if that is None: results
    in different folders may have equal names.
    """
    root = output or Path.cwd()
    below = main.parent.relative_to(root) if main.is_relative_to(root) and main != root else Path()
    return folder / below / f"{stem(main)}.png"


def owner_digest(main: Path, folder: Path) -> str:
    """Return what a picture in a folder holds under `OWNER` if it shows this result."""
    return hashlib.sha256(os.fsencode(os.path.relpath(main, folder))).hexdigest()


def draw_case(path: Path, task: Task, case: Case, result: Result) -> None:
    """Write the picture of a case, with the reasons to look at it in its title.

    If it cannot be drawn, that is a warning, not a failure of the case.
    """
    from medkit.figures.layout import under_title

    try:
        picture = result.figure() if result.figure else _default_figure(task, case, result)
        if picture is None:
            _say_once(f"--qc: {task.name} draws no picture")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        reasons = [f"needs a look: {plain(warning)}" for warning in result.warnings]
        main = next(iter(case.outputs.values()), case.record.path)
        _write(under_title(picture, reasons) if reasons else picture, path, main)
    except Exception as error:
        log.warning("%s: no picture: %s", case.record.path.name, error)
        log.debug("", exc_info=True)


@functools.cache
def _say_once(text: str) -> None:
    log.warning("%s", text)


def _write(picture: np.ndarray, path: Path, main: Path) -> None:
    """Write the picture of a result; one of the same name that shows another result stays, and this one is numbered.

    A picture holds a digest of where its result lies, by which a later run of the same result knows it.
    """
    from medkit.figures.mosaic import text_in_png, write_png

    owner = owner_digest(main, path.parent)
    part = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    try:
        write_png(picture, part, {OWNER: owner})
        for number in itertools.count(1):
            place = path if number == 1 else path.with_name(f"{path.stem}_{number}.png")
            if text_in_png(place, OWNER) == owner:
                os.replace(part, place)
            elif not _linked(part, place):
                continue
            if number > 1:
                log.warning("%s: shows another result; the picture of %s is %s", path.name, main.name, place.name)
            return
    finally:
        part.unlink(missing_ok=True)


def _linked(part: Path, place: Path) -> bool:
    """Give a file a name that nothing has yet; return False if something has it, also since a moment ago."""
    try:
        os.link(part, place)
    except FileExistsError:
        return False
    except OSError:  # some file systems know no links
        if os.path.lexists(place):
            return False
        os.replace(part, place)
    return True


def _default_figure(task: Task, case: Case, result: Result) -> np.ndarray | None:
    """Return the main output drawn over the input, (H, W, 3) uint8, alone if that is no image; None if it is none."""
    from medkit.figures.mosaic import overlay_mosaic
    from medkit.images.image import Image

    if not task.outputs:
        return None
    value = result.outputs[task.outputs[0].role]
    if not isinstance(value, Image):
        return None
    kind = result.kind or task.outputs[0].kind
    drawn: Literal["labels", "image"] = "labels" if kind in ("labels", "mask") else "image"
    title = f"{task.name}  {case.path.name}"
    try:
        image = case.image()
    except InputError:  # an image of a transform, for example
        return overlay_mosaic(value, title=title)
    return overlay_mosaic(image, value, kind=drawn, title=title)
