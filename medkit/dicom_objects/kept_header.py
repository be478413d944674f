"""What is still true of a source's header in a derived image, which is a classic one of a single slice."""

from __future__ import annotations

import copy
from typing import Any

from medkit.dicom_objects.source import Series, SourceImage
from medkit.images.dicom.frames import PER_FRAME, SHARED

CT, MR, PET = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.128"
CLASSIC = {
    "1.2.840.10008.5.1.4.1.1.2.1": CT,
    "1.2.840.10008.5.1.4.1.1.2.2": CT,
    "1.2.840.10008.5.1.4.1.1.4.1": MR,
    "1.2.840.10008.5.1.4.1.1.4.4": MR,
}
"""Class of enhanced CT and MR, also of converted ones -> the classic class of one file a slice."""
_STALE_GROUPS = {0x0028, 0x0088, 0x0400, 0x2050, 0x5200, 0x5400, 0x7FE0}
"""Groups of elements that describe the source's pixels, frames, icons and signatures."""
_KEPT_OF_PIXELS = {
    *("BurnedInAnnotation", "RecognizableVisualFeatures", "CorrectedImage", "QualityControlImage"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
}
"""What is still true among the elements of the group of pixels."""
_STALE = (
    *("ImagePositionPatient", "ImageOrientationPatient", "SliceLocation", "SpacingBetweenSlices", "SliceThickness"),
    *("SourceImageSequence", "ReferencedImageSequence", "DerivationDescription", "DerivationCodeSequence"),
    *("DimensionOrganizationSequence", "DimensionIndexSequence", "DimensionOrganizationType", "NumberOfFrames"),
    *("ConcatenationUID", "InConcatenationNumber", "InConcatenationTotalNumber", "ConcatenationFrameOffsetNumber"),
    *("InstanceCreatorUID", "StationName", "DeviceSerialNumber", "SoftwareVersions", "ManufacturerModelName"),
    *("PerformedProtocolCodeSequence", "SmallestPixelValueInSeries", "LargestPixelValueInSeries"),
    *("VolumetricProperties", "VolumeBasedCalculationTechnique"),
    *("InStackPositionNumber", "StackID", "ImagesInAcquisition", "NumberOfTemporalPositions"),
)
"""Further elements that say nothing true of a derived image."""
_TAKEN_FROM_FIRST = {
    "FrameReferenceTime", "ActualFrameDuration", "DecayFactor", "AcquisitionDate", "AcquisitionTime",
    "AcquisitionNumber", "ContentDate", "ContentTime",
}  # fmt: skip
"""What some classes need, though it differs from slice to slice: that of the first one."""
_MAY_BE_EMPTY = {
    CT: ("KVP", "AcquisitionNumber"),
    MR: ("ScanOptions", "MRAcquisitionType", "EchoTime", "EchoTrainLength", "RepetitionTime"),
    PET: (
        *("RadiopharmaceuticalInformationSequence", "PatientOrientationCodeSequence"),
        "PatientGantryRelationshipCodeSequence",
    ),
}
"""What these classes have, empty if nothing is known."""
_UNPAIRED = {
    *("ABDOMEN", "ABDOMENPELVIS", "AORTA", "BACK", "BLADDER", "BRAIN", "CHEST", "CHESTABDOMEN", "CHESTABDPELVIS"),
    *("COCCYX", "COLON", "CSPINE", "HEAD", "HEADNECK", "HEART", "JAW", "LIVER", "LSPINE", "MAXILLA", "MEDIASTINUM"),
    *("NECK", "NECKCHEST", "NOSE", "PANCREAS", "PELVIS", "PROSTATE", "RECTUM", "SKULL", "SPINE", "SPLEEN", "SSPINE"),
    *("STERNUM", "STOMACH", "THYMUS", "THYROID", "TONGUE", "TRACHEA", "TSPINE", "UTERUS", "WHOLEBODY"),
}
"""Parts of the body of which there is one, so that there is no side to state."""


def class_of(source: Series) -> str:
    """Return the UID of the class that single slices of a series have."""
    kind = source.images[0].sop_class
    return CLASSIC.get(kind, kind)


def kept_header(source: Series, number: int | None, *, has_place: bool) -> Any:
    """Return a pydicom data set with what is still true of a source's header.

    number: of the source's image whose voxels these are; None: voxels of another grid, for which only what all images
    share is true. has_place: whether the derived image has a place in the body.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    image, kind = source.images[number or 0], class_of(source)
    out = Dataset()
    for element in image.header:
        keyword = element.keyword
        stale = element.tag.group in _STALE_GROUPS and keyword not in _KEPT_OF_PIXELS
        overlay = element.tag.group & 0xFF00 in (0x5000, 0x6000)
        if stale or overlay or element.tag.is_private or keyword in _STALE or not keyword:
            continue
        differs = element.tag in source.varying and keyword not in _TAKEN_FROM_FIRST
        if differs and number is None:
            continue
        out.add(copy.deepcopy(element))  # a data set changes its elements in place
    if PER_FRAME in image.header:
        _flatten(out, image, kind)
    for keyword in _MAY_BE_EMPTY.get(kind, ()):
        if keyword not in out:
            setattr(out, keyword, [] if keyword.endswith("Sequence") else None)
    _drop_conditional(out, kind)
    sided = "Laterality" in out or "ImageLaterality" in out
    if not sided and str(out.get("BodyPartExamined") or "") not in _UNPAIRED:
        out.Laterality = ""
    if not has_place and "PatientOrientation" not in out:
        out.PatientOrientation = ""
    out.file_meta = FileMetaDataset()
    out.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return out


def _drop_conditional(out: Any, kind: str) -> None:
    """Remove elements that may only be there under conditions, which sources do not always keep to."""
    stale = {keyword for keyword in ("InversionTime", "TriggerTime") if out.get(keyword) in (None, "")}
    if kind == PET:
        times = {"GATED": {"FrameTime"}, "DYNAMIC": {"TriggerTime"}}
        stale |= times.get(str((out.get("SeriesType") or [""])[0]), {"FrameTime", "TriggerTime"})
        stale |= {"PatientPosition"}  # PET has Patient Orientation Code Sequence instead
    for keyword in stale & set(out.dir()):
        delattr(out, keyword)


def _flatten(out: Any, image: SourceImage, kind: str) -> None:
    """State what an enhanced CT or MR has in groups as classic images do, at the top."""
    header, number = image.header, (image.frame or 1) - 1
    groups = [header[PER_FRAME].value[number], *(header[SHARED].value if SHARED in header else [])]

    def of(group: str, keyword: str) -> Any:
        found = (one[group].value[0].get(keyword) for one in groups if one.get(group))
        return next((value for value in found if value is not None), None)

    if kind == CT:
        out.KVP = of("CTXRayDetailsSequence", "KVP")
        return
    pulse = {"SPIN": ["SE"], "GRADIENT": ["GR"], "BOTH": ["SE", "GR"]}
    out.ScanningSequence = pulse.get(str(header.get("EchoPulseSequence")), ["RM"])
    out.SequenceVariant = "NONE"
    out.EchoTime = of("MREchoSequence", "EffectiveEchoTime")
    out.RepetitionTime = of("MRTimingAndRelatedParametersSequence", "RepetitionTime")
    out.FlipAngle = of("MRTimingAndRelatedParametersSequence", "FlipAngle")
    out.EchoTrainLength = of("MRTimingAndRelatedParametersSequence", "EchoTrainLength")
    if header.get("MRAcquisitionType") not in ("2D", "3D"):
        out.MRAcquisitionType = None
