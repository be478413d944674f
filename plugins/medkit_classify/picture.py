"""The picture of `--qc`: the image, and under it what was found, with the probabilities as bars."""

from __future__ import annotations

from collections.abc import Sequence
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

MARK = 3.0
"""mm; radius of the mark of a candidate."""


def draw(case: Case, findings: Sequence[Finding], candidates: Sequence[Candidate], title: str) -> np.ndarray:
    """Return the picture of a case, (H, W, 3) uint8, with the candidates marked; without an image if it has no grey."""
    from medkit.figures import BarGroup, bars_under, overlay_mosaic

    groups = [
        BarGroup(
            heading_of(finding), finding.probabilities, "" if finding.abstained else finding.name, finding.abstained
        )
        for finding in findings
    ]
    try:
        image = case.image()
    except MedkitError as error:  # coloured pictures are classified, but only grey ones are drawn
        return bars_under(None, f"{title}  ({error})", groups)
    marks = marked(image, candidates) if candidates else None
    return bars_under(overlay_mosaic(image, marks, kind="labels" if candidates else "image"), title, groups)


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
