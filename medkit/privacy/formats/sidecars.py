"""JSON sidecars, BIDS's and medkit's own, without people: known keys with numbers and harmless words stay."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from medkit.errors import InputError
from medkit.privacy.profile import Options
from medkit.privacy.pseudonyms import Pseudonyms, is_pseudonym, moved_date
from medkit.privacy.report import Changes
from medkit.privacy.vocabulary import harmless_text, is_harmless, may_name_someone, words_of

_MARK, _METHOD = "DeidentificationMethod", "medkit deidentify"
"""What treated sidecars say of themselves, under dcm2niix's key: their dates and UIDs are not those of the clinic."""
_PERSON = ("PatientID", "PatientName", "participant_id", "subject_id", "Subject")
_CHARACTERISTICS = ("PatientSex", "PatientAge", "PatientSize", "PatientWeight", "sex", "age")
_NAMES_OF_PLACES = re.compile(
    r"(?i)(patient|physician|operator|institution|address|accession|birth|phone|mail|author|fund|acknowledge|reference|"
    r"comment|^studyid$|performed|requesting|department|dataset.?doi|ethics|license|howto|path|^sources$|uri|intendedfor)"
)
"""Keys whose values name people, places, or files with names of people."""
_KNOWN = """
AcquisitionDuration AcquisitionMatrixPE AcquisitionMode AttenuationCorrection B0FieldIdentifier B0FieldSource
BIDSVersion BandwidthPerPixelPhaseEncode BaseResolution BodyPartExamined CoilString Columns ConversionSoftware
ConversionSoftwareVersion ConvolutionKernel DatasetType DecayCorrectionFactor DelayTime
DerivedVendorReportedEchoSpacing Description DeviceSerialNumber DoseCalibrationFactor DwellTime EchoTime1 EchoTime2
EchoTrainLength EffectiveEchoSpacing EstimatedEffectiveEchoSpacing EstimatedTotalReadoutTime FlipAngle FrameDuration
FrameTimesStart GeneratedBy HED ImageDecayCorrected ImageOrientationPatientDICOM ImageOrientationText ImageType
ImageTypeText ImagingFrequency InPlanePhaseEncodingDirectionDICOM InjectedMass InjectedRadioactivity
InjectedRadioactivityUnits InjectionStart InversionTime Levels LongName MRAcquisitionType MTState
MagneticFieldStrength Manufacturer ManufacturerModelName ManufacturersModelName MatrixCoilMode Modality
MultibandAccelerationFactor Name NonlinearGradientCorrection NumberOfVolumesDiscardedByScanner
ParallelReductionFactorInPlane ParallelReductionTechnique PartialFourierDirection PatientPosition PercentPhaseFOV
PercentSampling PhaseEncodingAxis PhaseEncodingDirection PhaseEncodingSteps PhaseEncodingStepsNoPartialFourier
PhaseResolution PhilipsRescaleIntercept PhilipsRescaleSlope PhilipsScaleSlope PulseSequenceDetails PulseSequenceType
RawImage ReceiveCoilActiveElements ReceiveCoilName ReconFilterSize ReconFilterType ReconMatrixPE ReconMethodName
RefLinesPE RepetitionTimeExcitation RepetitionTimePreparation Resolution SAR ScanOptions ScanStart ScanningSequence
SequenceName SequenceVariant ShimSetting SkullStripped SliceEncodingDirection SliceThickness SliceTiming
SoftwareVersions Space SpatialReference SpecificRadioactivity SpoilingType StationName TaskName Term TimeZero
TotalReadoutTime TracerName TracerRadionuclide TxRefAmp Units UsePhilipsFloatNotDisplayScaling
VendorReportedEchoSpacing Version WaterFatShift bundle device error kind look medkit metrics path peak_rss_mb seconds
seed skipped status task threads version warnings weights_sha256
"""
_WORDS_OF_STANDARDS = frozenset(_KNOWN.split())
"""Keys of BIDS, dcm2niix and medkit, next to DICOM's; their words stay unless they may name someone."""


def clean_sidecar(
    path: Path, name: str, identity: str, pseudonyms: Pseudonyms, options: Options, changes: Changes
) -> bytes:
    """Return a JSON sidecar. `name`: the new name of the file that it describes; `identity`: whose file it is.

    Raises InputError for what is not a JSON object.
    """
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path.name}: expected JSON, got something else") from error
    if not isinstance(data, dict):
        raise InputError(f"{path.name}: expected a JSON object, as sidecars are")
    given = data.get("PatientID") or data.get("PatientName")
    names = words_of(identity) | set(_names_in(data))
    cleaner = _Cleaner(str(given or identity), names, data.get(_MARK) == [_METHOD], pseudonyms, options, changes)
    out = cleaner.own(data, name) if isinstance(data.get("medkit"), dict) else cleaner.object(data)
    out[_MARK] = [_METHOD]
    return (json.dumps(out, indent=1, ensure_ascii=True) + "\n").encode()


