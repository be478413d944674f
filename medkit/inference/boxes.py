"""Boxes that a detection network finds: from MONAI's forms and frames to boxes in the body.

MONAI's detectors return, for each image, a dictionary with the boxes, their labels and their scores. Boxes are corners
in voxels of the image that the network was given, where whole numbers are the centres of voxels. The transforms after
the network may change their form (mode) and take them to world coordinates, for LUNA16 in LPS.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import BundleError, listed
from medkit.space import RAS_TO_LPS, apply_affine

COLUMNS = ("x", "y", "z", "size_x", "size_y", "size_z", "score", "label")
"""Columns of the table: centre and extents in mm along the axes of RAS+, the network's score, the class."""
CORNERS = "xyzxyz"
"""MONAI's name for boxes given by two corners, (N, 6); for planes `xyxy`."""
_TO_WORLD = "AffineBoxToWorldCoordinate"
_CHANGES_MODE = ("ConvertBoxMode", "ConvertBoxToStandardMode")
_KEEPS_BOXES = ("ClipBoxToImage", "DeleteItems", "SelectItems", "EnsureType", "ToTensor", "ToDevice", "CastToType")
_NAMES = {"boxes": ("box", "boxes"), "labels": ("label", "labels")}


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes in the body, those with the highest scores first."""

    centres: np.ndarray
    """(N, 3) RAS+ mm."""
    sizes: np.ndarray
    """(N, 3) mm: extents along the axes of RAS+."""
    scores: np.ndarray
    """(N,) as the network states them."""
    labels: tuple[str, ...]
    """(N,) names of the classes, or their numbers."""

    def __len__(self) -> int:
        return len(self.centres)

    def at_least(self, score: float) -> Boxes:
        """Return the boxes that have this score or a higher one."""
        kept = self.scores >= score
        labels = tuple(label for label, keep in zip(self.labels, kept, strict=True) if keep)
        return Boxes(self.centres[kept], self.sizes[kept], self.scores[kept], labels)

    def write(self, path: Path) -> None:
        """Write a table, tab-separated or, for `.csv`, with commas (see `COLUMNS`)."""
        stream = io.StringIO()
        writer = csv.writer(stream, delimiter="," if path.suffix == ".csv" else "\t", lineterminator="\n")
        writer.writerow(COLUMNS)
        for centre, size, score, label in zip(self.centres, self.sizes, self.scores, self.labels, strict=True):
            writer.writerow([*(f"{value:.3f}" for value in (*centre, *size)), f"{score:.6f}", label])
        path.write_text(stream.getvalue(), encoding="utf-8")


@dataclass(frozen=True)
class BoxForm:
    """How the boxes are given that a bundle's transforms leave."""

    mode: Any = None
    """A mode of `monai.data.box_utils`; None: two corners."""
    frame: str = "voxel"
    """`voxel` (of the image that the network was given), `RAS` or `LPS` (mm)."""


def box_steps(steps: Sequence[Any], block: Mapping[str, Any]) -> tuple[tuple[Any, ...], BoxForm]:
    """Return the transforms after the network that are run, and the form that they leave boxes in.

    MONAI takes only two corners of a box to the world, so that on oblique grids its extents would be wrong. Therefore
    that step, and changes of the form after it, are left out, and medkit takes boxes there (`in_body`), unless a step
    follows that is not known. `block`: the bundle's own block of the metadata, which may state the form under `boxes`.
    """
    if isinstance(stated := block.get("boxes"), Mapping):
        return tuple(steps), BoxForm(stated.get("mode"), str(stated.get("frame", "voxel")))
    world = next((n for n, step in enumerate(steps) if _named(step, _TO_WORLD)), None)
    if world is not None and all(_named(s, *_CHANGES_MODE, *_KEEPS_BOXES) for s in steps[world + 1 :]):
        after = [step for step in steps[world + 1 :] if not _named(step, *_CHANGES_MODE)]
        steps, world = (*steps[:world], *after), None
    mode: Any = None
    for step in steps:
        if _named(step, "ConvertBoxToStandardMode"):
            mode = None
        elif _named(step, "ConvertBoxMode"):
            mode = getattr(step, "converter", step).dst_mode
    if world is None:
        return tuple(steps), BoxForm(mode)
    return tuple(steps), BoxForm(mode, "LPS" if steps[world].affine_lps_to_ras else "RAS")


def _named(step: Any, *names: str) -> bool:
    return type(step).__name__.startswith(names)


