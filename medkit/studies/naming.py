"""Names of converted files: by BIDS or a pattern. Persons are numbered unless their names are asked for."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medkit.errors import UsageError, listed

FIELDS = ("patient", "study", "series", "number", "modality", "suffix", "echo", "part", "view")
"""What a pattern may name without `--identify`."""
_LONG_INVERSION, _LONG_ECHO, _SHORT_ECHO, _SHORT_REPETITION = 1.5, 0.06, 0.03, 1.2
"""Seconds that tell contrasts apart: FLAIR's inversion, T2's echo, T1's and PD's echo, T1's repetition."""
_MANY_VOLUMES = 20
"""Volumes from which a series of any sequence is one of BOLD images."""


@dataclass(frozen=True)
class Scan:
    """What a name is made of."""

    patient: str
    """Label of the person, such as `01`."""
    study: str
    """Label of the study; empty if the person has one only."""
    series: str
    """Label of the series, such as `3` or `3-5f3a9c`."""
    number: str
    """Series Number."""
    modality: str
    """DICOM's modality."""
    suffix: str
    """BIDS's word for the kind of image, such as `T1w`."""
    echo: int = 0
    """Number of the echo; 0 if there is one."""
    part: str = ""
    """`phase`, `real`, `imag` or a map; empty for images."""
    view: int = 0
    """Number of the X-ray; 0 if there is one."""
    identity: Mapping[str, str] | None = None
    """DICOM's keyword -> what names the person, if that was asked for."""


def bids_name(scan: Scan) -> Path:
    """Return the path below the dataset, without suffix, as BIDS has it; the run is the number of the series.

    >>> bids_name(Scan("01", "", "3", "3", "MR", "T1w")).as_posix()
    'sub-01/anat/sub-01_run-3_T1w'
    """
    number, _, more = scan.series.partition("-")
    folders = [f"sub-{scan.patient}", *([f"ses-{scan.study}"] if scan.study else [])]
    entities = [*folders]
    if scan.suffix == "bold":
        entities.append("task-unknown")
    more += f"view{scan.view}" if scan.view else ""
    entities += [f"acq-{more}"] if more else []
    entities += [f"run-{number}"] if number.isdigit() else []
    entities += [f"echo-{scan.echo}"] if scan.echo else []
    if scan.part in ("phase", "real", "imag"):
        entities.append(f"part-{scan.part}")
    elif scan.part:
        entities.append(f"desc-{scan.part}")
    return Path(*folders, datatype_of(scan.suffix), "_".join([*entities, scan.suffix]))


def datatype_of(suffix: str) -> str:
    """Return BIDS's folder for a kind of image; `ct` and `xr` are not BIDS's yet."""
    return {"bold": "func", "dwi": "dwi", "pet": "pet", "ct": "ct", "xr": "xr"}.get(suffix, "anat")


def suffix_for(modality: str, facts: Mapping[str, Any], words: str, *, volumes: int, weighted: bool) -> str:
    """Return BIDS's word for a kind of image: by the modality, b-values, words of the protocol, and times.

    facts: the sidecar. words: description and protocol, in lower case.
    """
    if modality != "MR":
        return {"CT": "ct", "PT": "pet", "CR": "xr", "DX": "xr", "MG": "xr"}.get(modality, modality.lower() or "image")
    if weighted:
        return "dwi"
    sequence = str(facts.get("ScanningSequence", ""))
    if volumes >= _MANY_VOLUMES or ("EP" in sequence and volumes > 1):
        return "bold"
    for pattern, name in (
        (r"flair|dark.?fluid", "FLAIR"),
        (r"t2\W?(\*|star)|swi|gre.?t2|hemo", "T2starw"),
        (r"(?<![a-z])t1|mprage|bravo|tfl3d|spgr", "T1w"),
        (r"(?<![a-z])t2", "T2w"),
        (r"(?<![a-z])pd(?![a-z])|proton", "PDw"),
    ):
        if re.search(pattern, words):
            return name
    return _by_times(sequence, facts)


def _by_times(sequence: str, facts: Mapping[str, Any]) -> str:
    """Return the contrast by echo, repetition and inversion time; `MR` where they do not tell."""
    echo, repetition, inversion = (
        float(facts.get(f"{name}Time") or 0.0) for name in ("Echo", "Repetition", "Inversion")
    )
    if not echo:
        return "MR"
    if inversion > _LONG_INVERSION and echo > _LONG_ECHO:
        return "FLAIR"
    if "GR" in sequence:
        return "T1w" if echo < 0.01 else "T2starw"
    if echo > _LONG_ECHO:
        return "T2w"
    if echo < _SHORT_ECHO and repetition:
        return "T1w" if repetition < _SHORT_REPETITION else "PDw"
    return "MR"


def pattern_name(pattern: str, scan: Scan) -> Path:
    """Return the path that a pattern makes, without suffix; characters that names cannot have become `_`.

    Raises UsageError for a field that is not known, or that names the person without `--identify`, and for a pattern
    that leads out of the folder.
    """
    values = {name: str(getattr(scan, name) or "") for name in FIELDS} | dict(scan.identity or {})
    asked = [name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None]
    if unknown := [name for name in asked if name not in values]:
        raise UsageError(
            f"--name {pattern}: no field {unknown[0]}; there are {listed(list(values))}"
            + ("" if scan.identity else ", and with --identify DICOM's keywords of the person")
        )
    path = Path(pattern.format_map({name: _safe(value) for name, value in values.items()}))
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise UsageError(f"--name {pattern}: expected a path below the folder, got {path}")
    return path


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", text).strip("._") if text else ""
