"""Files of a case besides its table: the map that explains the class, and the network's features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medkit.errors import BundleError
from medkit.inference import is_picture
from medkit.task import Case, Writable
from medkit_classify.explanation import Overlay
from medkit_classify.finding import Finding

if TYPE_CHECKING:
    from medkit.images import Image
    from medkit_classify.question import Question


def on_image_grid(question: Question) -> Image | None:
    """Return the map that explains the class on the grid of the image or patch; None without an explanation."""
    from monai.data import MetaTensor

    from medkit.inference import to_image

    if question.heat is None or question.prepared is None:
        return None
    affine = getattr(question.prepared.item["image"], "affine", None)
    return to_image(question.heat if affine is None else MetaTensor(question.heat, affine), question.prepared.grid)


def explanation_map(case: Case, questions: Sequence[Question], method: str, finding: Finding | None) -> Writable:
    """Return the map that explains the classes, on the grid of the case's image; drawn over the image for a picture.

    method: how the map was made. finding: what it explains, for the picture's title; None if there are no candidates.

    Where the patches of several candidates overlap, the largest value counts. Raises BundleError for a picture without
    an explanation.
    """
    maps = [heat for question in questions if (heat := on_image_grid(question)) is not None]
    if is_picture(case.path):
        if not maps or finding is None:
            raise BundleError(f"{case.path.name}: there is no class to explain")
        sure = f", the network says {finding.probabilities[finding.name]:.2f}" if finding.name else ""
        no_class = "no class is given; " if finding.abstained else ""
        title = f"{case.path.name}  {method}: {no_class}what speaks for {finding.name}{sure}"
        return Overlay(case.path, maps[0].data[0, :, :, 0], title, f"speaks for {finding.name}")
    image = case.image()
    if len(maps) == 1 and maps[0].grid.shape == image.grid.shape:
        return image.with_data(maps[0].data)
    out = np.zeros(image.data.shape, np.float32)
    for heat in maps:
        _paste(out[0], image, heat)
    return image.with_data(out)


def _paste(out: np.ndarray, image: Image, heat: Image) -> None:
    """Write a patch's map into the slices of the volume (I, J, K) that it was cut from."""
    from scipy.ndimage import map_coordinates

    from medkit.space import apply_affine

    inverse = np.linalg.inv(image.grid.affine)
    patch = heat.grid
    ends = np.array([(i, j, 0) for i in (0, patch.shape[0] - 1) for j in (0, patch.shape[1] - 1)])
    corners = apply_affine(inverse @ patch.affine, ends)
    low = np.maximum(np.floor(corners.min(0) - 0.5).astype(int), 0)
    high = np.minimum(np.ceil(corners.max(0) + 0.5).astype(int) + 1, out.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    index = np.stack(np.meshgrid(*[np.arange(a, b) for a, b in zip(low, high, strict=True)], indexing="ij"), -1)
    places = apply_affine(np.linalg.inv(patch.affine) @ image.grid.affine, index.reshape(-1, 3))
    values = map_coordinates(heat.data[0, :, :, 0], places[:, :2].T, order=1, mode="constant", cval=0.0)
    # the plane covers half a slice to either side
    half_slice = 0.5 * np.abs(image.grid.affine[2, :3]).max() + 1e-3
    values = np.where(np.abs(places[:, 2]) <= half_slice, values, 0.0).reshape(index.shape[:3])
    out[box] = np.maximum(out[box], values)


@dataclass(frozen=True, eq=False)
class Features:
    """The features of a case's images and the findings, as a file .npz."""

    answers: Sequence[tuple[np.ndarray | None, Sequence[Finding]]]
    """For each image its features, (F,) or None, and its findings: one, or one for each aspect."""

    def write(self, path: Path) -> None:
        """Write the arrays `features` (N, F), `candidates` (N,), `classes` (C,) and `probabilities` (N, C)."""
        count, length = len(self.answers), next((len(f) for f, _ in self.answers if f is not None), 0)
        rows = [np.full(length, np.nan) if f is None else f for f, _ in self.answers]
        tables = [{n: p for finding in own for n, p in finding.probabilities.items()} for _, own in self.answers]
        classes = list(tables[0]) if tables else []
        with open(path, "wb") as file:
            np.savez(
                file,
                features=np.array(rows, np.float32).reshape(count, length),
                candidates=np.array([own[0].candidate if len(own) == 1 else "" for _, own in self.answers]),
                classes=np.array(classes),
                probabilities=np.array([list(table.values()) for table in tables], np.float32).reshape(
                    count, len(classes)
                ),
            )
