"""Segmentation without a network: `--method threshold` for CT of the chest, `--method grow` from seeds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import InputError, UsageError
from medkit.task import LOOK_AT_THIS, Case, Record, Result, Task
from medkit_segment.results import Found, SegmentChoices

if TYPE_CHECKING:
    from medkit.images import Image
    from medkit.space import Grid

PROGRAM_BYTES = 300 * 2**20
"""Memory of Python and its libraries."""


def thresholding(choices: SegmentChoices) -> Task:
    """Return the task that finds lungs, airway, bones and body in CT of the chest. Raises UsageError."""
    from medkit_segment.structures import CHEST_LABELS, FOUND_LABELS

    known = {n: CHEST_LABELS[n] for n in FOUND_LABELS}
    choices.check(known.values())
    names = choices.names(known, "--method threshold")
    _check_roles(choices, "threshold", ("labels", "mask", "regions"))
    if "regions" in choices.roles and not {"lung_left", "lung_right"} & set(names.values()):
        raise UsageError("--outputs regions: needs lung_left or lung_right in --labels")
    process = functools.partial(_process, find=functools.partial(_chest, names=names), choices=choices)
    task = Task(
        "segment",
        (),
        process=process,
        arguments={"method": "threshold"},
        modalities=("CT",),
        summary=_summary,
        memory=functools.partial(_memory, bytes_per_voxel=12),
        uses_torch=False,
    )
    return choices.fitted(task, names.values())


def growing(choices: SegmentChoices, seeds: Path | None, limits: tuple[float, float] | None, frame: str) -> Task:
    """Return the task that grows structures from seeds, for images of any kind. Raises UsageError and InputError.

    seeds: the points of all cases; None: each record names its own.
    limits: lowest and highest value to take in; None: those around the seeds.
    frame: `RAS` or `LPS`, of points in tables.
    """
    from medkit_segment.seeds import Seeds, grown_from

    _check_roles(choices, "grow", ("labels", "mask"))
    names: Mapping[int, str] = {}
    if seeds is not None:
        known = Seeds.read(seeds, frame).names()
        choices.check(known.values())
        names = choices.names(known, str(seeds))
    elif choices.split:
        raise UsageError("--split: needs --seeds, since the names of the files are those of the seeds")
    find = functools.partial(grown_from, limits=limits, frame=frame, labels=choices.labels)
    task = Task(
        "segment",
        (),
        process=functools.partial(_process, find=find, choices=choices),
        arguments={"method": "grow", "range": list(limits) if limits else "auto", "coordinates": frame},
        accepts=("seeds",),
        shared={"seeds": seeds} if seeds else {},
        summary=_summary,
        memory=functools.partial(_memory, bytes_per_voxel=32),
        uses_torch=False,
    )
    return choices.fitted(task, names.values())


def _memory(grid: Grid, *, bytes_per_voxel: int) -> int:
    """Return roughly how many bytes an image on this grid takes at its peak."""
    return PROGRAM_BYTES + bytes_per_voxel * math.prod(grid.shape)


def _check_roles(choices: SegmentChoices, method: str, able: tuple[str, ...]) -> None:
    if unable := [role for role in choices.roles if role not in able]:
        raise UsageError(f"--outputs {unable[0]}: --method {method} makes {', '.join(able)}")


def _chest(case: Case, image: Image, *, names: Mapping[int, str]) -> Found:
    from medkit.inference import check_hounsfield, modality_of
    from medkit_segment.chest import chest_labels
    from medkit_segment.density import is_hounsfield

    modality, why = modality_of(case)
    if modality != "CT":
        raise InputError(f"{case.path}: expected CT for --method threshold, got {modality}: {why}")
    check_hounsfield(case)
    if not is_hounsfield(image):
        low, high = float(image.data.min()), float(image.data.max())
        wanted = "Hounsfield units (air near -1000, water near 0)"
        raise InputError(f"{case.path}: expected {wanted}, got values from {low:g} to {high:g}")
    try:
        chest = chest_labels(image)
    except InputError as error:
        raise InputError(f"{case.path}: {error}") from None
    return Found(chest.labels, names, chest.doubts)


def _process(case: Case, *, find: Callable[[Case, Image], Found], choices: SegmentChoices) -> Result:
    """Label a case and make the requested files."""
    from medkit_segment import report, results

    image = case.image()
    found = find(case, image)
    labels = results.kept(found.labels, found.names)
    rows = report.structures(labels, image.grid.voxel_volume, None, report.Expected(found.names, {}, {}))
    measured = results.measured(image, labels, found.names, case.path)
    doubts = [LOOK_AT_THIS + text for text in (*found.doubts, *measured.doubts)]
    return Result(
        _outputs(image, labels, found, choices, report.as_tsv(rows, image.grid, measured.cells)),
        metrics={
            **report.volumes(rows, image.grid),
            "look": bool(doubts),
            "look_at": {row.name: list(row.look) for row in rows if row.look},
            **measured.metrics,
        },
        warnings=doubts,
        details={"labels": {str(row.index): row.name for row in rows}, **found.details},
        description=f"Structures in {case.path.name}",
    )


def _outputs(image: Image, labels: np.ndarray, found: Found, choices: SegmentChoices, table: str) -> dict[str, Any]:
    from medkit.task import Text
    from medkit_segment import results

    if choices.table is not None:
        return {}
    out: dict[str, Any] = {}
    if "labels" in choices.roles:
        out |= {"labels": image.with_data(labels[None]), "table": Text(table)}
    if "mask" in choices.roles:
        out["mask"] = image.with_data((labels > 0)[None].astype(np.uint8))
    return out | dict(results.more_files(image, labels, found.names, choices))


def _summary(record: Record) -> str:
    """Return the volume of the lungs, or else of each structure, for the progress line."""
    metrics = record.medkit.get("metrics", {})
    if litres := metrics.get("lungs_l"):
        return f"lungs {litres:.2f} l"
    return ", ".join(f"{name} {mm3 / 1000:.3g} ml" for name, mm3 in list(metrics.get("volumes_mm3", {}).items())[:3])
