"""nnU-Net's steps before and after the network as MONAI transforms: axes, crop, intensities, spacing, and all back.

The voxel order is that of nnU-Net: its arrays are those of SimpleITK, (K, J, I) of a file, in the order of axes that
the plans state. So weights, windows and spacings stay as they are in the plans.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from medkit.nnunet.resampling import Resampling, new_shape, resampled, thick_axis

PLANE_SPACING = 999
"""Thickness of a 2D image as a multiple of its largest spacing, as nnU-Net has it: no axis is thicker."""
_SMALLEST = 1e-8
"""Smallest standard deviation that intensities are divided by."""


@dataclass(frozen=True)
class Place:
    """How a prepared image lies in the image that it was made of."""

    axes: tuple[int, ...]
    """Axis of the image for each axis of the prepared one."""
    flips: tuple[int, ...]
    """Axes of the prepared image that run the other way, as 1 or 0."""
    shape: tuple[int, ...]
    """Size in voxels of the image in that order of axes."""
    start: tuple[int, ...]
    """First voxel of the crop."""
    size: tuple[int, ...]
    """Size of the crop before it was resampled."""
    spacing: tuple[float, ...]
    """Spacing (mm) of the image in that order of axes."""
    flat: bool
    """Whether the image has two axes only."""

    def as_tensor(self) -> torch.Tensor:
        """Return all numbers as (7, 3), which MONAI takes through its batches."""
        rows = (self.axes, self.flips, self.shape, self.start, self.size, self.spacing, [self.flat] * 3)
        return torch.tensor(rows, dtype=torch.float64)

    @classmethod
    def of(cls, numbers: torch.Tensor) -> Place:
        """Return the place that `as_tensor` has written."""
        *counts, spacing, flat = numbers.tolist()
        axes, flips, shape, start, size = (tuple(map(int, row)) for row in counts)
        return cls(axes, flips, shape, start, size, tuple(spacing), bool(flat[0]))

    @property
    def box(self) -> tuple[slice, ...]:
        """The crop as slices of its three axes."""
        return tuple(slice(first, first + n) for first, n in zip(self.start, self.size, strict=True))

    def ordered(self, image: torch.Tensor) -> torch.Tensor:
        """Return an image (C, I, J, K) in the prepared image's order of axes."""
        return self._flipped(image.permute(0, *(1 + axis for axis in self.axes)))

    def restored(self, image: torch.Tensor) -> torch.Tensor:
        """Return an image (C, ...) of the prepared one's order as (C, I, J, K)."""
        return self._flipped(image).permute(0, *(1 + self.axes.index(axis) for axis in range(3)))

    def _flipped(self, image: torch.Tensor) -> torch.Tensor:
        axes = [1 + axis for axis, flip in enumerate(self.flips) if flip]
        return image.flip(axes) if axes else image  # a flip copies, also along no axis