def laid_open(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item with the boxes, labels and scores under keys of their own, as MONAI's transforms expect them.

    Raises BundleError if the network has returned none.
    """
    answer = item.get("pred")
    if isinstance(answer, list | tuple) and len(answer) == 1:
        answer = answer[0]
    if not isinstance(answer, Mapping):
        raise BundleError(f"expected a dictionary of boxes, labels and scores, got {type(answer).__name__}")
    return {**item, **answer}


def with_scores_clipped(steps: Sequence[Any], item: Mapping[str, Any]) -> None:
    """Let steps that drop boxes also drop their scores: bundles name only the labels there."""
    for step in steps:
        if _named(step, "ClipBoxToImage") and step.box_keys in item:
            count = len(item[step.box_keys])
            together = [key for key in _of_boxes(item) if key != step.box_keys and len(item[key]) == count]
            step.label_keys = tuple(dict.fromkeys([*step.label_keys, *together]))


def _of_boxes(item: Mapping[str, Any]) -> list[str]:
    """Return the keys of an answer that belong to its boxes: boxes, labels, scores."""
    found = item.get("pred")
    answer = found[0] if isinstance(found, list | tuple) and found else found
    return [key for key in answer if key in item] if isinstance(answer, Mapping) else []


def boxes_of(item: Mapping[str, Any], form: BoxForm, affine: np.ndarray, names: Mapping[int, str]) -> Boxes:
    """Return the boxes that an item holds after all steps. Raises BundleError if they are not whole.

    affine: (4, 4) of the image that the network was given, voxel -> RAS+ mm.
    names: class -> its name.
    """
    keys = _of_boxes(item)
    box, label = (_key(keys, what) for what in ("boxes", "labels"))
    score = next((key for key in keys if key.lower().endswith(("score", "scores"))), None)
    if box is None or score is None:
        raise BundleError(f"expected boxes and scores, got {listed(keys) if keys else 'neither'}")
    values, scores = _array(item[box]), _array(item[score]).reshape(-1)
    numbers = _array(item[label]).reshape(-1) if label is not None else np.zeros(len(scores))
    counts = {box: len(values), score: len(scores), label or "label": len(numbers)}
    if len(set(counts.values())) > 1:
        words = listed([f"{count} {key}" for key, count in counts.items()])
        raise BundleError(f"expected a label and a score for each box, got {words}")
    if values.size and (values.ndim != 2 or values.shape[1] not in (4, 6)):
        raise BundleError(f"expected boxes of 4 or 6 numbers, got the shape {values.shape}")
    if not (np.isfinite(values).all() and np.isfinite(scores).all()):
        raise BundleError("its boxes or scores are not finite")
    centres, sizes = in_body(values, form, affine)
    order = np.argsort(-scores, kind="stable")
    labels = [names.get(int(n), str(int(n))) for n in numbers]
    return Boxes(centres[order], sizes[order], scores[order], tuple(labels[n] for n in order))


def _key(keys: Sequence[str], what: str) -> str | None:
    return next((key for name in _NAMES[what] for key in keys if key.lower() == name), None)


def in_body(values: np.ndarray, form: BoxForm, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return centres and sizes, (N, 3) each, RAS+ mm, of boxes (N, 4) or (N, 6).

    On an oblique grid they are the smallest boxes along the axes of RAS+ that hold the boxes along the axes of voxels.
    """
    if not values.size:
        return np.zeros((0, 3)), np.zeros((0, 3))
    corners = _corners(values, form.mode)
    low, high = np.split(corners, 2, axis=1)
    if low.shape[1] == 2:  # a plane is as thick as its voxels
        thick = np.full((len(low), 1), 0.5)
        low, high = np.hstack([low, -thick]), np.hstack([high, thick])
    to_ras = to_body(form.frame, affine)
    return apply_affine(to_ras, (low + high) / 2), (high - low) @ np.abs(to_ras[:3, :3]).T


def to_body(frame: str, affine: np.ndarray) -> np.ndarray:
    """Return the map (4, 4) from a frame that metadata state, `voxel`, `RAS` or `LPS`, to RAS+ mm. Raises BundleError.

    affine: (4, 4) of the image that the network was given, voxel -> RAS+ mm.
    """
    known = {"VOXEL": affine, "RAS": np.eye(4), "LPS": RAS_TO_LPS}
    if frame.upper() not in known:
        raise BundleError(f"its metadata state the frame {frame}: expected {listed(['voxel', 'RAS', 'LPS'], 'or')}")
    return known[frame.upper()]


def _corners(values: np.ndarray, mode: Any) -> np.ndarray:
    """Return boxes as two corners, (N, 4) or (N, 6), from a mode of MONAI's."""
    if mode is None:
        return values
    from monai.data.box_utils import StandardMode, convert_box_mode

    try:
        found: np.ndarray = convert_box_mode(values, src_mode=mode, dst_mode=StandardMode)
    except (ValueError, AssertionError) as error:
        raise BundleError(f"its boxes are not of the form {mode}: {error}") from error
    return found


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = (value.as_tensor() if hasattr(value, "as_tensor") else value).detach().cpu()
    return np.asarray(value, np.float64)
