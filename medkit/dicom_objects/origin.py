"""Where a case comes from: the DICOM series of the person whom it shows, of its space, and of its further images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.dicom_objects.source import Lead, Series, is_same_person, leads_of, series_on_grid
from medkit.errors import InputError, listed
from medkit.pipe.records import Record, record_of

if TYPE_CHECKING:
    from medkit.run.task import Case
    from medkit.space import Grid


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a case comes from: its person's series, and those in the space of its image."""

    path: Path
    """The case's own image."""
    record: Record
    """Of that image."""
    own: Lead
    """How the image is read."""
    given: Path | None
    """The series that the user named."""
    parts: Sequence[Sequence[Lead]] = ()
    """Where the series of each further image may be from which the result is made, the nearest first."""

    @classmethod
    def of(cls, case: Case, given: Path | None, record: Record | None = None, parts: Sequence[Path] = ()) -> Origin:
        """Return the origin of a case.

        record: of its own image; None: what its sidecar says. parts: further images from which the result is made.
        """
        record = record or (case.record if case.record.path == case.path else record_of(case.path))
        own = Lead(case.path, None, case.runtime.series, case.runtime.frame)
        found = (tuple(leads_of(record_of(path), replace(own, path=path), space=False)) for path in parts)
        return cls(case.path, record, own, given, [leads for leads in found if leads])

    def leads(self, *, space: bool) -> Sequence[Lead]:
        """Return where the series may be, the nearest first."""
        if self.given is not None:
            return [Lead(self.given, None, self.own.series, self.own.frame)]
        return list(leads_of(self.record, self.own, space=space))

    @cached_property
    def header(self) -> Any:
        """A header that states the person whom the case shows. Raises InputError if none is known."""
        leads = self.leads(space=False)
        if not leads:
            raise InputError(
                f"{self.path}: a DICOM object belongs to a DICOM series, and none is among the sources of this image: "
                "name its folder with --dicom-source FOLDER"
            )
        return leads[0].header()

    @cached_property
    def person(self) -> Series:
        """The nearest series of the person that the case shows. Raises InputError if none is known."""
        lead = _nearest_series(self.leads(space=False))
        if lead is None:
            raise InputError(
                f"{self.path}: comes from DICOM objects without images: name the series: --dicom-source FOLDER"
            )
        return lead.read()

    @cached_property
    def further(self) -> Sequence[Series]:
        """The series of the case's further images; none of them if the user named a series for all."""
        if self.given is not None:
            return []
        return [lead.read() for lead in map(_nearest_series, self.parts) if lead is not None]

    def check_person(self) -> None:
        """Raise InputError if further images are of another person: the result would be filed with one of them."""
        for lead, *_ in self.parts:
            if not is_same_person(lead.header(), self.header):
                raise InputError(
                    f"{lead.path}: states another Patient ID than {self.path}: leave out --dicom, or this image"
                )

    def on_grid(self, grid: Grid) -> Series:
        """Return the series whose images have the voxels of a grid. Raises InputError if there is none."""
        header = self.header
        found, others = series_on_grid(iter(self.leads(space=True)), grid)
        if found is None:
            known = [one.path for one in others] or [lead.path for lead in self.leads(space=False)][:1]
            raise InputError(
                f"{self.path}: lies on another grid than {listed(list(map(str, known)))}"
                ": --dicom image, where the grid was changed, makes a series on the new one, which is then found here"
            )
        if not is_same_person(found.header, header):
            raise self._two_persons(found)
        return found

    @cached_property
    def in_space(self) -> Series:
        """The nearest series in the space of the image, on whatever grid. Raises InputError."""
        header = self.header
        lead = _nearest_series(self.leads(space=True))
        if lead is None:
            raise InputError(f"{self.path}: lies in the space of no DICOM series; --dicom-source FOLDER names one")
        found = lead.read()
        if not is_same_person(found.header, header):
            raise self._two_persons(found)
        return found

    def _two_persons(self, other: Series) -> InputError:
        return InputError(
            f"{self.path}: shows the person of {self.leads(space=False)[0].path}, but lies in the space of {other.path}"
            ", which states another Patient ID; --dicom image, at the registration, makes a series of this person there"
        )


def _nearest_series(leads: Sequence[Lead]) -> Lead | None:
    """Return the first place that has a series of images; None without one."""
    return next((lead for lead in leads if lead.is_series), None)
