"""Choosing a bundle: for a case (`--bundle auto`) by its kind, modality and intensities, or by the option's value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medkit import plugins
from medkit.bundles.bundle import AUTO, Bundle, bundle_for_task, installed
from medkit.bundles.contract import Contract, contract_of
from medkit.errors import InputError, UsageError, listed
from medkit.images.dicom.reader import is_dicom, stated_modality
from medkit.images.modality import CT_OFFSET, is_ct_with_offset
from medkit.pipe.names import GREY_PICTURES, stem
from medkit.pipe.records import record_of
from medkit.run.task import Case
from medkit.studies.choosing import SAME_AS

_MR_NAMES = re.compile(r"(?:^|_)(?:T1w?|T2w?|T2starw|FLAIR|PDw?|PDT2|inplaneT[12]|UNIT1|bold|dwi|angio|MR)(?:_|$)")
_CT_NAMES = re.compile(r"(?:^|_)(?:CT|ct)(?:_|$)")
NONE = "none"
"""Value of `--bundle` if no bundle is wanted."""
AIR = -500
"""Hounsfield units below which there is air; in other modalities few values are so low."""
FAT = -50
"""Hounsfield units below which there is fat, in every CT of a body."""
AIR_SHARE = 0.02
"""Smallest share of values below `AIR` that marks an image as CT."""


def bundle_for_case(case: Case, bundles: Sequence[Bundle]) -> tuple[Bundle, str]:
    """Return the bundle that fits a case, and the reason in words. Raises InputError if none or several fit."""
    if len(bundles) == 1:
        return bundles[0], "the only one for the task"
    # the case's own file may be labels whose source image is used
    kind = case.record.kind if case.path == case.record.path else record_of(case.path).kind
    fitting = [b for b in bundles if kind in b.kinds] or list(bundles)
    if len(fitting) == 1:
        return fitting[0], f"the only one that takes {kind}"
    modality, why = modality_of(case)
    own = [b for b in fitting if b.modality == modality] or [b for b in fitting if b.modality is None]
    if len(own) == 1:
        return own[0], f"the only one for {modality}: {why}"
    names = listed([f"{b.name} ({b.modality or 'any modality'})" for b in own or fitting])
    what = "several bundles take" if own else "no bundle takes"
    raise InputError(f"{case.path}: {what} {modality} ({why}); choose with --bundle: {names}")


def modality_of(case: Case) -> tuple[str, str]:
    """Return the modality of a case (`CT`, `MR`, or the one that a DICOM header states) and how it is known."""
    if stated := _modality_in_header(case.path):
        return stated, "its DICOM header says so"
    name = stem(case.path)
    for pattern, modality in ((_CT_NAMES, "CT"), (_MR_NAMES, "MR")):
        if pattern.search(name):
            return modality, "its name says so"
    if case.path.name.lower().endswith(GREY_PICTURES):
        return "CR", "a picture, as projection X-rays come"
    voxels = _some_values(case)
    share = float(np.mean(voxels < AIR))
    if share >= AIR_SHARE:
        return "CT", f"{share:.0%} of its values lie below {AIR} HU"
    return "MR", f"its values are not Hounsfield units{_offset(voxels, ', or ')}"


def check_hounsfield(case: Case) -> None:
    """Raise InputError if the values of a CT cannot be Hounsfield units, because not even fat has its values."""
    voxels = _some_values(case)
    low, high = float(voxels.min()), float(voxels.max())
    if low > FAT:
        raise InputError(
            f"{case.path}: expected Hounsfield units (air near -1000, water near 0), got values from {low:g} to "
            f"{high:g}{_offset(voxels, '; ')}"
        )


def _some_values(case: Case) -> np.ndarray:
    """Return about 100 000 of an image's values, (N,)."""
    values: np.ndarray = case.image().data.reshape(-1)
    return values[:: max(1, values.size // 100_000)]


def _offset(voxels: np.ndarray, before: str) -> str:
    """Return a phrase, after `before`, if values look like those of a CT to which an offset was added."""
    found = is_ct_with_offset(voxels)
    return f"{before}{CT_OFFSET} was added to them, as some programs do; subtract it then" if found else ""


def _modality_in_header(path: Path) -> str | None:
    if not is_dicom(path):
        return None
    stated = stated_modality(path)
    return SAME_AS.get(stated, stated) if stated else None


def common_contract(task: str, bundles: Sequence[Bundle]) -> Contract:
    """Return what bundles take and return, by the first of them.

    Raises UsageError if they do not return the same files, so that one run cannot choose among them, and BundleError
    as `contract_of` does.
    """
    first, *others = (contract_of(bundle) for bundle in bundles)
    if any((other.kind, other.results) != (first.kind, first.results) for other in others):
        names = listed([b.name for b in bundles])
        raise UsageError(f"task {task}: its bundles return different files; choose one with --bundle: {names}")
    return first


def bundle_or_none(text: str, task: str, *, trust: bool) -> Bundle | None:
    """Return the bundle that an option names, or None: `text` is `none`, `auto`, a name or a path.

    `auto` is the first of the task's bundles that a plugin brings with its weights, or None if there is none.

    Raises UsageError, BundleError, and WeightsMissingError if the named bundle has no weights.
    """
    found = plugins.registry()
    if text == NONE:
        return None
    if text != AUTO:
        bundle = bundle_for_task(text, task, found, trust=trust)
        bundle.weights  # noqa: B018  raises if there are none
        return bundle
    own = (b for b in installed(found) if b.task == task and b.spec is not None and b.spec.auto)
    return next((b for b in own if b.has_weights), None)
