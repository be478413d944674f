"""De-identifying and checking many files: each by itself, whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medkit.errors import InputError, MedkitError, OutputError, reason_of
from medkit.images import nifti
from medkit.pipe.atomic import made_folder, whole
from medkit.privacy.inputs import DICOM, Source
from medkit.privacy.names import harmless_path, identity_in
from medkit.privacy.profile import Options
from medkit.privacy.pseudonyms import Pseudonyms
from medkit.privacy.report import Changes
from medkit.privacy.vocabulary import words_of

_HEADS = {"head", "brain", "skull", "face", "mprage", "t1w", "t2w", "flair", "neuro", "headneck", "mp2rage", "orbit"}
"""Words by which an image says that it shows a head."""

FAILURES = (MedkitError, OSError)
"""What fails one file; the others go on."""


@dataclass(frozen=True)
class Treated:
    """A file that was treated."""

    source: Source
    changes: Changes
    case: Path
    """What a later command takes: the folder of a series, or the file itself; relative to the output folder."""
    path: Path
    """The new file, relative to the output folder."""
    person: tuple[str, str, int] | None = None
    """What told the person from others, the pseudonym, and by how many days dates moved; for the user's own table."""
    notes: tuple[str, ...] = ()
    """What a person should look at, in plain sentences."""


@dataclass
class Deidentification:
    """A run over many files."""

    pseudonyms: Pseudonyms
    options: Options
    output: Path | None
    """The folder of the results; None: only look."""
    overwrite: bool = False
    torn: set[Path] = field(default_factory=set)
    """Folders of series of which a file was refused, relative to the output folder."""
    torn_sources: set[Path] = field(default_factory=set)
    """Folders with a refused file of which nobody knows the series."""
    _written: set[Path] = field(default_factory=set)

    def treat(self, source: Source) -> Treated:
        """Treat one file, and write it unless this run only looks.

        Raises MedkitError or OSError; nothing of the file is written then.
        """
        if source.problem:
            raise InputError(source.problem)
        try:
            return self._dicom(source) if source.kind == DICOM else self._other(source)
        except FAILURES:
            raise
        except Exception as error:  # of a library, for a file that is damaged in a new way; it may quote the file
            raise InputError(f"{source.path}: cannot be treated ({type(error).__name__})") from error

    def _other(self, source: Source) -> Treated:
        """Treat a file that is not DICOM."""
        changes = Changes()
        path = harmless_path(source.relative, self.pseudonyms)
        if path.with_suffix("") != source.relative.with_suffix(""):
            changes.add("replaced", "names of files")
        content = self._content(source, path, changes)
        if self.output is not None:
            with self._result(path) as file:
                if path.name.lower().endswith((".gz", ".mgz")):
                    nifti.write_gzip(file, content)
                else:
                    file.writelines(content)
        identity = identity_in(source.relative)
        person = (identity, self.pseudonyms.person(identity), self.pseudonyms.shift(identity)) if identity else None
        return Treated(source, changes, path, path, person, _head_note(source, ""))

    def _content(self, source: Source, path: Path, changes: Changes) -> list[bytes]:
        """Return the new content of a file that is not DICOM."""
        from medkit.privacy.formats import metaimage, nifti, nrrd, pictures, sidecars

        if source.kind == "picture":
            return pictures.clean_picture(source.path, changes, blank=self.options.blank)
        if source.kind == "gradients":
            return [sidecars.checked_numbers(source.path)]
        if source.kind == "sidecar":
            described = path.with_suffix(".nii.gz").name
            identity = identity_in(source.relative)
            return [sidecars.clean_sidecar(source.path, described, identity, self.pseudonyms, self.options, changes)]
        clean = {
            "nifti": nifti.clean_nifti, "mgh": nifti.clean_mgh, "nrrd": nrrd.clean_nrrd,
            "metaimage": metaimage.clean_metaimage,
        }[source.kind]  # fmt: skip
        return clean(source.path, changes)

    def _dicom(self, source: Source) -> Treated:
        from medkit.privacy import dicom, dicom_reading

        with dicom_reading.lenient():
            try:
                dataset = dicom_reading.read_object(source.path)
            except FAILURES:
                self.torn_sources.add(source.path.parent)
                raise
            *folders, name = _places(dataset, self.pseudonyms)
            case = Path(self.pseudonyms.person(dicom.identity_of(dataset)), *folders)
            try:
                return self._object(source, dataset, case, name)
            except FAILURES:
                self.torn.add(case)
                raise

    def _object(self, source: Source, dataset: Any, case: Path, name: str) -> Treated:
        """Treat one DICOM object, which becomes the file `name` in the folder `case`."""
        from medkit.privacy import burnt_in, dicom, dicom_reading

        found = burnt_in.look_for_text(source.path, dataset)
        notes = _head_note(source, _words_of(dataset)) if dataset.get("Modality") in ("MR", "CT", "PT") else ()
        clean = dicom.clean_object(dataset, self.pseudonyms, self.options)
        if self.output is None:
            if found.refusal:
                clean.changes.add("blanked", "text in pixels")
        else:
            notes += self._text_in_pixels(source, clean, found)
            dicom_reading.check_private_geometry(source.path, dataset)
            with self._result(case / name) as file:
                dataset.save_as(file, enforce_file_format=True)
        person = (clean.identity, clean.person, clean.days)
        return Treated(source, clean.changes, case, case / name, person, notes)

    def _text_in_pixels(self, source: Source, clean: Any, found: Any) -> tuple[str, ...]:
        """Blank text in pixels, or raise InputError; return what a person should look at."""
        from medkit.privacy import burnt_in, dicom

        if not self.options.blank:
            if found.refusal:
                raise InputError(f"{source.path}: {found.refusal} (--blank blanks what it finds)")
            return ()
        count = burnt_in.blank(source.path, clean.dataset, found)
        for _ in range(count):
            clean.changes.add("blanked", "text in pixels")
        if count:
            dicom.state_clean_pixels(clean.dataset)
            return ("text in pixels was blanked: look whether any is left",)
        return (f"{found.suspicion}, but none was found: look yourself",) if found.refusal else ()

    @contextlib.contextmanager
    def _result(self, path: Path) -> Iterator[Any]:
        """Open a result, which appears under its name only when it is complete. Raises OutputError if it exists."""
        assert self.output is not None
        place = self.output / path
        if path in self._written:
            raise OutputError(f"{place}: another input of this run has become a file of this name")
        if place.exists() and not self.overwrite:
            raise OutputError(f"{place}: exists already (--overwrite replaces it)")
        try:
            with made_folder(place.parent), whole(place) as file:
                yield file
        except OSError as error:
            raise OutputError(f"{place}: cannot be written: {reason_of(error)}") from error
        self._written.add(path)


