"""Boxes and landmarks as the result of a bundle: what its network and its transforms leave, and what is made of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from medkit.bundles.bundle import Bundle
from medkit.bundles.contract import Contract
from medkit.errors import BundleError
from medkit.inference.boxes import Boxes, BoxForm, box_steps, boxes_of, laid_open, with_scores_clipped
from medkit.inference.landmarks import Landmarks, coordinates_of, image_grid, peaks_of
from medkit.inference.marks import Mark, draw_marks
from medkit.inference.transforms import Postprocessing, Prepared
from medkit.machine.precision import as_float
from medkit.run.task import Case, Result
from medkit.space import Grid, apply_affine


def steps_of(steps: Sequence[Any], bundle: Bundle, contract: Contract) -> tuple[Sequence[Any], BoxForm]:
    """Return the transforms after the network that are run, and the form in which they leave boxes."""
    return box_steps(steps, bundle.block) if contract.kind == "boxes" else (steps, BoxForm())


def compute_boxes_in_float32(network: Any) -> None:
    """Let a network's answers be float32, whatever it computes with: MONAI's detectors place their anchors in its type.

    In bfloat16 a coordinate above 256 is rounded to two voxels.
    """
    if not hasattr(network, "register_forward_hook"):
        return
    inner = getattr(network, "network", network)
    inner.register_forward_hook(lambda module, inputs, answer: as_float(answer))


def found_in(
    computed: Prepared, postprocessing: Postprocessing, bundle: Bundle, contract: Contract, form: BoxForm
) -> Boxes | Landmarks:
    """Return the boxes or landmarks of a case after the network. Raises BundleError."""
    names = {int(n): str(name) for n, name in (bundle.block.get("labels") or contract.classes).items()}
    image = computed.item["image"]
    if contract.kind == "boxes":
        opened = laid_open(computed.item)
        with_scores_clipped(postprocessing.steps, opened)
        item = postprocessing(replace(computed, item=opened))
        return boxes_of(item, form, image_grid(image).affine, names)
    item = postprocessing(computed)
    if "pred" not in item:
        raise BundleError(f"returned no pred, only {', '.join(map(str, item))}")
    block = bundle.block.get("points") or {}
    stated = block.get("names")
    if contract.heatmaps:
        return peaks_of(item["pred"], image, dict(enumerate(stated)) if stated else names, block.get("min_peak"))
    return coordinates_of(item["pred"], image, dict(enumerate(stated or ())), block)


def result_of(found: Boxes | Landmarks, case: Case, grid: Grid, bundle: Bundle, min_score: float | None) -> Result:
    """Return the result of a case: the table, how many there are, and a picture if one is asked for.

    grid: of the case's own image.
    """
    words = f"{bundle.name} {bundle.version} on {case.path.name}"
    title = f"{bundle.name}  {case.path.name}"
    if isinstance(found, Boxes):
        kept = found if min_score is None else found.at_least(min_score)
        highest = {"highest_score": round(float(kept.scores[0]), 6)} if len(kept) else {}
        marks = [
            Mark(f"{label} {score:.2f}", centre, size)
            for label, score, centre, size in zip(kept.labels, kept.scores, kept.centres, kept.sizes, strict=True)
        ]
        return Result(
            {"boxes": kept},
            metrics={"boxes": len(kept), **highest},
            warnings=_outside(kept, grid),
            description=words,
            figure=functools.partial(draw_marks, case, marks, title),
        )
    points = [Mark(name, position) for name, position in zip(found.names, found.positions, strict=True)]
    peaks = {"peaks": dict(zip(found.names, map(_short, found.peaks), strict=True))} if found.peaks else {}
    missing = {"missing": list(found.missing)} if found.missing else {}
    return Result(
        {"points": found},
        metrics={"points": len(found.names), **peaks, **missing},
        warnings=found.doubts,
        description=words,
        figure=functools.partial(draw_marks, case, points, title),
    )


def _outside(boxes: Boxes, grid: Grid) -> list[str]:
    """Return a warning about boxes whose centres lie outside an image, if there are any."""
    index = apply_affine(grid.to_index, boxes.centres)
    count = int((~((index > -1) & (index < grid.shape)).all(axis=1)).sum())
    return [f"{count} of {len(boxes)} boxes lie outside the image"] if count else []


def _short(value: float) -> float:
    return float(f"{value:.6g}")
