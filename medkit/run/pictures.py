"""The pictures of `--qc`: one for each case, drawn by the task or by default."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.errors import MedkitError
from medkit.pipe.names import stem
from medkit.pipe.records import Record, record_of
from medkit.run.claims import process_gone
from medkit.run.looks import LOOK_AT_THIS, plain

if TYPE_CHECKING:
    import numpy as np

    from medkit.images.image import Image
    from medkit.options import RunOptions
    from medkit.run.task import Case, CasePlan, Result, Task

log = logging.getLogger("medkit")
OWNER = "medkit-result"
"""Key of the text in a picture that tells which result it shows."""


@dataclass(frozen=True)
class Picture:
    """Where the picture of a case goes, and whose it is."""

    path: Path
    main: Path
    """The case's main result; its input if it is a row of a table."""
    row_of: str = ""
    """The task whose table has the case as a row; empty if the case has files of its own."""

    @classmethod
    def of(cls, plan: CasePlan, task: Task, options: RunOptions) -> Picture:
        """Return the picture of a case in the folder of `--qc`, under the name of its main result.

        It lies below that folder as the first result of the case, that of the first stage of a pipe, lies below its own
        `--output`, or below the working directory if none was given. So results of equal names in different folders
        have pictures of their own, and the pictures of all stages of a pipe lie next to each other.
        """
        assert options.qc is not None
        has_files = bool(plan.targets.outputs)
        main = plan.targets.main if has_files else plan.record.path
        first = first_result(plan.record) if task.arity == "each" else None
        below = _below(main, options.output) if first is None else _below(first.path, _output_of(first))
        row_of = "" if has_files else task.name
        name = stem(main) + (f"_{row_of.replace(' ', '-')}" if row_of else "")
        return cls(options.qc / below / f"{name}.png", main, row_of)

    @property
    def owner(self) -> str:
        """What the picture holds under `OWNER`."""
        return owner_digest(self.main, self.path.parent, self.row_of)


def owner_digest(main: Path, folder: Path, row_of: str = "") -> str:
    """Return what a picture in a folder holds under `OWNER` if it shows this result, or an input's row of a table."""
    text = os.path.relpath(main, folder) + (f"\0{row_of}" if row_of else "")
    return hashlib.sha256(os.fsencode(text)).hexdigest()


def first_result(record: Record) -> Record | None:
    """Return the first result of medkit on the way from a case's own source to it; None if it is no result.

    A result that was made of several cases together counts as a source.
    """
    first, seen = None, {record.path}
    while record.medkit.get("task"):
        first = record
        if "image_2" in record.medkit.get("inputs", {}) or not record.sources or record.sources[0] in seen:
            break
        seen.add(record.sources[0])
        record = record_of(record.sources[0])
    return first


def _output_of(record: Record) -> Path | None:
    """Return the value of `--output` that a result was made with; None if there was none, or it is not known."""
    words = record.medkit.get("command") or []
    for option, value in itertools.pairwise(words):
        if option == "--output" and isinstance(value, Mapping):
            return Path(str(value.get("path")))
    return None


def _below(main: Path, output: Path | None) -> Path:
    """Return the folder of a result relative to the output, or to the working directory; empty if it is elsewhere."""
    root = output or Path.cwd()
    return main.parent.relative_to(root) if main.is_relative_to(root) and main != root else Path()


def draw_case(place: Picture, task: Task, case: Case, result: Result) -> None:
    """Write the picture of a case, with the reasons to look at it in its title.

    If it cannot be drawn, that is a warning, not a failure of the case.
    """
    from medkit.figures.layout import under_title

    try:
        drawn = result.figure() if result.figure else _default_figure(task, case, result)
        if drawn is None:
            _say_once(f"--qc: {task.name} draws no picture")
            return
        place.path.parent.mkdir(parents=True, exist_ok=True)
        reasons = [LOOK_AT_THIS + plain(warning) for warning in result.warnings]
        _write(under_title(drawn, reasons) if reasons else drawn, place)
    except Exception as error:
        log.warning("%s: no picture: %s", case.record.path.name, error)
        log.debug("", exc_info=True)


