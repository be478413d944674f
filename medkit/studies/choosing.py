"""Which series of a study a task takes, and why it leaves the others out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medkit.errors import listed
from medkit.images.dicom.series import Series
from medkit.studies.needs import SeriesNeeds
from medkit.studies.summary import PROJECTIONS, SeriesSummary, summaries_of

SAME_AS = {"DX": "CR", "RG": "CR"}
"""DICOM's other names for a projection X-ray -> the one that bundles use."""
_NO_SCANS = {"SEG": "a segmentation", "RTDOSE": "a dose", "RTIMAGE": "a picture of a treatment", "SM": "a microscopy"}
"""Modalities of objects with pixels that are no scans -> what they are."""
_CAPTURES = "1.2.840.10008.5.1.4.1.1.7"
"""UID of Secondary Capture Image Storage; those of its multi-frame kinds begin with it."""
_LOCALIZER = {"LOCALIZER", "SCOUT"}
_LOCALIZER_WORDS = re.compile(
    r"(?<![a-z])(locali[sz]ers?|scouts?|scoutview|survey|topogram|scanogram|surview|((3|tri|three)[ _-]?(planes?|pl)))"
    r"(?![a-z])"
)
_REFORMATTED = {"MPR", "REFORMATTED", "CURVED"}
_PROJECTED = {"MIP", "MINIP", "PROJECTION IMAGE", "MAX_IP", "MIN_IP", "VOLUME RENDERED", "VOLREN", "RENDERED"}
_MAPS = {
    *("ADC", "FA", "TRACEW", "TRACE", "EADC", "EXP", "TENSOR", "TENSOR_B0", "COLFA", "DIFFUSION_ANISO", "RELCBF"),
    *("CBF", "CBV", "RCBF", "RCBV", "MTT", "TTP", "TMAX", "SUBTRACTION", "SUBTRACT", "T1_MAP", "T2_MAP", "T2_STAR_MAP"),
    *("T1 MAP", "T2 MAP", "R2_MAP", "R2_STAR_MAP", "SWI_PHASE", "PERFUSION_ANISO", "FIELD_MAP", "QUANT", "MEDIAN"),
}
"""Words of Image Type that name a map computed from images."""
_NOT_MAGNITUDE = {"P", "PHASE", "PHASE MAP", "R", "REAL", "I", "IMAGINARY", "VELOCITY MAP", "VELOCITY"}
_MAGNITUDE = {"M", "M_FFE", "M_SE", "M_IR", "MAGNITUDE"}


@dataclass(frozen=True)
class Choice:
    """What a task takes of a study."""

    taken: list[Path]
    """Paths of its cases, folder by folder and in the order of the series' numbers."""
    left_out: list[str]
    """A sentence for each other series, with the reason."""


def choose(known: Sequence[Series], needs: SeriesNeeds, asked: str | None = None) -> Choice:
    """Choose among all series of a study; `asked`: the UID or number of the only ones to take, whatever they are."""
    taken, left_out = list[Path](), list[str]()
    for one in sorted(summaries_of(known), key=lambda one: str(min(one.series.folders))):
        if asked is None:
            reason = reason_against(one, needs)
        else:
            reason = "" if asked in (one.series.uid, one.series.number) else f"not series {asked}"
        if reason:
            left_out.append(f"{one.title()}: {reason}")
        else:
            taken += one.views or [one.path]
    return Choice(list(dict.fromkeys(taken)), left_out)


def reason_against(one: SeriesSummary, needs: SeriesNeeds) -> str:
    """Return why a task leaves a series out; empty if it takes it.

    A series that should be taken but cannot be read is taken: its case fails, with the reason.
    """
    kept = {SAME_AS.get(name, name) for name in needs.modalities}
    modality = SAME_AS.get(one.modality, one.modality)
    if unfit := _no_scan(one):
        return unfit
    if kept and modality not in kept and one.modality != "?":
        return f"{needs.task} takes {listed(sorted(kept), 'or')}"
    if derived := _derived(one):
        return derived
    if localizer := _localizer(one):
        return localizer
    if one.problem:
        return ""
    if one.shape[2] == 1 and not needs.planes and one.modality not in PROJECTIONS:
        return "a single slice"
    if one.frames > 1 and not needs.frame_picked and not one.views:
        return f"{one.frames} frames; --frame N picks one"
    return ""


def _no_scan(one: SeriesSummary) -> str:
    """Return what a series is that holds no scan: a report, a segmentation, a picture in colours, a capture."""
    first = one.series.first
    if one.modality in _NO_SCANS:
        return f"{_NO_SCANS[one.modality]}, no scan"
    if not one.has_image:
        return "no image"
    if first.coloured:
        return "colours"
    if first.kind.startswith(_CAPTURES) and first.modality not in PROJECTIONS:
        return "a secondary capture"
    return ""


def _derived(one: SeriesSummary) -> str:
    """Return what a series is that was computed from another one."""
    words = {word.strip().upper() for word in one.series.first.image_type}
    if "DERIVED" in words:
        for found, what in ((_REFORMATTED, "a reformation"), (_PROJECTED, "a projection"), (_MAPS, "a map")):
            if words & found:
                return f"derived: {what}"
        # PET is called so for its corrections
        if "SECONDARY" in words and one.modality not in ("PT", "NM"):
            return "derived from another series"
    if one.modality == "MR" and words & _NOT_MAGNITUDE and not words & _MAGNITUDE:
        return "no magnitude image"
    return ""


def _localizer(one: SeriesSummary) -> str:
    words = {word.strip().upper() for word in one.series.first.image_type}
    if words & _LOCALIZER or (one.modality in ("MR", "CT") and _LOCALIZER_WORDS.search(one.series.first.words)):
        return "a localizer"
    if one.orientations > 1:
        return f"slices in {one.orientations} orientations, as localizers have"
    return ""
