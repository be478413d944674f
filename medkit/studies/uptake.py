"""The standardised uptake value of PET: values per injected dose and body weight.

SUVbw as QIBA's vendor-neutral pseudo-code defines it: https://qibawiki.rsna.org/index.php/Standardized_Uptake_Value_(SUV)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

_PHILIPS_SUV, _PHILIPS_ACTIVITY = (0x7053, 0x1000), (0x7053, 0x1009)
_GE_SCAN_TIME = (0x0009, 0x100D)
_LONGEST_WAIT = timedelta(days=2)
"""Longest time between injection and scan that is believed."""


@dataclass(frozen=True)
class Uptake:
    """How stored activities become standardised uptake values."""

    factor: float | None
    """What values are multiplied with; None if the header does not allow it."""
    reason: str
    """How the factor is known, or why there is none."""


def uptake_of(headers: Sequence[Any]) -> Uptake:
    """Return the factor for a PET series, from the headers of its volumes or slices."""
    header = headers[0]
    units = str(header.get("Units") or "").upper()
    if units == "GML":
        return Uptake(1.0, "the values are SUV already")
    corrected = [str(word).upper() for word in _words(header.get("CorrectedImage"))]
    if units == "CNTS":
        return _philips(header, headers, corrected)
    if units != "BQML":
        return Uptake(None, f"expected values in Bq/ml, got {units or 'no unit'}")
    return _by_weight(header, headers, corrected)


def _philips(header: Any, headers: Sequence[Any], corrected: list[str]) -> Uptake:
    """Counts, which only Philips' own factors turn into activities."""
    if stated := _private(header, _PHILIPS_SUV):
        return Uptake(stated, "Philips' SUV factor")
    activity = _private(header, _PHILIPS_ACTIVITY)
    if not activity:
        return Uptake(None, "counts, without Philips' factors for them")
    found = _by_weight(header, headers, corrected)
    factor = None if found.factor is None else activity * found.factor
    return Uptake(factor, f"{found.reason}, by Philips' activity factor" if factor else found.reason)


def _by_weight(header: Any, headers: Sequence[Any], corrected: list[str]) -> Uptake:
    if not {"ATTN", "DECY"} <= set(corrected):
        return Uptake(None, "the values are not corrected for attenuation and decay")
    weight = float(header.get("PatientWeight") or 0)
    if weight <= 0:
        return Uptake(None, "the header states no weight")
    items = header.get("RadiopharmaceuticalInformationSequence")
    tracer = items[0] if items else {}
    dose, half_life = (float(tracer.get(name) or 0) for name in ("RadionuclideTotalDose", "RadionuclideHalfLife"))
    if dose <= 0:
        return Uptake(None, "the header states no injected dose")
    correction = str(header.get("DecayCorrection") or "").upper()
    if correction == "ADMIN":
        return Uptake(1000 * weight / dose, "values corrected to the time of the injection")
    if correction != "START":
        return Uptake(None, f"expected values corrected for decay (START or ADMIN), got {correction or 'no statement'}")
    waited = _time_from_injection(header, headers, tracer)
    if waited is None or half_life <= 0:
        return Uptake(None, "the header states no half-life, or no times of injection and scan that fit")
    left = dose * 2 ** (-waited.total_seconds() / half_life)
    return Uptake(1000 * weight / left, f"dose decayed for {waited.total_seconds() / 60:.0f} minutes until the scan")


def _time_from_injection(header: Any, headers: Sequence[Any], tracer: Any) -> timedelta | None:
    scan = _scan_start(header, headers)
    if scan is None:
        return None
    injected = _moment(tracer.get("RadiopharmaceuticalStartDateTime"), None)
    if injected is None:
        injected = _moment(scan.strftime("%Y%m%d"), tracer.get("RadiopharmaceuticalStartTime"))
        if injected is not None and injected > scan:  # before midnight
            injected -= timedelta(days=1)
    waited = None if injected is None else scan - injected
    return waited if waited is not None and timedelta(0) <= waited < _LONGEST_WAIT else None


def _scan_start(header: Any, headers: Sequence[Any]) -> datetime | None:
    """Return the moment to which values are corrected: the series' start, unless that is when it was made anew."""
    series = _moment(header.get("SeriesDate"), header.get("SeriesTime"))
    acquired = [_moment(one.get("AcquisitionDate"), one.get("AcquisitionTime")) for one in headers]
    known = [one for one in acquired if one is not None]
    if series is not None and (not known or series <= min(known)):
        return series
    stated = header.get(_GE_SCAN_TIME)
    return (_moment(stated.value, None) if stated is not None else None) or (min(known) if known else None)


def _moment(date: Any, time: Any) -> datetime | None:
    """Return the moment of a date and a time, or of both in one text (DA and TM, or DT); None if it is none."""
    value = date.decode("latin-1") if isinstance(date, bytes) else str(date or "")
    text = value.split("+")[0].strip("\0 ") + str(time or "").strip()
    day, clock = text[:8], text[8:].split(".")[0]
    if not clock:
        return None
    try:
        return datetime.strptime(day + clock.ljust(6, "0")[:6], "%Y%m%d%H%M%S")
    except ValueError:
        return None


def _words(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _private(header: Any, tag: tuple[int, int]) -> float:
    try:
        value = header[tag].value if tag in header else 0
        return float(value.decode("latin-1").strip("\0 ") if isinstance(value, bytes) else value or 0)
    except (ValueError, TypeError):
        return 0.0
