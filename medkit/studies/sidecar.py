"""The JSON file next to a NIfTI file, with dcm2niix's and BIDS's keys; nothing in it names a person, place or day."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

_TEXTS = {
    "Modality": "Modality",
    "ManufacturersModelName": "ManufacturerModelName",
    "BodyPartExamined": "BodyPartExamined",
    "PatientPosition": "PatientPosition",
    "SoftwareVersions": "SoftwareVersions",
    "MRAcquisitionType": "MRAcquisitionType",
    "ScanningSequence": "ScanningSequence",
    "SequenceVariant": "SequenceVariant",
    "ScanOptions": "ScanOptions",
    "SequenceName": "SequenceName",
    "PulseSequenceName": "PulseSequenceName",
    "ConvolutionKernel": "ConvolutionKernel",
    "Units": "Units",
    "DecayCorrection": "DecayCorrection",
    "AttenuationCorrectionMethod": "AttenuationCorrectionMethod",
    "ReconstructionMethod": "ReconstructionMethod",
    "Radiopharmaceutical": "Radiopharmaceutical",
}
"""Key -> DICOM's keyword, for texts."""
_NUMBERS: Mapping[str, tuple[str, float]] = {
    "MagneticFieldStrength": ("MagneticFieldStrength", 1.0),
    "ImagingFrequency": ("ImagingFrequency", 1.0),
    "SeriesNumber": ("SeriesNumber", 1.0),
    "SliceThickness": ("SliceThickness", 1.0),
    "SpacingBetweenSlices": ("SpacingBetweenSlices", 1.0),
    "SAR": ("SAR", 1.0),
    "EchoTime": ("EchoTime", 1e-3),
    "RepetitionTime": ("RepetitionTime", 1e-3),
    "InversionTime": ("InversionTime", 1e-3),
    "FlipAngle": ("FlipAngle", 1.0),
    "PercentPhaseFOV": ("PercentPhaseFieldOfView", 1.0),
    "PercentSampling": ("PercentSampling", 1.0),
    "EchoTrainLength": ("EchoTrainLength", 1.0),
    "PixelBandwidth": ("PixelBandwidth", 1.0),
    "KVP": ("KVP", 1.0),
    "ExposureTime": ("ExposureTime", 1e-3),
    "XRayTubeCurrent": ("XRayTubeCurrent", 1.0),
    "XRayExposure": ("Exposure", 1.0),
    "RadionuclidePositronFraction": ("RadionuclidePositronFraction", 1.0),
    "RadionuclideTotalDose": ("RadionuclideTotalDose", 1.0),
    "RadionuclideHalfLife": ("RadionuclideHalfLife", 1.0),
    "DoseCalibrationFactor": ("DoseCalibrationFactor", 1.0),
}
"""Key -> DICOM's keyword and what its value is multiplied with: times become seconds."""
_ENHANCED = {
    "EchoTime": "EffectiveEchoTime",
    "InversionTime": "InversionTimes",
    "PixelBandwidth": "PixelBandwidth",
    "ImagingFrequency": "TransmitterFrequency",
}
"""DICOM's keyword in classic files -> that in enhanced ones, where it is another one."""
_MAKERS = {"SIEMENS": "Siemens", "GE": "GE", "PHILIPS": "Philips", "TOSHIBA": "Canon", "CANON": "Canon", "UIH": "UIH"}
"""Start of the maker's name -> what dcm2niix calls it."""
_SIEMENS_BANDWIDTH, _SIEMENS_TIMES, _SIEMENS_CSA = (0x0019, 0x1028), (0x0019, 0x1029), (0x0029, 0x1010)
_SIEMENS_XA_POLARITY, _GE_POLARITY = (0x0021, 0x111C), "RectilinearPhaseEncodeReordering"
SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"


def sidecar_of(header: Any, frame: int = 0) -> dict[str, Any]:
    """Return the keys for an image, from the whole header of its first slice; `frame`: its number in the file.

    Times are seconds; the phase encoding is along the axes of files that `VolumeSet` writes.
    """
    find = _finder(header, frame)
    out: dict[str, Any] = {key: text for key, keyword in _TEXTS.items() if (text := _text(find(keyword)))}
    out |= {"Manufacturer": _maker(header)} if header.get("Manufacturer") else {}
    if "ScanningSequence" not in out and find("EchoPlanarPulseSequence") == "YES":
        out["ScanningSequence"] = "EP"
    kind = header.get("ImageType")
    out |= {"ImageType": [kind] if isinstance(kind, str) else [str(word) for word in kind]} if kind else {}
    for key, (keyword, factor) in _NUMBERS.items():
        value = _number(find(keyword))
        value = _number(find(_ENHANCED[keyword])) if value is None and keyword in _ENHANCED else value
        if value is not None and not (value == 0 and key in ("EchoTime", "InversionTime", "RepetitionTime")):
            out[key] = round(value * factor, 9)
    return out | _phase_encoding(header, find)


def _finder(header: Any, frame: int) -> Callable[[str], Any]:
    """Return a function that looks a keyword up: at the top, in the frame's groups, in those of all frames."""
    places = [header, *_items(header, "RadiopharmaceuticalInformationSequence")]
    frames = header.get(PER_FRAME) or ()
    if frame < len(frames):
        places += _groups(frames[frame])
    for shared in header.get(SHARED) or ():
        places += _groups(shared)

    def find(keyword: str) -> Any:
        return next((value for place in places if (value := place.get(keyword)) not in (None, "")), None)

    return find


