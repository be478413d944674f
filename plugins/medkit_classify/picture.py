"""The picture of `--qc`: the image, and under it what was found, with the probabilities as bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medkit.errors import MedkitError
from medkit.space import apply_affine
from medkit_classify.report import sure_text

if TYPE_CHECKING:
    from medkit.images import Image
    from medkit.task import Case
    from medkit_classify.candidates import Candidate
    from medkit_classify.finding import Finding

_WHAT = "saliency: what speaks for"
_LARGEST = 480
"""Pixels."""
MARK = 3.0
"""mm; radius of the mark of a candidate."""


@dataclass(frozen=True, eq=False)
class Saliency:
    """Which part of an image speaks for a class."""

    candidate: str
    """Name of the candidate; empty for an image as a whole."""
    explained: str
    """The class."""
    heat: Image
    """0 to 1."""
    patch: Image | None = None
    """The image of the candidate; None for an image as a whole."""


def draw(
    case: Case,
    findings: Sequence[Finding],
    candidates: Sequence[Candidate],
    maps: Sequence[Saliency],
    title: str,
) -> np.ndarray:
    """Return the picture of a case, (H, W, 3) uint8: image, candidates, maps, and the probabilities as bars."""
    from medkit.figures import BarGroup, bars_under

    groups = [
        BarGroup(
            heading_of(finding), finding.probabilities, "" if finding.abstained else finding.name, finding.abstained
        )
        for finding in findings
    ]
    return bars_under(_image_part(case, candidates, maps), title, groups)


def _image_part(case: Case, candidates: Sequence[Candidate], maps: Sequence[Saliency]) -> np.ndarray | None:
    """Return what is drawn of the image, (H, W, 3) uint8; None if it cannot be read."""
    from medkit.figures import heat_mosaic, heat_tiles, overlay_mosaic, stacked

    try:
        image = case.image()
    except MedkitError:  # coloured pictures are classified, but only grey ones can be read
        return _coloured(case.path)
    if not candidates and maps:
        heat = maps[0].heat
        if heat.grid.shape == image.grid.shape:  # a picture that the bundle reads lies on another grid
            heat = image.with_data(heat.data)
        return heat_mosaic(image, heat, what=f"{_WHAT} {maps[0].explained}")
    if not candidates:
        return overlay_mosaic(image)
    names = {number: candidate.name for number, candidate in enumerate(candidates, start=1)}
    parts = [overlay_mosaic(image, marked(image, candidates), kind="labels", names=names, volumes=False)]
    patches = [(f"{one.candidate}: {one.explained}", one.patch, one.heat) for one in maps if one.patch is not None]
    return stacked([*parts, *([heat_tiles(patches, what=f"{_WHAT} the most probable class")] if patches else [])])


def _coloured(path: Path) -> np.ndarray | None:
    """Return a coloured picture, at most 480 pixels wide and high; None if it is none."""
    from PIL import Image as Pillow

    try:
        with Pillow.open(path) as picture:
            small = picture.convert("RGB")
    except (OSError, ValueError):
        return None
    small.thumbnail((_LARGEST, _LARGEST))
    return np.asarray(small).copy()


def heading_of(finding: Finding) -> str:
    """Return a finding as a line: the class and how sure it is, or why no class is given."""
    subject = f"{finding.candidate}: " if finding.candidate else ""
    if finding.abstained:
        return f"{subject}no class: {finding.reason}"
    return f"{subject}{finding.name}, {sure_text(finding)}"


def marked(image: Image, candidates: Sequence[Candidate]) -> Image:
    """Return labels on the grid of an image: a ball around each candidate, numbered from 1."""
    grid = image.grid
    labels = np.zeros((1, *grid.shape), np.uint16)
    reach = np.maximum(1, np.ceil(MARK / np.array(grid.spacing))).astype(int)
    for number, candidate in enumerate(candidates, start=1):
        centre = np.rint(apply_affine(np.linalg.inv(grid.affine), candidate.position)).astype(int)
        low, high = np.maximum(centre - reach, 0), np.minimum(centre + reach + 1, grid.shape)
        if (high <= low).any():
            continue
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        offsets = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), axis=-1) - centre
        near = np.linalg.norm(offsets * np.array(grid.spacing), axis=-1) <= max(MARK, min(grid.spacing))
        labels[0][box][near] = number
    return image.with_data(labels)
