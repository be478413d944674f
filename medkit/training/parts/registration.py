"""Registration networks in training: pairs, moved labels, losses."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.networks.blocks import DVF2DDF
from monai.transforms import MapTransform
from torch import nn
from torch.nn import functional

from medkit.synthesis.deformation import nearest
from medkit.synthesis.registration_pairs import plain
from medkit.training.parts.losses import DiceCrossEntropyLoss


def prepare_pair(
    batch: Mapping[str, torch.Tensor], device: torch.device, non_blocking: bool = False, **_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch as MONAI's `prepare_batch` gives it, without metadata, which cost time in every operation."""
    image, label = (torch.as_tensor(batch[key]).to(device, non_blocking=non_blocking) for key in ("image", "label"))
    return plain(image), plain(label)


class MovedLabelsd(MapTransform):
    """Puts one-hot labels (C, I, J, K), moved and fixed, in the place of a velocity field and labels (2, I, J, K)."""

    def __init__(self, keys: KeysCollection, label_key: str, classes: int, squarings: int = 6) -> None:
        super().__init__(keys)
        self.label_key, self.classes, self.squarings = label_key, classes, squarings

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        fixed, moving = torch.as_tensor(out[self.label_key])
        for key in self.key_iterator(out):
            at = positions(torch.as_tensor(out[key])[None].float(), moving.shape, self.squarings)[0]
            out[key] = self._one_hot(nearest(moving, list(at)))
        out[self.label_key] = self._one_hot(fixed)
        return out

    def _one_hot(self, labels: torch.Tensor) -> torch.Tensor:
        return torch.stack([labels == n for n in range(self.classes)]).float()


def positions(velocity: torch.Tensor, shape: Sequence[int], squarings: int = 6) -> torch.Tensor:
    """(B, 3, *shape) where a stationary velocity field (B, 3, i, j, k) takes the voxels of an image, in voxels.

    The field is in steps of its own lattice, whose cells are whole voxels of the image; time is 1.
    """
    flow = DVF2DDF(num_steps=squarings, mode="bilinear", padding_mode="border")(velocity)
    moved = functional.interpolate(flow, tuple(shape), mode="trilinear", align_corners=False)
    axes = torch.meshgrid(*(torch.arange(n, device=velocity.device) for n in shape), indexing="ij")
    ratio = torch.tensor([n / m for n, m in zip(shape, velocity.shape[2:], strict=True)], device=velocity.device)
    return moved * ratio.reshape(3, 1, 1, 1) + torch.stack(axes)


class LabelOverlapLoss(nn.Module):
    """1 - the mean Dice of the labels that both images show, the moving ones moved, + `smoothness` times roughness.

    Roughness is the mean square of the slopes of the velocity field, which have no unit. Labels are interpolated
    linearly as one-hot volumes would be, without making any: a fraction of the time with 32 labels.
    """

    def __init__(self, classes: int, smoothness: float = 1.0, squarings: int = 6) -> None:
        super().__init__()
        self.classes, self.smoothness, self.squarings = classes, smoothness, squarings

    def forward(self, velocity: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """velocity: (B, 3, i, j, k), see `positions`; labels: (B, 2, I, J, K) 0 .. classes - 1, fixed and moving."""
        velocity, labels = torch.as_tensor(velocity).float(), torch.as_tensor(labels)
        at = positions(velocity, labels.shape[2:], self.squarings)
        dice = [self._dice(pair[0], pair[1], where) for pair, where in zip(labels, at, strict=True)]
        return 1 - torch.stack(dice).mean() + self.smoothness * roughness(velocity)

    def _dice(self, fixed: torch.Tensor, moving: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        # far from both heads' labels nothing can overlap
        near = widened((torch.maximum(fixed, moving) > 0).float()).reshape(-1).nonzero()[:, 0]
        own, at = fixed.reshape(-1)[near].int(), at.reshape(3, -1)[:, near]
        limits = [n - 1 for n in moving.shape]
        at = torch.stack([along.clamp(0, limit) for along, limit in zip(at, limits, strict=True)])
        below = torch.stack([a.detach().floor().clamp(0, n - 1) for a, n in zip(at, limits, strict=True)])
        part = at - below
        low = below.int()
        flat = moving.reshape(-1)
        shared, moved = at.new_zeros(self.classes), at.new_zeros(self.classes)
        for i in (0, 1):
            for j in (0, 1):
                for k in (0, 1):
                    weight = torch.ones_like(part[0])
                    for along, upper in zip(part, (i, j, k), strict=True):
                        weight = weight * (along if upper else 1 - along)
                    index = ((low[0] + i) * moving.shape[1] + low[1] + j) * moving.shape[2] + low[2] + k
                    found = flat.index_select(0, index).int()
                    moved = moved.index_add(0, found, weight)
                    shared = shared.index_add(0, found, weight * (found == own))
        count = torch.bincount(own, minlength=self.classes)
        present = (count > 0) & (torch.bincount(flat.int(), minlength=self.classes) > 0)
        present[0] = False
        dice = 2 * shared / (count + moved).clamp_min(1)
        return (dice * present).sum() / present.sum().clamp_min(1)


class AlignmentLoss(nn.Module):
    """What a network is to make small that aligns two images, and may tell what it sees in them.

    `registration` times `overlap`, plus `segmentation` times the mean Dice and cross entropy of the labels that `head`,
    a transposed convolution by 2, makes of what was seen. Of the eight voxels that it makes of each one, all at the
    same place in a step: an eighth of the time.
    """

    def __init__(
        self,
        overlap: LabelOverlapLoss,
        head: nn.ConvTranspose3d,
        segmentation: float = 0.0,
        registration: float = 1.0,
    ) -> None:
        super().__init__()
        self.overlap, self.segmentation, self.registration = overlap, segmentation, registration
        self._head = [head]  # not as a module of this one: it is the network's
        self.labels = DiceCrossEntropyLoss()

    def forward(self, pred: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """pred: (B, 3 + 2 F, i, j, k), velocity and both images' features; labels: (B, 2, 2i, 2j, 2k)."""
        pred, labels = pred.float(), torch.as_tensor(labels)
        loss: torch.Tensor = self.registration * self.overlap(pred[:, :3], labels)
        if not self.segmentation:
            return loss
        head = self._head[0]
        a, b, c = (int(n) for n in torch.randint(2, (3,)))
        weight = head.weight[:, :, a, b, c].T[..., None, None, None]
        logits = functional.conv3d(torch.cat(pred[:, 3:].chunk(2, 1)), weight, head.bias)
        found = torch.cat([labels[:, :1], labels[:, 1:]])[..., a::2, b::2, c::2]
        return loss + self.segmentation * self.labels(logits, found)


def widened(mask: torch.Tensor, reach: int = 2) -> torch.Tensor:
    """A mask (I, J, K) grown by `reach` voxels along each axis."""
    out = mask[None]
    for axis in range(3):  # one after the other: far cheaper than a cube
        size = [2 * reach + 1 if a == axis else 1 for a in range(3)]
        out = functional.max_pool3d(out, size, 1, [n // 2 for n in size])
    return out[0]


def roughness(field: torch.Tensor) -> torch.Tensor:
    """The mean square of the slopes of (B, 3, i, j, k), from one point to the next."""
    return torch.stack([field.diff(dim=axis).square().mean() for axis in (2, 3, 4)]).mean()
