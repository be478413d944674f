"""Training of registration networks: batches of pairs, moved labels, losses."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.networks.blocks import DVF2DDF
from monai.transforms import MapTransform
from torch import nn
from torch.nn import functional

from medkit.synthesis.base_transform import plain_tensor
from medkit.synthesis.deformation import nearest
from medkit.training.parts.losses import DiceCrossEntropyLoss


def prepare_pair(
    batch: Mapping[str, torch.Tensor], device: torch.device, non_blocking: bool = False, **_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the image and label of a batch without metadata: MONAI's `prepare_batch` for registration networks."""
    image, label = (torch.as_tensor(batch[key]).to(device, non_blocking=non_blocking) for key in ("image", "label"))
    return plain_tensor(image), plain_tensor(label)


class MovedLabelsd(MapTransform):
    """Replaces a velocity field and labels (2, I, J, K) by the moved and the fixed labels, one-hot (C, I, J, K)."""

    def __init__(self, keys: KeysCollection, label_key: str, classes: int, squarings: int = 6) -> None:
        super().__init__(keys)
        self.label_key, self.classes, self.squarings = label_key, classes, squarings

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        fixed, moving = torch.as_tensor(out[self.label_key])
        for key in self.key_iterator(out):
            index = positions(torch.as_tensor(out[key])[None].float(), moving.shape, self.squarings)[0]
            out[key] = self._one_hot(nearest(moving, list(index)))
        out[self.label_key] = self._one_hot(fixed)
        return out

    def _one_hot(self, labels: torch.Tensor) -> torch.Tensor:
        return torch.stack([labels == n for n in range(self.classes)]).float()


def positions(velocity: torch.Tensor, shape: Sequence[int], squarings: int = 6) -> torch.Tensor:
    """Return the positions (B, 3, *shape), in voxels, to which a velocity field takes the voxels of an image in time 1.

    velocity: (B, 3, i, j, k), stationary, in steps of its own lattice, whose cells are a whole number of voxels.
    """
    flow = DVF2DDF(num_steps=squarings, mode="bilinear", padding_mode="border")(velocity)
    moved = functional.interpolate(flow, tuple(shape), mode="trilinear", align_corners=False)
    axes = torch.meshgrid(*(torch.arange(n, device=velocity.device) for n in shape), indexing="ij")
    ratio = torch.tensor([n / m for n, m in zip(shape, velocity.shape[2:], strict=True)], device=velocity.device)
    return moved * ratio.reshape(3, 1, 1, 1) + torch.stack(axes)


class LabelOverlapLoss(nn.Module):
    """1 - mean Dice of the fixed and the moved labels that both images show + `smoothness` times roughness.

    Roughness is the mean square of the slopes of the velocity field, which have no unit. Labels are interpolated
    linearly as one-hot volumes would be, but without such volumes, which takes a fraction of the time with 32 labels.
    """

    def __init__(self, classes: int, smoothness: float = 1.0, squarings: int = 6) -> None:
        super().__init__()
        self.classes, self.smoothness, self.squarings = classes, smoothness, squarings

    def forward(self, velocity: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """velocity: (B, 3, i, j, k), see `positions`; labels: (B, 2, I, J, K) 0 .. classes - 1, fixed and moving."""
        velocity, labels = torch.as_tensor(velocity).float(), torch.as_tensor(labels)
        index = positions(velocity, labels.shape[2:], self.squarings)
        dice = [self._dice(pair[0], pair[1], where) for pair, where in zip(labels, index, strict=True)]
        return 1 - torch.stack(dice).mean() + self.smoothness * roughness(velocity)

    def _dice(self, fixed: torch.Tensor, moving: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return the mean Dice of labels (I, J, K), the moving ones interpolated at `index`, (3, I, J, K)."""
        # far from both heads' labels nothing can overlap
        near = widened((torch.maximum(fixed, moving) > 0).float()).reshape(-1).nonzero()[:, 0]
        own, index = fixed.reshape(-1)[near].int(), index.reshape(3, -1)[:, near]
        limits = [n - 1 for n in moving.shape]
        index = torch.stack([along.clamp(0, limit) for along, limit in zip(index, limits, strict=True)])
        below = torch.stack([a.detach().floor().clamp(0, n - 1) for a, n in zip(index, limits, strict=True)])
        part = index - below
        low = below.int()
        flat = moving.reshape(-1)
        shared, moved = index.new_zeros(self.classes), index.new_zeros(self.classes)
        for i, j, k in itertools.product((0, 1), repeat=3):
            weight = torch.ones_like(part[0])
            for along, upper in zip(part, (i, j, k), strict=True):
                weight = weight * (along if upper else 1 - along)
            corner = ((low[0] + i) * moving.shape[1] + low[1] + j) * moving.shape[2] + low[2] + k
            found = flat.index_select(0, corner).int()
            moved = moved.index_add(0, found, weight)
            shared = shared.index_add(0, found, weight * (found == own))
        count = torch.bincount(own, minlength=self.classes)
        present = (count > 0) & (torch.bincount(flat.int(), minlength=self.classes) > 0)
        present[0] = False
        dice = 2 * shared / (count + moved).clamp_min(1)
        return (dice * present).sum() / present.sum().clamp_min(1)


class AlignmentLoss(nn.Module):
    """Loss of a network that aligns two images and may also segment them.

    `registration` times `overlap`, plus `segmentation` times the Dice and cross entropy loss of the labels that `head`,
    a transposed convolution by 2, makes of the features. Of the eight voxels that it makes of each one, a step uses
    only the one at a random place, the same everywhere, which takes an eighth of the time.
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
        self._head = [head]  # in a list, so that it stays a module of the network and not of this loss
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
    """Return a mask (I, J, K) grown by `reach` voxels along each axis."""
    out = mask[None]
    for axis in range(3):  # axis by axis, which is far cheaper than a cube
        size = [2 * reach + 1 if a == axis else 1 for a in range(3)]
        out = functional.max_pool3d(out, size, 1, [n // 2 for n in size])
    return out[0]


def roughness(field: torch.Tensor) -> torch.Tensor:
    """Return the mean square of the slopes of a field (B, 3, i, j, k), from one point to the next."""
    return torch.stack([field.diff(dim=axis).square().mean() for axis in (2, 3, 4)]).mean()
