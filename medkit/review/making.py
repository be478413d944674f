"""From what a user names to the page and the table."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from medkit.errors import MedkitError, OutputError
from medkit.pipe.marks import read_marks
from medkit.review.cases import ReviewCase, cases_of, take_over
from medkit.review.collecting import FoundResults
from medkit.review.page import PICTURES, VOLUMES, page_of
from medkit.review.pictures import (
    ROOM,
    as_uri,
    encoded,
    file_name,
    layers_of_case,
    opened,
    pictures_of_qc,
    png_files,
    room_for_each,
)
from medkit.review.table import separator_of, wide_table
from medkit.review.volumes import PageVolumes
from medkit.review.writing import write_file
from medkit.terminal.progress import bar_of, working_on
from medkit.viewer.niivue import niivue

log = logging.getLogger("medkit")
_PAGE = "index.html"


@dataclass(frozen=True)
class ReportRequest:
    """What `medkit report` is asked for."""

    page: Path | None
    """The page, or with `folder` the folder of it; None: none."""
    folder: bool = False
    """Whether the pictures lie next to the page."""
    table: Path | None = None
    """A table of all metrics."""
    qc: tuple[Path, ...] = ()
    """Folders with pictures of `--qc`."""
    draw: bool = True
    """Whether results without such a picture are drawn."""
    marks: Path | None = None
    """The marks of an earlier review."""
    title: str = "Results of medkit"
    overwrite: bool = False
    viewer: bool = False
    """Whether the page has volumes to look through."""

    @property
    def files(self) -> list[Path]:
        """The files that are made, besides pictures."""
        page = self.page / _PAGE if self.page and self.folder else self.page
        return [path for path in (page, self.table) if path]


@dataclass(frozen=True)
class ReportMade:
    """What `medkit report` has made."""

    files: list[Path]
    cases: list[ReviewCase]
    problems: list[str]
    """What was named but is no result, in sentences."""
    volumes: int | None = None
    """Of how many cases the page has volumes; None: it has no viewer."""
    volumes_size: int = 0
    """Bytes of all volumes, as the page or its folder holds them."""


def make_report(lines: Iterable[str], request: ReportRequest) -> ReportMade:
    """Make the page and the table from lines that name results, with a bar of the pictures on a terminal.

    Raises UsageError for marks or names of files that cannot be used, OutputError for files that exist, MedkitError if
    there is no result, or no niivue for the viewer.
    """
    if request.viewer:
        niivue()
    marks = read_marks(request.marks) if request.marks else []
    separator = separator_of(request.table) if request.table else ""
    _refuse_existing(request)
    found = FoundResults()
    found.add_lines(lines)
    found.problems += [f"--qc {folder}: no such folder" for folder in request.qc if not folder.is_dir()]
    cases = cases_of(found.without_superseded())
    if not cases:
        raise MedkitError("report: " + ("; ".join(found.problems) or "no input arrived"))
    if missed := take_over(cases, marks):
        what = "1 mark fits no case" if len(missed) == 1 else f"{len(missed)} marks fit no case"
        log.warning("%s: %s: %s", request.marks, what, ", ".join(missed[:5]))
    if request.table:
        write_file(request.table, wide_table(cases, separator))
    if request.page:
        volumes = _write_page(request, cases, found.pictures)
        if request.viewer:
            return ReportMade(request.files, cases, found.problems, len(volumes.entries), volumes.size)
    return ReportMade(request.files, cases, found.problems)


def _refuse_existing(request: ReportRequest) -> None:
    for path in request.files:
        if os.path.lexists(path) and not request.overwrite:
            raise OutputError(f"{path}: exists already; --overwrite replaces it")


def _write_page(request: ReportRequest, cases: Sequence[ReviewCase], files: Sequence[Path]) -> PageVolumes:
    assert request.page is not None
    qc = pictures_of_qc(cases, [*files, *(file for folder in request.qc for file in png_files(folder))])
    folder = request.page / PICTURES if request.folder else None
    room = None if folder else room_for_each(len(cases), ROOM // 2 if request.viewer else ROOM)
    volumes = PageVolumes(request.page / VOLUMES if request.folder else None, len(cases))
    addresses: dict[str, str] = {}
    with bar_of("report", len(cases)) as bar:
        for case in cases:
            with working_on(case.subject, "drawing"):
                drawn = request.draw and case.key not in qc
                layers = layers_of_case(case) if drawn or (request.viewer and volumes.has_room) else None
                picture = opened(case, qc.get(case.key), layers if drawn else None)
                if picture is not None:
                    content = encoded(picture, room)
                    addresses[case.key] = _put(folder, content) if folder else as_uri(content)
                if request.viewer:
                    volumes.add(case.key, layers)
            bar.count()
    if folder:
        _remove_others(folder, {Path(address).name for address in addresses.values()})
    volumes.remove_others()
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    entries = volumes.entries if request.viewer else None
    write_file(request.files[0], page_of(cases, addresses, title=request.title, made=made, volumes=entries).encode())
    return volumes


def _put(folder: Path, content: bytes) -> str:
    """Write a picture into the folder of a page, and return its address there."""
    name = file_name(content)
    if not (folder / name).exists():
        write_file(folder / name, content)
    return f"{folder.name}/{name}"


def _remove_others(folder: Path, names: set[str]) -> None:
    """Remove the pictures of a former page; other files stay."""
    for path in folder.glob("*.webp"):
        if len(path.stem) == 20 and path.name not in names:
            path.unlink()