def _places(dataset: Any, pseudonyms: Pseudonyms) -> tuple[str, str, str]:
    """Return the names of the folders of study and series and of the file, from numbers and keyed hashes of UIDs."""
    study, series = (pseudonyms.short(str(dataset.get(f"{level}InstanceUID", ""))) for level in ("Study", "Series"))
    number, instance = (_number(dataset.get(name)) for name in ("SeriesNumber", "InstanceNumber"))
    modality = str(dataset.get("Modality") or "OT")
    modality = modality if modality.isascii() and modality.isalnum() and len(modality) <= 10 else "OT"
    uid = pseudonyms.short(str(dataset.SOPInstanceUID))
    return f"study-{study}", f"{number:03d}-{modality}-{series}", f"{instance:05d}-{uid}.dcm"


def _words_of(dataset: Any) -> str:
    """Return what an object says that it shows."""
    return " ".join(str(dataset.get(name) or "") for name in ("BodyPartExamined", "SeriesDescription", "ProtocolName"))


def _number(value: Any) -> int:
    try:
        return abs(int(value or 0)) % 100000
    except (TypeError, ValueError):
        return 0


def _head_note(source: Source, words: str) -> tuple[str, ...]:
    """Return a note for images that say that they show a head, whose faces are as good as a name."""
    if source.kind in ("sidecar", "gradients", "picture"):
        return ()
    named = words_of(f"{source.relative.stem} {words}".replace("_", " "))
    return () if named.isdisjoint(_HEADS) else ("a head: its face may be recognised; deface it",)


def explain(path: Path, error: BaseException) -> str:
    """Return what is wrong with a file, on one line that begins with its path."""
    text = reason_of(error) if isinstance(error, OSError) else str(error) or type(error).__name__
    text = " ".join(text.split()).removeprefix(f"{path}: ").removeprefix(f"{path.name}: ")
    return f"{path}: {text}"