class NnunetPreprocessd(MapTransform):
    """Prepare an image (C, I, J, K) as nnU-Net does: axes, crop to what is not 0, intensities, spacing.

    The result keeps the metadata of the image; `KEY_place` says how it lies in there, for `NnunetLabelsd`.
    """

    def __init__(
        self,
        keys: str | Sequence[str],
        spacing: Sequence[float],
        normalization: Sequence[Mapping[str, Any]],
        axes: Sequence[int] = (0, 1, 2),
        orientation: str | None = None,
        order: int = 3,
        separate: bool | None = None,
    ) -> None:
        """Take what the plans state.

        spacing: mm, of two axes for a network of slices. normalization: for each channel `scheme` and what it needs:
        `mask`, `mean`, `std`, `low`, `high`. axes: the plans' `transpose_forward`. orientation: directions that the
        axes I, J, K are turned to first, such as RAS; None: as they are. order, separate: of the resampling.
        """
        super().__init__(keys)
        self.spacing, self.normalization, self.axes = tuple(spacing), tuple(normalization), tuple(axes)
        self.orientation, self.order, self.separate = orientation, order, separate

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with its images prepared. Raises ValueError for another number of channels."""
        found = dict(data)
        for key in self.key_iterator(found):
            image, place = self._prepared(found[key])
            found[key], found[f"{key}_place"] = image, place.as_tensor()
        return found

    def _prepared(self, image: Any) -> tuple[MetaTensor, Place]:
        if len(image) != len(self.normalization):
            raise ValueError(f"expected {len(self.normalization)} channels, got {len(image)}")
        voxels = image.as_tensor() if isinstance(image, MetaTensor) else image
        affine = np.asarray(image.affine, np.float64) if isinstance(image, MetaTensor) else np.eye(4)
        flat = voxels.dim() == 3
        voxels = (voxels[..., None] if flat else voxels).float()
        axes, flips = _orientation(affine, self.orientation, flat) if self.orientation else ((0, 1, 2), (0, 0, 0))
        order = [2 - axis for axis in self.axes]  # the plans count the axes of SimpleITK's arrays
        spacing = np.linalg.norm(affine[:-1, :-1], axis=0)
        if flat:
            spacing = np.array([*spacing[:2], PLANE_SPACING * spacing[:2].max()])
        own = tuple(float(spacing[axes[n]]) for n in order)
        shape = tuple(voxels.shape[1 + axes[n]] for n in order)
        turned = tuple(axes[n] for n in order), tuple(flips[n] for n in order)
        place = Place(*turned, shape, (0, 0, 0), shape, own, flat)
        voxels = place.ordered(voxels)
        start, size = _box(voxels)
        place = replace(place, start=start, size=size)
        voxels = voxels[(slice(None), *place.box)].clone(memory_format=torch.contiguous_format)
        _normalise(voxels.numpy(), self.normalization)
        wanted = _wanted(own, self.spacing)
        axis = thick_axis(own, wanted, self.separate)
        voxels = resampled(voxels, Resampling(size, new_shape(size, own, wanted), axis, self.order))
        return MetaTensor(voxels, meta=getattr(image, "meta", None)), place


class NnunetLabelsd(MapTransform):
    """Turn logits, (heads, ...) of a prepared image, into labels on the image's own grid, as nnU-Net does.

    Logits are resampled before the largest one is taken, or, of regions, those above 0: in parts, so that they need no
    memory on the grid.
    """

    def __init__(
        self,
        keys: str | Sequence[str],
        spacing: Sequence[float],
        regions: Sequence[int] = (),
        image_key: str = "image",
        order: int = 1,
        separate: bool | None = None,
    ) -> None:
        """Take what the plans state.

        spacing: that of the prepared image (mm), as in `NnunetPreprocessd`. regions: the label of each head, if the
        heads are regions that may overlap; a later one is written over those before it. image_key: key of the prepared
        image. order, separate: of the resampling.
        """
        super().__init__(keys)
        self.spacing, self.regions, self.image_key = tuple(spacing), tuple(regions), image_key
        self.order, self.separate = order, separate

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with labels, (1, I, J, K), in place of logits."""
        found = dict(data)
        place = Place.of(found[f"{self.image_key}_place"])
        for key in self.key_iterator(found):
            logits = _plain(found[key])
            most = max(self.regions, default=len(logits) - 1)
            labels = torch.zeros(place.shape, dtype=torch.uint8 if most < 256 else torch.int32)
            inside = labels[place.box]
            for rows, part in self._parts(logits, place):
                inside[rows] = self._labelled(part).to(labels.dtype)
            found[key] = self._restored(labels[None], place, found)
        return found

    def probabilities(self, data: Mapping[Hashable, Any], key: str = "pred") -> MetaTensor:
        """Return what the labels are made of, (heads, I, J, K): the probability of each label, or of each region."""
        place, logits = Place.of(data[f"{self.image_key}_place"]), _plain(data[key])
        whole = torch.zeros((len(logits), *place.shape))
        if not self.regions:
            whole[0] = 1
        for rows, part in self._parts(logits, place):
            values = torch.stack(list(part)).float()
            whole[(slice(None), *place.box)][:, rows] = values.sigmoid() if self.regions else values.softmax(0)
        return self._restored(whole, place, data)

    def _parts(self, logits: torch.Tensor, place: Place) -> Iterator[tuple[slice, Iterator[torch.Tensor]]]:
        """Yield rows of the crop, and each head's logits there, rounded as they were."""
        wanted = _wanted(place.spacing, self.spacing)
        axis = thick_axis(wanted, place.spacing, self.separate)
        change = Resampling(tuple(logits.shape[1:]), place.size, axis, self.order)
        limits = [change.limits(head) for head in logits]
        for rows in change.places():
            heads = zip(logits, limits, strict=True)
            yield rows, (change.rows(head, rows, limit).to(logits.dtype) for head, limit in heads)

    def _labelled(self, heads: Iterator[torch.Tensor]) -> torch.Tensor:
        """Return the labels of some rows."""
        if self.regions:
            labels: Any = None
            for number, logits in zip(self.regions, heads, strict=True):
                labels = torch.zeros(logits.shape, dtype=torch.int32) if labels is None else labels
                labels[logits.float().sigmoid() > 0.5] = number
            return torch.as_tensor(labels)
        best = next(heads)
        labels = torch.zeros(best.shape, dtype=torch.int32)
        for number, logits in enumerate(heads, start=1):
            larger = logits > best
            labels[larger] = number
            best = torch.where(larger, logits, best)
        return labels

    def _restored(self, values: torch.Tensor, place: Place, data: Mapping[Hashable, Any]) -> MetaTensor:
        image = data[self.image_key]
        values = place.restored(values)
        values = values[..., 0] if place.flat else values
        return MetaTensor(values.contiguous(), meta=getattr(image, "meta", None))


