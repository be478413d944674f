"""Landmarks that a network finds, as peaks of heatmaps or as coordinates: from its answer to points in the body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import BundleError, listed, size_text
from medkit.inference.boxes import to_body
from medkit.space import Grid, apply_affine, three_axes
from medkit.transforms.points import Points, write_points

FLAT = 1e-6
"""Least height of a peak above the rest of its heatmap, as a share of the largest magnitude in it."""
BROAD = 0.1
"""Share of the voxels that may be at least half as high as the peak."""
SAME_PLACE = 1e-3
"""mm; largest distance between corners of two grids that count as the same."""


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Points in the body, and what is doubtful about them."""

    names: tuple[str, ...]
    """(N,)"""
    positions: np.ndarray
    """(N, 3) RAS+ mm."""
    peaks: tuple[float, ...] = ()
    """(N,) values of the heatmaps there; empty for coordinates."""
    missing: tuple[str, ...] = ()
    """Names of the landmarks whose heatmaps are flat: they have no point."""
    doubts: tuple[str, ...] = ()
    """What a person should look at, in sentences."""

    def write(self, path: Path) -> None:
        """Write in the format of the name: a table in RAS+, or a file of Slicer's (see `write_points`)."""
        more = {"peak": tuple(f"{peak:.6g}" for peak in self.peaks)} if self.peaks else {}
        write_points(path, Points(self.positions, self.names, True, Path(), more=more))


def peaks_of(value: Any, image: Any, names: Mapping[int, str], least: float | None = None) -> Landmarks:
    """Return the peak of each heatmap of an answer, (C, I, J, K) or (C, I, J), to a part of a voxel.

    A heatmap without a peak gives no point. A low, a broad, or one peak of several is doubtful.

    image: what the network was given; an answer without a place of its own has to lie on its grid.
    names: channel -> the landmark's name.
    least: the lowest peak that is not doubtful; None if the bundle states none. Raises BundleError.
    """
    maps = _array(value)
    grid = _grid(value, image, maps.shape[1:])
    found: list[tuple[str, np.ndarray, float]] = []
    missing, doubts = [], []
    for channel, heat in enumerate(maps):
        name = names.get(channel, str(channel))
        if not np.isfinite(heat).all():
            raise BundleError(f"the heatmap of {name} is not finite")
        index, peak, doubt = _peak(heat.reshape(grid.shape), least)
        if index is None:
            missing.append(name)
        else:
            found.append((name, index, peak))
            doubts += [f"{name}: {doubt}"] if doubt else []
    if not found:
        raise BundleError(f"finds no landmark: {'its heatmap is' if len(maps) == 1 else 'all heatmaps are'} flat")
    doubts += [f"no point for {name}: its heatmap is flat" for name in missing]
    positions = apply_affine(grid.affine, np.array([index for _, index, _ in found]))
    return Landmarks(
        tuple(name for name, _, _ in found), positions, tuple(peak for *_, peak in found), tuple(missing), tuple(doubts)
    )


def _peak(heat: np.ndarray, least: float | None) -> tuple[np.ndarray | None, float, str]:
    """Return where a heatmap (I, J, K) is highest, how high it is, and what is doubtful; None where it is flat."""
    from scipy import ndimage

    top = np.unravel_index(int(heat.argmax()), heat.shape)
    peak, base = float(heat[top]), float(np.median(heat))
    if peak - base <= FLAT * max(float(np.abs(heat).max()), 1e-30):
        return None, peak, ""
    high = heat >= (peak + base) / 2
    regions, count = ndimage.label(high, structure=np.ones((3, 3, 3)))
    index = _refined(heat - base, top)
    if least is not None and peak < least:
        return index, peak, f"its peak of {peak:.3g} is below {least:g}"
    if (share := high.mean()) > BROAD:
        return index, peak, f"its heatmap has no clear peak: {100 * share:.0f} % of the voxels are half as high"
    if count > 1:
        others = ndimage.maximum(heat, regions, [n for n in range(1, count + 1) if n != regions[top]])
        return index, peak, f"its heatmap has {count} peaks: {peak:.3g} and {max(others):.3g}"
    return index, peak, ""


