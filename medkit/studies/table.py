"""The table of `medkit dicom list`: one row for each series, without names unless they are asked for."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medkit.errors import InputError
from medkit.images.dicom.places import open_file
from medkit.pipe.cells import cell_of
from medkit.studies.choosing import reason_against
from medkit.studies.finding import find_series
from medkit.studies.needs import SeriesNeeds
from medkit.studies.summary import SeriesSummary, summaries_of

COLUMNS = ("study", "series", "modality", "type", "size", "spacing", "frames", "files", "use", "path")
"""What a row has."""
IDENTIFYING = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "AcquisitionDate"),
    *("StudyDescription", "SeriesDescription", "InstitutionName"),
)
"""What `--identify` adds, by DICOM's keywords."""
TAKEN = "a case"
"""The use of a series that tasks for its modality take."""
_ANY_TASK = SeriesNeeds("a task")


@dataclass(frozen=True)
class SeriesRow:
    """One series as it is listed."""

    study: int
    """Number of the study in the list, from 1."""
    summary: SeriesSummary
    """What its headers say."""
    use: str
    """`a case`, or why tasks leave it out unless it is named, or why it cannot be read."""
    identity: Mapping[str, str]
    """Keyword -> value of what may identify a person; empty unless it was asked for."""

    def cells(self) -> list[str]:
        """Return the texts of a row, in the order of `COLUMNS` and then of `IDENTIFYING` if that was asked for."""
        one = self.summary
        size = " x ".join(map(str, one.shape)) if one.has_image else ""
        spacing = " x ".join(f"{step:.4g}" for step in one.spacing or ())
        frames = str(one.frames) if one.has_image else ""
        fixed = [str(self.study), one.series.number, one.modality, one.image_type, size, spacing, frames]
        fixed += [str(len(one.series.files)), self.use, str(one.path)]
        return [*fixed, *(self.identity.get(name, "") for name in IDENTIFYING if self.identity)]

    def record(self) -> dict[str, Any]:
        """Return the row as a record that tasks take as an input; with names in it, one that they refuse."""
        one = self.summary
        facts = {
            "StudyInstanceUID": one.series.first.study,
            "SeriesInstanceUID": one.series.uid,
            "SeriesNumber": one.series.number,
            "Modality": one.modality,
            "ImageType": list(one.series.first.image_type),
            "size": list(one.shape) if one.has_image else None,
            "spacing_mm": None if one.spacing is None else [round(step, 6) for step in one.spacing],
            "frames": one.frames,
            "files": len(one.series.files),
            "use": self.use,
        }
        if self.identity:  # a record would carry the names into sidecars
            return {"place": str(one.path), "dicom": {**facts, **self.identity}}
        return {"path": str(one.path), "dicom": facts}


@dataclass(frozen=True)
class Listing:
    """The series in some places."""

    rows: Sequence[SeriesRow]
    """Place by place, study by study."""
    notes: Sequence[str]
    """What is wrong with the places, in sentences."""
    errors: Sequence[InputError]
    """Why places could not be looked through."""


def list_series(places: Iterable[Path], *, identify: bool = False) -> Listing:
    """Return the series in folders, zips and files; no pixels are read. `identify`: with names, numbers and dates."""
    rows, notes, errors = list[SeriesRow](), list[str](), list[InputError]()
    studies: dict[str, int] = {}
    for place in places:
        try:
            found = find_series(place)
        except InputError as error:
            errors.append(error)
            continue
        notes += found.notes
        summaries = summaries_of(found.series)
        numbers = [studies.setdefault(one.series.first.study, len(studies) + 1) for one in summaries]
        for number, one in sorted(zip(numbers, summaries, strict=True), key=lambda pair: pair[0]):
            identity = identity_of(one.series.files[0]) if identify else {}
            rows.append(SeriesRow(number, one, use_of(one), identity))
        if not found.series:
            notes.append(f"{place}: holds no DICOM files")
    return Listing(rows, notes, errors)


def use_of(one: SeriesSummary) -> str:
    """Return what tasks make of a series."""
    reason = reason_against(one, _ANY_TASK)
    if reason:
        return f"left out: {reason}"
    return f"cannot be read: {one.problem}" if one.problem else TAKEN


def identity_of(path: Path) -> dict[str, str]:
    """Return what the header of a file says of the person, by DICOM's keywords; empty texts for what it lacks."""
    import pydicom

    try:
        with warnings.catch_warnings(), open_file(path) as stream:
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=list(IDENTIFYING))
            return {name: str(header.get(name) or "") for name in IDENTIFYING}
    except Exception:  # pydicom raises errors of many types for damaged headers, whose problem the row states
        return dict.fromkeys(IDENTIFYING, "")


def as_text(listing: Listing, *, identify: bool) -> Iterator[str]:
    """Yield the table as lines of cells with tabs between them."""
    names = (*COLUMNS, *(IDENTIFYING if identify else ()))
    yield "\t".join(names)
    yield from ("\t".join(map(cell_of, row.cells())) for row in listing.rows)


def as_json(listing: Listing) -> Iterator[str]:
    """Yield one record for each series."""
    yield from (json.dumps(row.record()) for row in listing.rows)


def as_table(listing: Listing, *, identify: bool) -> Any:
    """Return the table for rich to print on a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (*COLUMNS, *(IDENTIFYING if identify else ())):
        table.add_column(name, overflow="fold", justify="right" if name in ("study", "series", "frames") else "left")
    for row in listing.rows:
        style = "" if row.use == TAKEN else "dim"
        table.add_row(*(Text(cell_of(cell)) for cell in row.cells()), style=style)
    return table