@functools.cache
def _say_once(text: str) -> None:
    log.warning("%s", text)


def _write(drawn: np.ndarray, place: Picture) -> None:
    """Write the picture of a result; one of the same name that shows another result stays, and this one is numbered.

    A picture holds a digest of where its result lies, by which a later run of the same result knows it.
    """
    from medkit.figures.mosaic import text_in_png, write_png

    path = place.path
    host = socket.gethostname()
    part = path.with_name(f".{path.name}.{host}.{os.getpid()}.part")
    for leftover in path.parent.glob(f".{_escaped(path.name)}.{_escaped(host)}.*.part"):
        if process_gone(leftover):
            leftover.unlink(missing_ok=True)
    try:
        write_png(drawn, part, {OWNER: place.owner})
        for number in itertools.count(1):
            name = path if number == 1 else path.with_name(f"{path.stem}_{number}.png")
            if text_in_png(name, OWNER) == place.owner:
                os.replace(part, name)
            elif not _linked(part, name):
                continue
            if number > 1:
                log.warning("%s: shows another result; the picture of %s is %s", path.name, place.main.name, name.name)
            return
    finally:
        part.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    """Return a name as a pattern that only this name matches."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _linked(part: Path, place: Path) -> bool:
    """Give a file a name that nothing has yet; return False if something has it, also since a moment ago."""
    try:
        os.link(part, place)
    except FileExistsError:
        return False
    except OSError:  # some file systems know no links
        try:
            os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        os.replace(part, place)
    return True


def _default_figure(task: Task, case: Case, result: Result) -> np.ndarray | None:
    """Return the picture of a result whose task draws none, (H, W, 3) uint8; None if there is nothing to draw.

    Labels and images on another grid are drawn over the image whose grid they have, or over the input; an image on the
    grid of the input is compared with it; probabilities of classes stand as bars under the input.
    """
    from medkit.figures.mosaic import comparison_mosaic, overlay_mosaic
    from medkit.images.image import Image

    made = result.outputs[task.outputs[0].role] if task.outputs else None
    title = f"{task.name}  {case.path.name}"
    if not isinstance(made, Image):
        return _bars(case, result, title)
    under = _background(case, result)
    if (result.kind or task.outputs[0].kind) in ("labels", "mask"):
        names = {int(number): str(name) for number, name in result.details.get("labels", {}).items()}
        return overlay_mosaic(under or made, made, kind="labels", title=title, names=names)
    if under is None:
        return overlay_mosaic(made, title=title)
    own = result.spatial_reference in (None, case.path)
    if own and under.data.shape == made.data.shape and under.grid.digest() == made.grid.digest():
        return comparison_mosaic(under, made, title=title)
    return overlay_mosaic(under, made, title=title)


def _background(case: Case, result: Result) -> Image | None:
    """Return the image whose grid a result has, else the input; None if neither can be read."""
    from medkit.images.image import read_image

    reference = result.spatial_reference
    if reference is not None and reference != case.path:
        with contextlib.suppress(MedkitError, OSError):
            return read_image(reference)
    with contextlib.suppress(MedkitError, OSError):  # the image of a transform, for example
        return case.image()
    return None


def _bars(case: Case, result: Result, title: str) -> np.ndarray | None:
    """Return probabilities of classes as bars under the input; None if the result has none."""
    from medkit.figures.bars import BarGroup, bars_under
    from medkit.figures.mosaic import overlay_mosaic

    table: Any = result.metrics.get("probabilities")
    if not isinstance(table, Mapping) or not table:
        return None
    chosen = max(table, key=lambda name: table[name])
    try:
        drawn = overlay_mosaic(case.image())
    except MedkitError:  # a coloured picture, for example
        drawn = None
    return bars_under(drawn, title, [BarGroup(str(chosen), table, str(chosen))])