def _refined(heat: np.ndarray, top: Sequence[Any]) -> np.ndarray:
    """Return the place of a peak between voxels, (3,): a parabola through the logarithms of three values, by axis.

    It is exact for a Gaussian.
    """
    index = np.array(top, np.float64)
    for axis, place in enumerate(top):
        if not 0 < place < heat.shape[axis] - 1:
            continue
        across = tuple(slice(n - 1, n + 2) if a == axis else n for a, n in enumerate(top))
        line = heat[across]
        if (line <= 0).any():
            continue
        before, at, after = np.log(line.astype(np.float64))
        bend = before - 2 * at + after
        if bend < 0:
            index[axis] += float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5))
    return index


def coordinates_of(value: Any, image: Any, names: Mapping[int, str], block: Mapping[str, Any]) -> Landmarks:
    """Return landmarks that a network gives as numbers, (N, dims) or (dims, N). Raises BundleError.

    image: what the network was given, in whose voxels the coordinates are counted, if `block` does not state another
    `frame`: `RAS` or `LPS`, in mm.
    """
    values = np.squeeze(_array(value))
    shape = tuple(image.shape[1:])
    if values.ndim == 1 and len(values) in (2, 3):
        values = values[None]
    if values.ndim != 2 or len(shape) not in values.shape:
        raise BundleError(f"expected {len(shape)} coordinates for each landmark, got the shape {values.shape}")
    values = values if values.shape[1] == len(shape) else values.T
    if not np.isfinite(values).all():
        raise BundleError("its coordinates are not finite")
    grid = image_grid(image)
    places = np.hstack([values, np.zeros((len(values), 3 - values.shape[1]))])
    positions = apply_affine(to_body(str(block.get("frame", "voxel")), grid.affine), places)
    found = tuple(names.get(n, str(n)) for n in range(len(positions)))
    index = apply_affine(np.linalg.inv(grid.affine), positions)
    outside = [n for n, at in enumerate(index) if not ((at > -1) & (at < grid.shape)).all()]
    doubts = [f"{listed([found[n] for n in outside])}: outside the image"] if outside else []
    return Landmarks(found, positions, doubts=tuple(doubts))


def _grid(value: Any, image: Any, shape: tuple[int, ...]) -> Grid:
    """Return the grid of heatmaps: their own where transforms have moved them, else that of the network's image."""
    given = image_grid(image)
    own = getattr(value, "affine", None)
    affine = given.affine if own is None else _affine(own)
    sizes = three_axes(shape)
    moved = bool(np.abs(affine - given.affine).max() > SAME_PLACE)
    if sizes != given.shape and not moved:
        raise BundleError(
            f"heatmaps of {size_text(shape)} voxels for an image of {size_text(image.shape[1:])}: where they lie is "
            f"not known; expected the image's grid, or a transform after the network that leads to it"
        )
    return Grid(sizes, affine, dims=len(shape))


def image_grid(image: Any) -> Grid:
    """Return the grid of what a network was given, (C, I, J, K) or (C, I, J)."""
    return Grid(three_axes(image.shape[1:]), _affine(getattr(image, "affine", np.eye(4))), dims=len(image.shape) - 1)


def _affine(value: Any) -> np.ndarray:
    """Return an affine as (4, 4); that of a plane may be (3, 3)."""
    own = _array(value).astype(np.float64)
    if own.shape == (4, 4):
        return own
    whole = np.eye(4)
    whole[:2, :2], whole[:2, 3] = own[:2, :2], own[:2, 2]
    return whole


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = (value.as_tensor() if hasattr(value, "as_tensor") else value).detach().cpu()
    found: np.ndarray = np.asarray(value)
    return found
