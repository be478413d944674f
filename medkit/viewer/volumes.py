"""Volumes as they lie in a page: NIfTI, smaller where the page would be too large to mail."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from medkit.figures.window import Window
    from medkit.images.image import Image
    from medkit.viewer.layers import Layers

_COARSEST = 3
"""Most voxels along an axis that become one."""
_FEWEST = 16
"""An axis is not made coarser below this number of voxels."""
_MOST_LABELS = 2000
"""More labels have no list of names: thousands of numbers are hardly looked through one by one."""


@dataclass(frozen=True)
class VolumeForm:
    """How the voxels of an image are stored in a page."""

    bits: int
    """16 or 8."""
    coarser: int
    """Voxels along the finer axes of which one becomes."""


_FORMS = (VolumeForm(16, 1), *(VolumeForm(8, coarser) for coarser in range(1, _COARSEST + 1)))


def embedded(layers: Layers, room: int, most: int) -> dict[str, Any] | None:
    """Return layers as JSON for the page's script, their volumes in the best form that takes at most `room` bytes.

    If none is so small, the smallest form is taken; None if that takes more than `most` bytes. `note` says in words
    what a form lost.
    """
    for form in _FORMS:
        volumes = [_volume(layers.image, form, colour="gray")]
        if layers.overlay is not None and layers.labels:
            volumes.append(_label_volume(layers, form))
        elif layers.overlay is not None:
            volumes.append(_volume(layers.overlay, form, colour="gray" if layers.compared else "warm"))
        size = sum(len(volume["content"]) for volume in volumes)
        if size <= room or (form == _FORMS[-1] and size <= most):
            return {"volumes": volumes, "note": _words(layers.image, form), "view": _view(layers.image)}
    return None


def _view(image: Image) -> str:
    """Return the planes that are shown first: all, or those of an image that is one voxel thick."""
    flat = [axis for axis, size in enumerate(image.grid.shape) if size == 1]
    if not flat:
        return "all"
    return ("sagittal", "coronal", "axial")[int(np.abs(image.grid.affine[:3, flat[0]]).argmax())]


def _volume(image: Image, form: VolumeForm, colour: str) -> dict[str, Any]:
    """Return an image as an entry of `volumes`: its first channel as NIfTI, and the grey window."""
    from medkit.figures.window import choose_window

    window = choose_window(image)
    factors = _factors(image, form.coarser)
    values, affine = _averaged(image, factors)
    stored, slope, intercept = _sixteen_bits(values) if form.bits == 16 else _eight_bits(values, image, window)
    content = _nifti(stored, affine, slope, intercept)
    return {"kind": "image", "colour": colour, "low": window.low, "high": window.high, "content": _text(content)}


def _label_volume(layers: Layers, form: VolumeForm) -> dict[str, Any]:
    """Return a label map as an entry of `volumes`: labels by their rank, and a list with their numbers and names."""
    from medkit.figures.overlays import label_colours

    assert layers.overlay is not None
    labels = layers.overlay
    numbers = _numbers(labels.data[0])
    factors = _factors(labels, form.coarser)
    offsets = [factor // 2 for factor in factors]
    picked = labels.data[0][tuple(slice(start, None, step) for start, step in zip(offsets, factors, strict=True))]
    ranks = np.where(picked == 0, 0, np.searchsorted(numbers, picked) + 1)
    ranks = ranks.astype(np.uint8 if len(numbers) < 256 else np.uint16)
    affine = _moved(labels, factors, offsets)
    names = layers.names or {}
    listed = numbers[:_MOST_LABELS].astype(int).tolist()
    entries = [
        {"number": number, "name": names.get(number, ""), "colour": [int(c) for c in colour]}
        for number, colour in zip(listed, label_colours(numbers[:_MOST_LABELS]), strict=True)
    ]
    for entry, place in zip(entries, _places(ranks, len(listed), affine), strict=True):
        entry["place"] = place
    content = _nifti(ranks, affine, labels=True)
    return {"kind": "labels", "content": _text(content), "labels": entries}


def _numbers(labels: np.ndarray) -> np.ndarray:
    """Return the numbers of all labels but 0, sorted."""
    if labels.max() < 1 << 16:
        return np.flatnonzero(np.bincount(labels.ravel()))[int((labels == 0).any()) :]
    found = np.unique(labels)
    return found[found != 0]


def _places(ranks: np.ndarray, count: int, affine: np.ndarray) -> Iterator[list[float] | None]:
    """Yield a voxel in the middle of each label, in RAS+ mm; None if the coarser voxels do not show it."""
    from scipy import ndimage

    from medkit.space import apply_affine

    for rank, box in enumerate(ndimage.find_objects(ranks, count), start=1):
        if box is None:
            yield None
            continue
        inside = np.argwhere(ranks[box] == rank)
        nearest = inside[((inside - inside.mean(axis=0)) ** 2).sum(axis=1).argmin()]
        index = nearest + [part.start for part in box]
        yield [round(float(value), 2) for value in apply_affine(affine, index[None].astype(float))[0]]


def _factors(image: Image, coarser: int) -> tuple[int, int, int]:
    """Return how many voxels become one along each axis: axes with thick slices, and short ones, stay as they are."""
    finest = min(image.grid.spacing)
    factors = [
        max(1, min(coarser, size // _FEWEST)) if spacing <= 1.5 * finest else 1
        for spacing, size in zip(image.grid.spacing, image.grid.shape, strict=True)
    ]
    return (factors[0], factors[1], factors[2])


def _averaged(image: Image, factors: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of each block of voxels of the first channel, and its affine; incomplete blocks are left out."""
    values = image.data[0]
    if factors == (1, 1, 1):
        return values, image.grid.affine
    sizes = [size // factor for size, factor in zip(values.shape, factors, strict=True)]
    total = np.zeros(sizes, np.float32)
    for start in itertools.product(*map(range, factors)):
        total += values[
            tuple(
                slice(first, first + size * factor, factor)
                for first, size, factor in zip(start, sizes, factors, strict=True)
            )
        ]
    return total / np.prod(factors), _moved(image, factors, [(factor - 1) / 2 for factor in factors])


def _moved(image: Image, factors: tuple[int, int, int], offsets: list[Any]) -> np.ndarray:
    """Return the affine (4, 4) of every `factors`-th voxel, from `offsets` on: voxels -> RAS+ mm."""
    step = np.diag([*map(float, factors), 1.0])
    step[:3, 3] = offsets
    return np.asarray(image.grid.affine @ step)


def _sixteen_bits(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Return values as integers of 16 bits, or 8 if they are so, and the slope and intercept that restore them."""
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind in "iu" and low >= 0 and high <= 255:
        return values.astype(np.uint8), 1, 0
    if values.dtype.kind in "iu" and low >= -32768 and high <= 32767:
        return values.astype(np.int16), 1, 0
    slope = (high - low) / 65535 or 1.0
    scaled = np.rint((values.astype(np.float64) - low) / slope - 32768)
    return scaled.astype(np.int16), slope, low + 32768 * slope


def _eight_bits(values: np.ndarray, image: Image, window: Window) -> tuple[np.ndarray, float, float]:
    """Return values in 256 levels between the 0.1st and 99.9th percentile, or the grey window where that is wider."""
    from medkit.figures.window import thinned

    low, high = (float(value) for value in np.percentile(thinned(image)[0], [0.1, 99.9]))
    low, high = min(low, window.low), max(high, window.high)
    slope = (high - low) / 255 or 1.0
    scaled = np.clip((values.astype(np.float32) - np.float32(low)) / np.float32(slope), 0, 255)
    return np.rint(scaled).astype(np.uint8), slope, low


def _nifti(
    values: np.ndarray, affine: np.ndarray, slope: float = 1, intercept: float = 0, labels: bool = False
) -> bytes:
    """Return a volume as a compressed NIfTI file."""
    import nibabel as nib
    from isal import isal_zlib

    image = nib.Nifti1Image(np.asarray(values), affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_slope_inter(slope, intercept)
    if labels:
        image.header.set_intent(1002)  # "label": niivue draws outlines of these only
    return bytes(isal_zlib.compress(image.to_bytes(), level=3, wbits=31))


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _words(image: Image, form: VolumeForm) -> str:
    """Return what a form changed, in words; empty if it kept all voxels."""
    words = ["values in 256 levels"] if form.bits == 8 else []
    factors = _factors(image, form.coarser)
    if factors != (1, 1, 1):
        words.append(f"voxels of {' x '.join(map(str, factors))} averaged")
    return ", ".join(words)
