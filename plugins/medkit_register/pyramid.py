"""Images at several resolutions, on grids that do not depend on how the file stores its voxels.

Every volume is first turned to closest-RAS axes. A level is that array smoothed and sampled at points of one spacing
(mm) about the centre of the field of view. The same scan stored LAS, LPI or PIR yields bit for bit the same levels.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from medkit.errors import MedkitError, size_text
from medkit_register.axis_sampling import apply_along_axes, axis_sampling, smooth
from medkit_register.cut_out import is_cut_out

MARGIN = 3
"""Points by which a level reaches beyond the scan where only background touches the border."""
AIR = -500.0
"""Hounsfield units below which there is air."""
MINORITY = 2.5
"""How many times larger than the part above Otsu's threshold a second part below it must be to be the object itself.
Scans of heads, chests, abdomens and prostates reach 1.2, of spines 2.2; a lesion of 25 to 45 mm, much brighter than the
brain, makes it 2.7 to 21."""
MOST_POINTS = 500_000_000
"""Points of a level that need 6 GB; more would be those of a large scan at the spacing of a tiny one."""
FILL = 3.0
"""Standard deviation, in points of a level, of the Gaussian that continues an image outside its mask."""


@dataclass(frozen=True, eq=False)
class ScanVolume:
    """A scan as the registration engine takes it."""

    data: torch.Tensor
    """(I, J, K) intensities, float32; one axis with a single voxel makes it planar (2D)."""
    affine: np.ndarray
    """(4, 4) voxel index -> RAS+ mm."""
    mask: torch.Tensor | None = None
    """(I, J, K); the metric compares only voxels above 0. None: all voxels."""


@dataclass(frozen=True, eq=False)
class Level:
    """A scan smoothed and sampled at one spacing."""

    spacing: float
    """mm between points, the same along each axis (the planar axis keeps the scan's)."""
    image: torch.Tensor
    """(I, J, K) float32, robustly scaled so that background is near 0 and bright tissue near 1."""
    mask: torch.Tensor | None
    """(I, J, K) 0..1: the share of each point that the user's mask keeps."""
    affine: np.ndarray
    """(4, 4) point index -> RAS+ mm."""

    @cached_property
    def index_from_world(self) -> np.ndarray:
        """(4, 4) RAS+ mm -> point index."""
        return np.linalg.inv(self.affine)


class Pyramid:
    """The levels of a scan, each computed when first asked for and then kept: a fixed image serves many moving ones.

    Raises MedkitError for a mask that has no voxel above 0.
    """

    def __init__(self, volume: ScanVolume) -> None:
        if volume.mask is not None and not bool((volume.mask > 0).any()):
            raise MedkitError("the mask has no voxel above 0")
        data, self.affine, mask = canonical(volume)
        self.spacing = np.linalg.norm(self.affine[:3, :3], axis=0)
        self.size = np.asarray(data.shape)
        self._low, self._high = intensity_range(data, mask)
        self._data, self._mask = data, mask
        self._levels: dict[float, Level] = {}
        self._dim_a_bright_minority()
        self.features: dict[tuple[object, ...], object] = {}
        """What metrics derive from levels and keep, by a key that starts with its kind."""

    def _dim_a_bright_minority(self) -> None:
        """Lower the high end of the intensities, and all above it, where only a small part of the object reaches it.

        A very bright lesion, implant or vessel would otherwise be taken for the object, and all else for background.
        """
        image = self.level(self.extent / 40).image
        threshold = otsu(image)
        for _ in ("the lesion", "the voxels that it shares with what is around it"):
            rest = image[image <= threshold]
            lower = otsu(rest) if rest.numel() else threshold
            if float((rest > lower).sum()) > MINORITY * (image.numel() - rest.numel()):
                break
            threshold = lower
        else:
            return
        value = self._low + threshold * (self._high - self._low)
        kept = self._data if self._mask is None else self._data[self._mask > 0]
        high = percentile(kept[kept <= value], 0.995)
        if high > self._low:
            self._high = high
            self._data = self._data.clamp(max=high)
            self._levels.clear()

    @cached_property
    def planar_axis(self) -> int | None:
        """The closest-RAS axis that has one voxel; None for a volume."""
        single = np.flatnonzero(self.size == 1)
        return int(single[-1]) if single.size else None

    @property
    def hounsfield(self) -> bool:
        """Whether intensities are Hounsfield units: in no other scan is so much so far below 0."""
        return self._low < AIR

    @cached_property
    def extent(self) -> float:
        """Size of the field of view in mm: geometric mean over its axes, without the planar one."""
        sides = [n * s for n, s in zip(self.size, self.spacing, strict=True) if n > 1]
        return float(np.exp(np.mean(np.log(sides))))

    @cached_property
    def threshold(self) -> float:
        """Intensity (scaled as in the levels) between background and object: Otsu (1979) on a coarse level."""
        return otsu(self.level(self.extent / 40).image)

    @property
    def masked(self) -> bool:
        """Whether only a part of the scan is compared."""
        return self._mask is not None

    @cached_property
    def cut_out(self) -> bool:
        """Whether the object was cut out of its surroundings, as a brain without its skull is; never a CT.

        Around the body a CT may have one value, and another one beyond the scanner's circle.
        """
        return not self.hounsfield and is_cut_out(self._data, self._low + self.threshold * (self._high - self._low))

    @cached_property
    def closed(self) -> np.ndarray:
        """(3, 2) bool: faces of the field of view (low, high) that only background touches."""
        image = self.level(self.extent / 40, margin=False).image
        faces = np.zeros((3, 2), bool)
        for axis, end in itertools.product(range(3), range(2)):
            face = image.select(axis, -end)
            faces[axis, end] = float((face > self.threshold).float().mean()) < 0.02
        if self.planar_axis is not None:
            faces[self.planar_axis] = False
        return faces

    @cached_property
    def middle(self) -> np.ndarray:
        """(3,) RAS+ mm of the middle of the field of view."""
        return (self.affine @ [*((self.size - 1) / 2), 1])[:3]

    @cached_property
    def _moments(self) -> tuple[np.ndarray, float]:
        level = self.level(self.extent / 40)
        weight = (level.image - 0.5 * self.threshold).clamp(0, 1)
        return moments(weight if level.mask is None else weight * level.mask, level.affine)

    @property
    def centre(self) -> np.ndarray:
        """(3,) RAS+ mm of the object's centre of mass."""
        return self._moments[0]

    @property
    def radius(self) -> float:
        """Root-mean-square distance of the object from its centre, mm."""
        return self._moments[1]

    def spacing_of(self, points: int) -> float:
        """Return the spacing in mm at which a level has about as many points."""
        sides = (self.size * self.spacing)[self.size > 1]
        return float(np.prod(sides) / points) ** (1 / len(sides))

    def level(self, spacing: float, *, margin: bool = True) -> Level:
        """Return the scan at `spacing` mm; `margin`: reach beyond borders that only background touches (MARGIN)."""
        key = spacing if margin else -spacing
        if spacing < self.spacing_of(MOST_POINTS):
            raise MedkitError(
                f"the scans are too unlike in size: one has {size_text(self.size * self.spacing, '.3g')} mm, and the "
                f"other asks for points every {spacing:.2g} mm; is the spacing of one of them in other units?"
            )
        if key not in self._levels:
            self._levels[key] = self._make(spacing, margin and spacing < self.extent / 41)
        return self._levels[key]

    def _make(self, spacing: float, margin: bool) -> Level:
        pads = self.closed * MARGIN if margin else np.zeros((3, 2), int)
        axes = [axis_sampling(n, s, spacing, pad) for n, s, pad in zip(self.size, self.spacing, pads, strict=True)]
        step = np.array([a.step for a in axes])
        index = np.diag([*step, 1.0])
        index[:3, 3] = [a.first for a in axes]
        operators = [a.operator for a in axes]
        image = apply_along_axes(self._data, operators)
        mask = None
        if self._mask is not None:
            mask = apply_along_axes(self._mask, operators)
            image = filled(apply_along_axes(self._data * self._mask, operators), mask)
        image = ((image - self._low) / (self._high - self._low)).clamp_(-0.5, 1.5)
        return Level(spacing, image, mask, self.affine @ index)


def filled(masked: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the image (I, J, K) inside the mask, continued smoothly outside it.

    `masked` is image times mask, smoothed. What a mask leaves out (a lesion) must neither seep in nor end in an edge.
    """
    around = smooth(masked, FILL) / smooth(mask, FILL).clamp_min(1e-3)
    return (masked / mask.clamp_min(0.3)).where(mask > 0.3, around)


def canonical(volume: ScanVolume) -> tuple[torch.Tensor, np.ndarray, torch.Tensor | None]:
    """Return data, affine and mask with axes permuted and flipped to closest RAS."""
    order, flips = closest_axes(volume.affine)
    shape = np.asarray(volume.data.shape)
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for new, old in enumerate(order):
        turn[old, new] = -1 if flips[new] else 1
        turn[old, 3] = shape[old] - 1 if flips[new] else 0
    axes = [axis for axis in range(3) if flips[axis]]

    def turned(data: torch.Tensor) -> torch.Tensor:
        return data.permute(*order).flip(axes).contiguous().float()

    mask = None if volume.mask is None else turned(volume.mask > 0)
    return turned(volume.data), np.asarray(volume.affine, float) @ turn, mask


def closest_axes(affine: np.ndarray) -> tuple[list[int], list[bool]]:
    """Return for each RAS axis the closest voxel axis, and whether that axis runs the opposite way."""
    direction = np.asarray(affine, float)[:3, :3]
    direction = direction / np.linalg.norm(direction, axis=0)
    order = max(
        itertools.permutations(range(3)),
        key=lambda p: sum(abs(direction[world, axis]) for world, axis in enumerate(p)),
    )
    return list(order), [bool(direction[world, axis] < 0) for world, axis in enumerate(order)]


def moments(weight: torch.Tensor, affine: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the weighted centre (3,) in RAS+ mm and the root-mean-square radius in mm.

    `weight` is (I, J, K), `affine` (4, 4) takes its indices to RAS+ mm. Where all weights are 0, all points count.
    """
    if not float(weight.sum()) > 0:
        weight = torch.ones_like(weight)
    total = float(weight.sum())
    mean, spread = [], []
    for axis, size in enumerate(weight.shape):
        along = weight.sum(dim=[d for d in range(3) if d != axis]).double()
        steps = torch.arange(size, dtype=torch.float64)
        mean.append(float(along @ steps) / total)
        spread.append(float(along @ (steps - mean[-1]) ** 2) / total)
    scale = np.linalg.norm(affine[:3, :3], axis=0)
    return (affine @ [*mean, 1])[:3], float(np.sqrt(np.sum(np.asarray(spread) * scale**2)))


def intensity_range(data: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[float, float]:
    """Return the 0.5th percentile and, inside the mask, the 99.5th; minimum and maximum where the two are equal."""
    low = percentile(data.reshape(-1), 0.005)
    high = percentile(data.reshape(-1) if mask is None else data[mask > 0], 0.995)
    if high <= low:
        low, high = float(data.min()), float(data.max())
    return low, high if high > low else low + 1.0


def percentile(values: torch.Tensor, share: float) -> float:
    """Return the value that a `share` of the values (N,) do not exceed, estimated from about 200 000 of them."""
    sample = values[:: max(1, values.numel() // 200_000)]
    return float(sample.kthvalue(1 + int(share * (sample.numel() - 1))).values)


def otsu(image: torch.Tensor, bins: int = 128) -> float:
    """Return the threshold that splits intensities into two classes of least spread (Otsu 1979)."""
    values = np.asarray(image).ravel()
    counts, edges = np.histogram(values, bins=bins)
    centres = (edges[1:] + edges[:-1]) / 2
    weight = np.cumsum(counts) / counts.sum()
    mean = np.cumsum(counts * centres) / counts.sum()
    between = (mean[-1] * weight - mean) ** 2 / np.maximum(weight * (1 - weight), 1e-9)
    return float(centres[int(np.argmax(between[:-1]))])
