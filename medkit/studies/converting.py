"""DICOM series to NIfTI files with sidecars, and FSL's files of diffusion gradients."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import InputError, MedkitError, OutputError, UsageError, reason_of
from medkit.images import nifti
from medkit.images.dicom.places import open_file
from medkit.images.dicom.series import Series, digest_of_files, labels_of
from medkit.images.nifti_forms import header_for
from medkit.options import PROGRAM
from medkit.pipe.atomic import made_folder, sync, write_atomically
from medkit.pipe.names import suffix_of
from medkit.pipe.records import Record, sha256_of
from medkit.studies.choosing import reason_against
from medkit.studies.diffusion import Gradient, doubt_of, fsl_files, gradients_of
from medkit.studies.finding import find_series
from medkit.studies.naming import Scan, bids_name, pattern_name, suffix_for
from medkit.studies.needs import SeriesNeeds
from medkit.studies.philips import measured_factor, scale_slope
from medkit.studies.sidecar import sidecar_of, slice_timing
from medkit.studies.splitting import VolumeSet, volume_sets
from medkit.studies.summary import SeriesSummary, summaries_of
from medkit.studies.table import identity_of
from medkit.studies.uptake import uptake_of
from medkit.terminal.progress import bar_of, working_on

NIFTI = ".nii.gz"
_NEEDS = SeriesNeeds("convert", planes=True, frame_picked=True)
_SECONDS = 8
"""NIFTI_UNITS_SEC."""
_UPTAKE_TAGS: tuple[Any, ...] = (
    *("Units", "CorrectedImage", "DecayCorrection", "PatientWeight", "SeriesDate", "SeriesTime", "AcquisitionDate"),
    *(
        "AcquisitionTime",
        "RadiopharmaceuticalInformationSequence",
        (0x7053, 0x1000),
        (0x7053, 0x1009),
        (0x0009, 0x100D),
    ),
)
"""What the factor of PET is computed from: keywords, and tags of Philips and GE."""


@dataclass(frozen=True)
class ConvertChoices:
    """The values of the options of `medkit dicom convert`."""

    output: Path
    """Folder, absolute."""
    pattern: str | None = None
    """Names of files; None: BIDS."""
    patient: str | None = None
    """Label of the only person; None: persons are numbered."""
    everything: bool = False
    """Whether localizers and derived series are converted as well."""
    uptake: bool = True
    """Whether PET becomes SUV where the header allows it."""
    identify: bool = False
    """Whether names may hold what identifies the person."""
    overwrite: bool = False
    """Whether existing files are replaced."""


@dataclass
class Conversion:
    """The conversion of all series in some places: iterate over `files()`."""

    choices: ConvertChoices
    notes: list[str] = field(default_factory=list)
    """What was left out and what is doubtful, in sentences; filled while files are made."""
    errors: list[MedkitError] = field(default_factory=list)
    """What could not be converted."""
    _made: dict[Path, str] = field(default_factory=dict)

    def files(self, places: Sequence[Path]) -> Iterator[Record]:
        """Convert and yield the record of each NIfTI file. Raises UsageError."""
        known = list(self._found(places))
        labels = _labels([one.series for one in known if one.has_image])
        patients = Patients.among([one.series for one in known], self.choices.patient)
        with bar_of("dicom convert", len(known)) as bar:
            for one in known:
                errors = len(self.errors)
                yield from self._wanted(one, labels.get(one.series.uid, "x"), patients)
                bar.count(failed=len(self.errors) > errors)
        if known and not (self._made or self.errors):
            self.errors.append(
                InputError("none of the series is converted; --all takes localizers and derived ones too")
            )

    def _wanted(self, one: SeriesSummary, label: str, patients: Patients) -> Iterator[Record]:
        """Convert a series, unless it is left out. Raises UsageError."""
        reason = reason_against(one, _NEEDS)
        if reason and not (self.choices.everything and one.has_image and not one.series.first.coloured):
            self.notes.append(f"left out {one.title()}: {reason}")
            return
        try:
            with working_on(one.title()):
                yield from self._series(one, label, patients)
        except UsageError:
            raise
        except (MedkitError, OSError) as error:
            if isinstance(error, OSError):
                error = OutputError(f"{one.title()}: {reason_of(error)} (the results go to {self.choices.output})")
            self.errors.append(error)

    def _found(self, places: Sequence[Path]) -> Iterator[SeriesSummary]:
        for place in places:
            try:
                found = find_series(place)
            except InputError as error:
                self.errors.append(error)
                continue
            self.notes += found.notes
            if not found.series:
                self.errors.append(InputError(f"{place}: holds no DICOM files"))
            yield from summaries_of(found.series)

    def _series(self, one: SeriesSummary, label: str, patients: Patients) -> Iterator[Record]:
        if one.problem:
            raise InputError(one.problem)
        sets = volume_sets(one.path, one.series)
        for volumes in sets:
            converted = Converted.of(one, volumes, self.choices.uptake)
            self.notes += [f"{one.path}: {note}" for note in converted.notes]
            target = self._target(one, volumes, converted, label, patients)
            yield write(converted, one, target, overwrite=self.choices.overwrite)

    def _target(
        self, one: SeriesSummary, volumes: VolumeSet, converted: Converted, label: str, patients: Patients
    ) -> Path:
        """Return the file's final path. Raises OutputError for a name that another series of this run has."""
        patient, study = patients.labels(one.series)
        suffix = suffix_for(
            one.modality, converted.facts, one.series.first.words,
            volumes=len(volumes.stacks), weighted=bool(converted.gradients),
        )  # fmt: skip
        scan = Scan(
            patient, study, label, one.series.number, one.modality, suffix, volumes.echo, volumes.part, volumes.view
        )
        if self.choices.identify:
            scan = replace(scan, identity=identity_of(one.series.files[0]))
        pattern = self.choices.pattern
        name = bids_name(scan) if pattern is None else pattern_name(pattern, scan)
        if suffix_of(name):
            name = name.with_name(name.name[: -len(suffix_of(name))])
        target = self.choices.output / name.with_name(name.name + NIFTI)
        if target in self._made:
            raise OutputError(
                f"{one.path}: {name} is the name of {self._made[target]} already; a pattern needs {{series}}, and "
                "{echo}, {part} and {view} for series of several"
            )
        self._made[target] = str(one.path)
        return target


