"""Philips' floating point values: what was measured, while stored values times the rescale slope are for display.

Chenevert et al., Errors in quantitative image analysis due to platform-dependent image scaling, Transl Oncol 2014.
"""

from __future__ import annotations

from typing import Any

_SCALE_SLOPE, _FRAME_ITEM = (0x2005, 0x100E), (0x2005, 0x140F)


def scale_slope(header: Any, frame: int) -> float | None:
    """Return the private scale slope of a frame of an MR image; None if the header has none, or is not Philips'."""
    if not str(header.get("Manufacturer") or "").upper().startswith("PHILIPS") or header.get("Modality") != "MR":
        return None
    frames = header.get("PerFrameFunctionalGroupsSequence") or ()
    places = [header]
    if frame < len(frames) and _FRAME_ITEM in frames[frame]:
        places += list(frames[frame][_FRAME_ITEM].value or ())
    for place in places:
        if _SCALE_SLOPE in place:
            found = float(place[_SCALE_SLOPE].value or 0)
            return found or None
    return None


def measured_factor(scaling: tuple[float, float] | None, slope: float) -> float:
    """Return what displayed values are multiplied with: 1 / (rescale slope x scale slope)."""
    return 1 / ((scaling[0] if scaling else 1.0) * slope)