def _items(header: Any, keyword: str) -> list[Any]:
    return list(header.get(keyword) or ())


def _groups(item: Any) -> Iterator[Any]:
    """Yield the functional groups of a frame or of all frames; only those of the standard, which have names."""
    for element in item:
        if element.VR == "SQ" and element.value and not element.tag.is_private:
            yield element.value[0]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else "\\".join(map(str, value)) if hasattr(value, "__iter__") else str(value)


def _number(value: Any) -> float | None:
    if value is not None and not isinstance(value, str) and hasattr(value, "__iter__"):
        value = next(iter(value), None)
    try:
        found = None if value is None else float(value)
    except (TypeError, ValueError):
        return None
    return found if found is not None and np.isfinite(found) else None


def _maker(header: Any) -> str:
    stated = str(header.get("Manufacturer") or "")
    return next((name for start, name in _MAKERS.items() if stated.upper().startswith(start)), stated)


# ---- phase encoding


def _phase_encoding(header: Any, find: Callable[[str], Any]) -> dict[str, Any]:
    """Return the direction of the phase encoding, or only its axis where the header does not say which way."""
    stated = str(find("InPlanePhaseEncodingDirection") or "").strip().upper()
    if stated[:1] not in ("R", "C") or header.get("Modality") != "MR":
        return {}
    out: dict[str, Any] = {"InPlanePhaseEncodingDirectionDICOM": "COL" if stated[0] == "C" else "ROW"}
    axis, positive = ("j" if stated[0] == "C" else "i"), _polarity(header)
    if positive is None:
        return {"PhaseEncodingAxis": axis} | out
    # rows are stored from bottom to top, so that DICOM's positive direction along a column is NIfTI's negative one
    backwards = positive == (axis == "j")
    return {"PhaseEncodingDirection": axis + ("-" if backwards else "")} | _readout(header, find, stated) | out


def _polarity(header: Any) -> bool | None:
    """Return whether phases are encoded in DICOM's positive direction; None if the header does not say."""
    maker = _maker(header)
    if maker == "Siemens":
        return _siemens_polarity(header)
    if maker == "GE" and str(header.get("ScanningSequence") or "").find("EP") >= 0:
        order = str(header.get(_GE_POLARITY) or "").upper()
        return {"LINEAR": True, "REVERSE_LINEAR": False}.get(order)
    return None


def _siemens_polarity(header: Any) -> bool | None:
    frames = header.get(PER_FRAME) or ()
    for place in (header, *(item for one in frames[:1] for item in _private_items(one))):
        if _SIEMENS_XA_POLARITY in place:
            return bool(_number(place[_SIEMENS_XA_POLARITY].value))
    csa = _csa(header)
    value = csa.get("tags", {}).get("PhaseEncodingDirectionPositive", {}).get("items") if csa else None
    return bool(int(value[0])) if value else None


def _private_items(item: Any) -> Iterator[Any]:
    for element in item:
        if element.VR == "SQ" and element.value and element.tag.is_private:
            yield element.value[0]


def _csa(header: Any) -> Any:
    """Return Siemens' header of an image, as nibabel reads it; None if there is none."""
    if _SIEMENS_CSA not in header:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel says of this reader that it knows Siemens' files only
        from nibabel.nicom import csareader

        try:
            return csareader.get_csa_header(header, "image")
        except Exception:  # a damaged CSA header is one that states nothing
            return None


def _readout(header: Any, find: Callable[[str], Any], stated: str) -> dict[str, Any]:
    """Return the times between echoes and of the readout, from Siemens' bandwidth for each pixel."""
    bandwidth = _number(header[_SIEMENS_BANDWIDTH].value) if _SIEMENS_BANDWIDTH in header else None
    matrix = _matrix(header, stated)
    if not bandwidth or not matrix:
        return {}
    spacing = 1 / (bandwidth * matrix)
    return {
        "BandwidthPerPixelPhaseEncode": bandwidth,
        "ReconMatrixPE": matrix,
        "EffectiveEchoSpacing": round(spacing, 9),
        "TotalReadoutTime": round(spacing * (matrix - 1), 9),
    }


def _matrix(header: Any, stated: str) -> int:
    """Return how many voxels lie along the phase encoding; a mosaic's tiles are counted by Siemens' header."""
    side = 1
    if "MOSAIC" in (header.get("ImageType") or ()):
        times = header.get(_SIEMENS_TIMES)
        count = len(times.value) if times is not None and hasattr(times.value, "__len__") else 0
        side = int(np.ceil(np.sqrt(count)))
    size = int(header.get("Rows" if stated[0] == "C" else "Columns") or 0)
    return size // side if side else 0


def slice_timing(header: Any, count: int) -> list[float]:
    """Return when each slice of a Siemens mosaic was acquired, seconds; empty if the header does not say."""
    if _SIEMENS_TIMES not in header:
        return []
    value = header[_SIEMENS_TIMES].value
    if isinstance(value, bytes):
        value = np.frombuffer(value[: len(value) // 8 * 8], "<f8")
    times = [float(one) for one in value] if hasattr(value, "__iter__") else [float(value)]
    if len(times) != count:
        return []
    return [round((one - min(times)) / 1000, 6) for one in times]