def _plain(value: Any) -> torch.Tensor:
    tensor: torch.Tensor = value.as_tensor() if isinstance(value, MetaTensor) else value
    return tensor.cpu()


def _wanted(spacing: Sequence[float], plans: Sequence[float]) -> tuple[float, ...]:
    """Return the spacing that the plans ask for; networks of slices leave the distance of slices as it is."""
    return tuple(plans) if len(plans) == 3 else (spacing[0], *plans)


def _orientation(affine: np.ndarray, codes: str, flat: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the image's axis for each axis of one that is turned to `codes`, and which of them run the other way."""
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    if flat:
        raise ValueError("a 2D image has no orientation")
    turns = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    axes = [int(np.flatnonzero(turns[:, 0] == axis)[0]) for axis in range(3)]
    return tuple(axes), tuple(int(turns[axis, 1] < 0) for axis in axes)


def _box(voxels: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the first voxel and the size of the smallest box around all voxels that are not 0 in some channel."""
    used = (voxels != 0).any(0)
    sides = [used.any(dim=[n for n in range(3) if n != axis]).nonzero() for axis in range(3)]
    ends = [
        (int(side[0]), int(side[-1]) + 1) if len(side) else (0, n) for side, n in zip(sides, used.shape, strict=True)
    ]
    return tuple(first for first, _ in ends), tuple(last - first for first, last in ends)


def _normalise(voxels: np.ndarray, normalization: Sequence[Mapping[str, Any]]) -> None:
    """Change the intensities of an image, (C, ...) float32, in place, by the scheme of each channel."""
    inside = None
    if any(channel.get("mask") for channel in normalization):
        from scipy.ndimage import binary_fill_holes

        inside = binary_fill_holes((voxels != 0).any(0))
    for image, channel in zip(voxels, normalization, strict=True):
        scheme = channel["scheme"]
        if scheme == "CTNormalization":
            np.clip(image, channel["low"], channel["high"], out=image)
            image -= channel["mean"]
            image /= max(channel["std"], _SMALLEST)
        elif scheme == "ZScoreNormalization":
            where = inside if channel.get("mask") else None
            values = image if where is None else image[where]
            image[... if where is None else where] = (values - values.mean()) / max(values.std(), _SMALLEST)
        elif scheme == "RescaleTo01Normalization":
            image -= image.min()
            image /= max(image.max(), _SMALLEST)
        elif scheme == "RGBTo01Normalization":
            image /= 255
        elif scheme != "NoNormalization":
            raise ValueError(f"unknown normalization {scheme}")
