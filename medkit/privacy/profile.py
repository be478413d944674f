"""What happens to each attribute of DICOM: PS3.15 annex E, the basic profile and four of its options.

The table E.1-1 is the one that the package dicom-anonymizer keeps in step with the standard. The columns of the
options, which it lacks, are here. Where the standard lets an option keep what may still name a place or a person, this
module removes it, as the basic profile does.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from medkit.errors import UsageError

TABLE = "dicomfields_2026c"
"""The edition of the standard, as the package names it."""
Action = Literal["keep", "remove", "empty", "dummy", "uid", "date", "text", "check", "person", "items", "age"]
"""What is done with an attribute.

`text`: words that say nothing about a person stay; `check`: stays unless it may name someone; `items`: what is in the
sequence is treated, attribute by attribute; `person`: the pseudonym; `age`: as it is up to 89 years, then 90.
"""
CODES = {
    "113100": "Basic Application Confidentiality Profile",
    "113101": "Clean Pixel Data Option",
    "113104": "Clean Structured Content Option",
    "113105": "Clean Descriptors Option",
    "113107": "Retain Longitudinal Temporal Information Modified Dates Option",
    "113108": "Retain Patient Characteristics Option",
    "113109": "Retain Device Identity Option",
    "113111": "Retain Safe Private Option",
}
"""The profile and its options as PS3.16 codes them (CID 7050)."""

_PERSON = ("PatientName", "PatientID", "ClinicalTrialSubjectID")
_CHARACTERISTICS = ("PatientSex", "PatientSize", "PatientWeight", "PatientSexNeutered")
"""What stays of a person by the option; the table would keep smoking, pregnancy and ethnic group as well."""
_DEVICE_KEYWORDS = """
BeamHoldTransitionDateTime CassetteID DetectorID DeviceDescription DeviceLabel DeviceSerialNumber DeviceUID GantryID
GeneratorID LensMake LensModel LensSerialNumber LensSpecification ManufacturerDeviceClassUID
ManufacturerDeviceIdentifier PerformedStationName PlateID SourceManufacturer SourceSerialNumber StationName
TransducerIdentificationSequence TreatmentMachineName UDISequence UniqueDeviceIdentifier XRayDetectorID
XRayDetectorLabel XRaySourceID
"""
DEVICE = frozenset(_DEVICE_KEYWORDS.split())
"""Stay by the option to retain the device; the table would keep names of places where it stands as well."""
_DESCRIPTION_KEYWORDS = """
AcquisitionDeviceProcessingDescription AcquisitionFieldOfViewLabel AcquisitionProtocolDescription
AnnotationGroupDescription AnnotationGroupLabel BeamDescription BolusDescription ClinicalTrialSeriesDescription
ContrastBolusAgent DecompositionDescription DerivationDescription DoseReferenceDescription EntityDescription
EntityLabel EntityLongLabel EntityName FilterLookupTableDescription FixationDeviceDescription FractionGroupDescription
FrameComments ImageComments LabelText MultienergyAcquisitionDescription PerformedProcedureStepDescription
PositionAcquisitionTemplateName PrescriptionDescription ProtocolName PyramidDescription PyramidLabel
RadiationDoseIdentificationLabel RadiationGenerationModeDescription RadiationGenerationModeLabel
RequestedContrastAgent RequestedProcedureDescription RequestedSeriesDescription
RespiratoryMotionCompensationTechniqueDescription ROIDescription ROIGenerationDescription ROIName
ROIObservationDescription ROIObservationLabel RTPlanDescription RTPlanLabel RTPlanName RTPrescriptionLabel
RTToleranceSetLabel RTTreatmentApproachLabel ScheduledProcedureStepDescription SeriesDescription
SetupTechniqueDescription ShieldingDeviceDescription SpecimenDetailedDescription SpecimenShortDescription
StructureSetDescription StructureSetLabel StructureSetName StudyDescription TreatmentPositionGroupLabel TreatmentSite
TreatmentSites UserContentLabel UserContentLongLabel WaveformFilterDescription
"""
_DESCRIPTIONS = frozenset(_DESCRIPTION_KEYWORDS.split())
"""Are cleaned by the option to clean descriptors; the histories and comments that it also names are removed."""
_REFERENCES = ("ReferencedStudySequence", "ReferencedPerformedProcedureStepSequence", "WaveformAnnotationSequence")
"""Sequences that the table empties or replaces, and whose items are made harmless one by one instead."""
_REMOVED = frozenset(
    {
        *("InstitutionCodeSequence", "OperatorIdentificationSequence", "EncryptedAttributesSequence"),
        *("PatientBirthDateInAlternativeCalendar", "PatientDeathDateInAlternativeCalendar", "BreedRegistrationNumber"),
        *("CommentsOnTheScheduledProcedureStep", "ReferenceToRecordedSound"),
    }
)
"""Are removed although the table does not list them, or lists more than one action."""
_SHORT_TEXTS = ("LO", "SH", "UC", "CS", "UT", "ST")
_BIRTH = ("PatientBirthDate", "PatientBirthTime", "GPSTimeStamp")
"""Dates and times that are not of examinations."""
_OF_CLASSES = ("ClassUID", "TransferSyntaxUID", "CodingSchemeUID", "ContextUID", "MappingResourceUID", "SyntaxUID")
"""Ends of the keywords of UIDs that name kinds, not instances."""
_BYTES = (
    "PixelData",
    "ICCProfile",
    "WaveformData",
    "WaveformPaddingValue",
    "ChannelMinimumValue",
    "ChannelMaximumValue",
)
"""Bytes that hold samples and profiles of colour; other bytes may hold anything."""


@dataclass(frozen=True)
class Options:
    """What the user wants kept, or done with pixels."""

    characteristics: bool = False
    """Whether age, sex, size and weight stay."""
    safe_private: bool = False
    """Whether private attributes stay that are known to hold numbers of the acquisition only."""
    blank: bool = False
    """Whether text in pixels is blanked; else images with text are refused."""


@functools.cache
def table() -> Mapping[tuple[int, ...], str]:
    """Return tag -> action of the basic profile, such as `X/Z`. Raises UsageError without the package that has it."""
    try:
        from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector
    except ImportError as error:
        raise UsageError("DICOM files need the package dicom-anonymizer: pip install 'medkit[dicom]'") from error
    columns: dict[str, Any] = dicom_anonymization_database_selector(TABLE)
    actions = ("D", "Z", "X", "U", "Z_D", "X_Z", "X_D", "X_Z_D", "X_Z_U_STAR")
    return {tag: name.replace("_STAR", "*").replace("_", "/") for name in actions for tag in columns[f"{name}_TAGS"]}


@functools.cache
def action_of(tag: int, vr: str, options: Options) -> Action:
    """Return what is done with a public attribute of a type (value representation)."""
    from pydicom.datadict import keyword_for_tag

    group, keyword = tag >> 16, keyword_for_tag(tag)
    if not keyword or group & 0xFF00 in (0x5000, 0x6000) or tag & 0xFFFF == 0 or keyword in _REMOVED:
        return "remove"
    if keyword in _PERSON:
        return "person"
    return _by_option(keyword, vr, options) or without_text(tag, vr) or _by_type(keyword, vr)


def without_text(tag: int, vr: str) -> Action | None:
    """Return what the basic profile does; None if it leaves the attribute as it is.

    Where it names several actions, this is one that every kind of object allows. UIDs are not asked for here: all those
    of instances are replaced, also those that the table does not list.
    """
    basic = table().get((tag >> 16, tag & 0xFFFF))
    if basic is None or vr == "UI":
        return None
    if basic == "X":
        return "remove"
    if basic in ("Z", "X/Z", "X/Z/D"):
        return "empty"
    return "items" if vr == "SQ" else "dummy"


def _by_option(keyword: str, vr: str, options: Options) -> Action | None:
    """What the options say, which come before the table."""
    if options.characteristics and keyword in _CHARACTERISTICS:
        return "check" if vr in _SHORT_TEXTS else "keep"
    if options.characteristics and keyword == "PatientAge":
        return "age"
    if keyword in DEVICE:
        return "items" if vr == "SQ" else "check" if vr in _SHORT_TEXTS else "keep"
    if keyword in _DESCRIPTIONS:
        return "text"
    if keyword in _REFERENCES:
        return "items"
    if vr in ("DA", "DT", "TM") and keyword not in _BIRTH:
        return "keep" if vr == "TM" else "date"
    return None


def _by_type(keyword: str, vr: str) -> Action:
    """What is done with attributes that the table does not list, and with UIDs."""
    if vr == "UI":
        return "keep" if keyword.endswith(_OF_CLASSES) else "uid"
    if vr == "SQ":
        return "items"
    if vr in ("PN", "AE"):
        return "dummy"
    if vr == "UR":
        return "remove"
    if vr in ("LT", "ST", "UT") and keyword != "ImageDisplayFormat":  # which holds words of the standard
        return "text"
    if vr in _SHORT_TEXTS:
        return "check"
    return "remove" if vr in ("OB", "UN") and keyword not in _BYTES else "keep"