def _labels(found: Sequence[Series]) -> dict[str, str]:
    """Return UID -> label of the series, study by study."""
    studies = dict.fromkeys(one.first.study for one in found)
    return {
        uid: label
        for study in studies
        for uid, label in labels_of([one for one in found if one.first.study == study]).items()
    }


@dataclass(frozen=True)
class Patients:
    """Labels of persons and studies that say nothing about them: numbers."""

    persons: Mapping[str, str]
    """Study UID -> label of the person."""
    studies: Mapping[str, str]
    """Study UID -> label of the study; empty if the person has one only."""

    @staticmethod
    def among(found: Sequence[Series], label: str | None) -> Patients:
        """Number persons as they come and their studies by date. Raises UsageError for a label of several persons."""
        names, dates = dict[str, str](), dict[str, str]()
        for one in found:
            facts, uid = identity_of(one.files[0]), one.first.study
            names[uid] = names.get(uid) or facts["PatientID"] or facts["PatientName"]
            dates[uid] = dates.get(uid) or facts["StudyDate"]
        numbers = {name: f"{n:02}" for n, name in enumerate(dict.fromkeys(names.values()), start=1)}
        if label is not None:
            if len(numbers) > 1:
                raise UsageError(f"--patient {label}: the series are those of {len(numbers)} persons")
            numbers = dict.fromkeys(numbers, label)
        studies: dict[str, str] = {}
        for name in numbers:
            own = sorted((uid for uid in names if names[uid] == name), key=lambda uid: (dates[uid], uid))
            studies |= {uid: f"{n:02}" if len(own) > 1 else "" for n, uid in enumerate(own, start=1)}
        return Patients({uid: numbers[name] for uid, name in names.items()}, studies)

    def labels(self, one: Series) -> tuple[str, str]:
        """Return the labels of the person and of the study of a series."""
        return self.persons[one.first.study], self.studies[one.first.study]


@dataclass(frozen=True, eq=False)
class Converted:
    """What goes into the files of one set of volumes."""

    volumes: VolumeSet
    facts: Mapping[str, Any]
    """The sidecar's keys."""
    gradients: Sequence[Gradient]
    """Of each volume; empty if there is no diffusion weighting."""
    factors: Sequence[float]
    """What the values of each volume are multiplied with."""
    notes: Sequence[str]
    """What is doubtful, in sentences."""

    @staticmethod
    def of(one: SeriesSummary, volumes: VolumeSet, uptake: bool) -> Converted:
        """Read what the headers say of the volumes."""
        headers = volumes.headers()
        first = [stack.slices[0] for stack in volumes.stacks]
        frames = [part.index if "PerFrameFunctionalGroupsSequence" in header else 0
                  for part, header in zip(first, headers, strict=True)]  # fmt: skip
        facts = sidecar_of(headers[0], frames[0])
        facts |= {"EchoNumber": volumes.echo} if volumes.echo else {}
        if times := slice_timing(headers[0], volumes.grid.shape[2]):
            facts["SliceTiming"] = times
        notes = [*volumes.warnings]
        factors = [1.0] * len(headers)
        if one.modality == "PT":
            factors, more, note = _uptake(one.series, len(headers), uptake)
            facts |= more
            notes += [note] if note else []
        elif (slope := scale_slope(headers[0], frames[0])) is not None:
            slopes = [scale_slope(header, frame) or slope for header, frame in zip(headers, frames, strict=True)]
            factors = [measured_factor(part.scaling, own) for part, own in zip(first, slopes, strict=True)]
            facts |= {"PhilipsScaleSlope": slope, "UsePhilipsFloatNotDisplayScaling": 1}
        gradients = gradients_of(headers, frames, [stack.directions for stack in volumes.stacks])
        notes += [doubt] if (doubt := doubt_of(headers[0], gradients)) else []
        return Converted(volumes, facts, () if volumes.part else gradients, factors, notes)