def checked_numbers(path: Path) -> bytes:
    """Return a file of b values or gradient directions. Raises InputError if it holds anything but numbers."""
    content = path.read_bytes()
    if not re.fullmatch(rb"[-+0-9.eE\s]*", content):
        raise InputError(f"{path.name}: expected numbers only")
    return content


def _names_in(data: Any, naming: bool = False) -> Iterator[str]:
    """Yield the words of all values that name people, by which other texts could name them."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _names_in(value, naming or key in _PERSON or key.startswith("Patient"))
    elif isinstance(data, list):
        for value in data:
            yield from _names_in(value, naming)
    elif naming:
        yield from words_of(str(data))


class _Cleaner:
    """The treatment of one sidecar."""

    def __init__(
        self,
        identity: str,
        names: Collection[str],
        treated: bool,
        pseudonyms: Pseudonyms,
        options: Options,
        changes: Changes,
    ) -> None:
        self._pseudonyms, self._options, self._changes = pseudonyms, options, changes
        self._days = pseudonyms.shift(identity) if identity else None
        self._names = names
        self._treated = treated

    def own(self, data: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Return what stays of medkit's own: which task and network made the file, and the measures."""
        block = data["medkit"]
        kept = {key: block[key] for key in ("task", "status", "bundle", "metrics", "look", "seed") if key in block}
        out = {"path": name, "kind": data.get("kind", "image"), "GeneratedBy": data.get("GeneratedBy", [])}
        gone = (set(block) - set(kept)) | (set(data) - set(out) - {"medkit"})
        for _ in range(len(gone)):
            self._changes.add("removed", "paths, commands and digests of a sidecar")
        return {"path": name} | self.object(
            {key: value for key, value in out.items() if key != "path"} | {"medkit": kept}
        )

    def object(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return an object without keys and values that may identify somebody."""
        out = {}
        for key, value in data.items():
            if key == _MARK:
                continue
            kept = self._value(key, value) if _is_known(key) else None
            if kept is None and value is not None:
                self._changes.add("removed", key if key in _PERSON else "entries of sidecars")
            elif kept is not None or value is None:
                out[key] = kept
        return out

    def _value(self, key: str, value: Any) -> Any:
        """Return what stays of a value; None if nothing does."""
        if key in _PERSON:
            return self._person(str(value))
        if key in _CHARACTERISTICS:
            return value if self._options.characteristics else None
        if key.endswith(("UID", "UIDs")):
            return self._uid(value)
        if isinstance(value, Mapping):
            return self.object(value)
        if isinstance(value, list):
            kept = [self._value(key, one) for one in value]
            return [one for one in kept if one is not None] or (None if value else [])
        if _NAMES_OF_PLACES.search(key) and key not in _WORDS_OF_STANDARDS:
            return None
        return self._text(key, value) if isinstance(value, str) else value

    def _person(self, text: str) -> str:
        label = text.removeprefix("sub-")
        new = text if is_pseudonym(label) else text[: len(text) - len(label)] + self._pseudonyms.person(label)
        if new != text:
            self._changes.add("replaced", "PatientID")
        return new

    def _uid(self, value: Any) -> Any:
        self._changes.add("replaced", "UIDs", identifies=not self._treated)
        return self._pseudonyms.uid(value) if isinstance(value, str) else None

    def _text(self, key: str, text: str) -> str | None:
        if "Date" in key:
            return self._date(text)
        if key.endswith("Time") or re.fullmatch(r"[-+0-9.eE:]*", text):
            return text if re.fullmatch(r"[-+0-9.eE:]*", text) and not may_name_someone(text, self._names) else None
        if key in _WORDS_OF_STANDARDS and not may_name_someone(
            text, self._names, dates=key not in ("SoftwareVersions", "weights_sha256")
        ):
            return text
        kept = harmless_text(text, self._names)
        if kept != text:
            self._changes.add("cleaned", "texts of sidecars")
        return kept or None

    def _date(self, text: str) -> str | None:
        """Return a date, as BIDS and dcm2niix write it, moved as the person's dates are."""
        match = re.fullmatch(r"(\d{4})-?(\d\d)-?(\d\d)(T?[\d:.]*)Z?", text)
        moved = moved_date("".join(match.groups()[:3]), self._days) if match and self._days is not None else None
        if match is None or moved is None:
            return None
        self._changes.add("moved", "dates", identifies=not self._treated)
        return f"{moved[:4]}-{moved[4:6]}-{moved[6:]}{match[4]}" if "-" in text else moved + match[4]


def _is_known(key: str) -> bool:
    """Whether a key is one of DICOM, BIDS or medkit, a number, or made of words of imaging."""
    from pydicom.datadict import tag_for_keyword

    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", key)
    return (
        key in _WORDS_OF_STANDARDS or key in _PERSON or key in _CHARACTERISTICS or key.isdecimal()
        or tag_for_keyword(key) is not None or (bool(words) and all(map(is_harmless, words)))
    )  # fmt: skip