def _uptake(series: Series, count: int, wanted: bool) -> tuple[list[float], dict[str, Any], str]:
    """Return the factor of each PET volume, keys for the sidecar, and a note."""
    import pydicom

    headers = []
    for path in series.files:
        with open_file(path) as stream:
            tags = list(_UPTAKE_TAGS)
            headers.append(pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=tags))
    found = uptake_of(headers) if wanted else None
    if found is None:
        return [1.0] * count, {}, ""
    if found.factor is None:
        return [1.0] * count, {}, f"not in SUV: {found.reason}"
    return [found.factor] * count, {"Units": "SUVbw", "SUVFactor": found.factor, "SUVMethod": found.reason}, ""


def write(converted: Converted, one: SeriesSummary, target: Path, *, overwrite: bool) -> Record:
    """Write the image, the files of its gradients and, last, its sidecar: all of them or none.

    Raises OutputError if one of them exists and is not to be replaced, and InputError.
    """
    base = target.name.removesuffix(NIFTI)
    files = {"image": target}
    texts: dict[Path, str] = {}
    if converted.gradients:
        for role, text in zip(
            ("bval", "bvec"), fsl_files(converted.gradients, converted.volumes.grid.affine), strict=True
        ):
            files[role] = target.with_name(f"{base}.{role}")
            texts[files[role]] = text
    sidecar = target.with_name(f"{base}.json")
    for path in (*files.values(), sidecar):
        if path.exists() and not overwrite:
            raise OutputError(f"{path}: exists already; choose another -o, or --overwrite")
    with made_folder(target.parent):
        return _write_files(converted, one, files, texts, sidecar)


def _write_files(
    converted: Converted, one: SeriesSummary, files: Mapping[str, Path], texts: Mapping[Path, str], sidecar: Path
) -> Record:
    target = files["image"]
    sidecar.unlink(missing_ok=True)
    written: list[Path] = []
    try:
        _write_image(converted, target)
        written.append(target)
        for path, text in texts.items():
            write_atomically(path, text)
            written.append(path)
        record = _record(converted, one, files)
        write_atomically(sidecar, json.dumps(record.to_json(sidecar.parent), indent=1) + "\n")
    except BaseException:  # a signal as well
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return record


def _write_image(converted: Converted, target: Path) -> None:
    voxels = converted.volumes.voxels(converted.factors)
    header = header_for(converted.volumes.grid)
    repetition = converted.facts.get("RepetitionTime")
    if voxels.ndim == 4 and repetition:
        header["pixdim"][4] = repetition
        header["xyzt_units"] = int(header["xyzt_units"]) | _SECONDS
    if voxels.dtype == np.float64:
        voxels = voxels.astype(np.float32)
    part = target.with_name(f".{target.name}.{os.getpid()}.part{NIFTI}")
    try:
        nifti.write(part, voxels, header)
        sync(part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _record(converted: Converted, one: SeriesSummary, files: Mapping[str, Path]) -> Record:
    source = {
        "path": str(one.path),
        "sha256": digest_of_files(one.series.files),
        "SeriesInstanceUID": one.series.uid,
        "SeriesNumber": one.series.number,
    }
    block = {
        "task": "dicom convert",
        "status": "ok",
        "skipped": False,
        "error": None,
        "outputs": {role: {"path": str(path), "sha256": sha256_of(path)} for role, path in files.items()},
        "inputs": {"image": source},
        "warnings": list(converted.notes),
    }
    return Record(
        path=files["image"],
        sources=(one.path,),
        description=f"DICOM series {one.series.number or '?'} as NIfTI",
        generated_by=(PROGRAM,),
        medkit=block,
        extra=dict(converted.facts),
    )
