"""Random augmentation of batches of small images, for the train configs of classifiers.

Each operation takes a whole batch: for pictures of 28 x 28 pixels, MONAI's transforms, which take one image each, are
about fifty times slower than the network's step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.losses import ContrastiveLoss
from torch.nn import functional

from medkit.synthesis.base_transform import plain_tensor


@dataclass(frozen=True)
class Changes:
    """How far the images of a batch, with values from 0 to 1, are changed; each image is changed in its own way."""

    flips: Sequence[int] = ()
    """Spatial axes that are flipped in half of the images."""
    rotation: float = 15.0
    """Largest rotation to either side, in degrees; of a volume about each axis."""
    scale: float = 0.15
    """Largest share by which the size changes."""
    shift: float = 0.1
    """Largest share of an axis by which the centre moves; the border is repeated beyond the image."""
    gain: float = 0.2
    """Largest share by which the contrast changes, about the middle of the range."""
    offset: float = 0.1
    """Largest change of brightness."""
    gamma: float = 0.3
    """Largest logarithm of the exponent, to either side."""
    illumination: float = 0.2
    """Largest amplitude of a factor that changes slowly over the image."""
    noise: float = 0.05
    """Largest standard deviation of Gaussian noise."""
    salt_and_pepper: float = 0.02
    """Largest share of voxels that become 0 or 1."""
    erased: float = 0.0
    """Largest side of a box of one brightness that hides a part, as a share of the image's side."""
    occurrence: float = 0.5
    """Share of the images to which each change of values is applied."""
    rescaled: bool = False
    """Whether changed values are scaled to 0 to 1 between their 1st and 99th percentile, as the preprocessing of some
    bundles does; if not, they are clipped at 0 and 1."""
    mixup: float = 0.0
    """Parameter of the beta distribution by which pairs of images are mixed (Zhang et al. 2018); 0: no mixing."""


class AugmentedBatch:
    """MONAI's `prepare_batch` with random augmentation, and with targets as shares of classes.

    Args:
        classes: number of classes; None leaves the labels unchanged, for the metrics of a validation.
        changes: how far images are changed; None leaves them unchanged.

    Returns images (N, C, I, J[, K]) and targets (N, classes), each of which adds up to 1. Random numbers come from
    torch's global generator, which `medkit train` seeds before every step.
    """

    def __init__(self, classes: int | None, changes: Changes | None = None) -> None:
        if classes is None and changes and changes.mixup:
            raise ValueError(
                "AugmentedBatch: mixup needs shares of classes: expected a number of classes, or changes with mixup 0"
            )
        self.classes, self.changes = classes, changes

    def __call__(
        self, batch: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        images = plain_tensor(batch["image"].to(device, non_blocking=non_blocking))
        targets = batch["label"].to(device, non_blocking=non_blocking)
        if self.classes is not None:
            targets = functional.one_hot(targets.long().reshape(-1), self.classes).float()
        if self.changes is None:
            return images, targets
        return mixed(augmented(images, self.changes), targets, self.changes.mixup)


class TwoViews:
    """MONAI's `prepare_batch` for contrastive learning without labels (SimCLR, Chen et al. 2020).

    Returns (2 N, C, I, J[, K]): the images augmented once, then the same images augmented a second time; and, since
    engines expect targets, the numbers (2 N,) of the images.
    """

    def __init__(self, changes: Changes) -> None:
        self.changes = changes

    def __call__(
        self, batch: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        images = plain_tensor(batch["image"].to(device, non_blocking=non_blocking))
        views = torch.cat([augmented(images, self.changes), augmented(images, self.changes)])
        return views, torch.arange(len(images), device=images.device).repeat(2)


class PairLoss(torch.nn.Module):
    """MONAI's contrastive loss (NT-Xent) for a network's output (2 N, F) for the views of `TwoViews`."""

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        self.loss = ContrastiveLoss(temperature)

    def forward(self, made: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Return the mean over views; the numbers of the images are not used, since pairs stand N apart."""
        loss: torch.Tensor = self.loss(*made.chunk(2))
        return loss


def pairs_found(made: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return whether each first view is more similar (cosine) to its own second view than to others, (N,) of 0 and 1.

    made: a network's output (2 N, F) for `TwoViews`. The second value returned is (N,) ones, the right answers that a
    metric such as accuracy expects.
    """
    first, second = functional.normalize(made.float()).chunk(2)
    found = (first @ second.T).argmax(1) == torch.arange(len(first), device=made.device)
    return found.long(), torch.ones_like(found).long()


def augmented(images: torch.Tensor, changes: Changes) -> torch.Tensor:
    """Return images (N, C, I, J[, K]), each changed in its own way; values stay within 0 and 1."""
    out = _resampled(images, _drawn_affines(images, changes))
    for change in (_tone, _illuminated, _noisy, _salted, _erased):
        done = torch.rand(len(out), device=out.device) < changes.occurrence
        out = torch.where(_spread(done, out), change(out, changes), out)
    return (_scaled(out) if changes.rescaled else out).clamp(0, 1)


def mixed(images: torch.Tensor, targets: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each image mixed with another one of the batch, and its target mixed by the same share."""
    if alpha <= 0:
        return images, targets
    share = torch.distributions.Beta(alpha, alpha).sample((len(images),)).to(images.device)
    other = torch.randperm(len(images), device=images.device)
    weight = _spread(share, images)
    share = share[:, None]
    return weight * images + (1 - weight) * images[other], share * targets + (1 - share) * targets[other]


def _spread(values: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return values (N,) with the axes of images (N, C, I, J[, K]), so that they can be multiplied."""
    return values.reshape(-1, *[1] * (images.dim() - 1))


def _drawn(images: torch.Tensor, most: float) -> torch.Tensor:
    """Return a random number for each image, (N, 1, 1, 1[, 1]), from -most to most."""
    return _spread((2 * torch.rand(len(images), device=images.device) - 1) * most, images)


def _drawn_affines(images: torch.Tensor, changes: Changes) -> torch.Tensor:
    """Return random affines (N, d, d + 1) from the result to the image, both from -1 to 1 along each axis."""
    count, dims = len(images), images.dim() - 2
    uniform = lambda *size: 2 * torch.rand(*size, device=images.device) - 1  # noqa: E731
    linear = torch.eye(dims, device=images.device).repeat(count, 1, 1)
    for first, second in ((a, b) for a in range(dims) for b in range(a + 1, dims)):
        angle = uniform(count) * math.radians(changes.rotation)
        turn = torch.eye(dims, device=images.device).repeat(count, 1, 1)
        turn[:, first, first] = turn[:, second, second] = angle.cos()
        turn[:, first, second], turn[:, second, first] = -angle.sin(), angle.sin()
        linear = linear @ turn
    linear = linear * (1 + uniform(count, 1, 1) * changes.scale)
    for axis in changes.flips:
        # the axes of grid_sample run from the last one to the first
        linear[:, dims - 1 - axis] *= torch.where(torch.rand(count, 1, device=images.device) < 0.5, -1.0, 1.0)
    return torch.cat([linear, uniform(count, dims, 1) * 2 * changes.shift], 2)


def _resampled(images: torch.Tensor, affines: torch.Tensor) -> torch.Tensor:
    grid = functional.affine_grid(affines, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _tone(images: torch.Tensor, changes: Changes) -> torch.Tensor:
    """Change gamma, contrast and brightness."""
    bent = images.clamp(0, 1) ** _drawn(images, changes.gamma).exp()
    return ((bent - 0.5) * (1 + _drawn(images, changes.gain)) + 0.5 + _drawn(images, changes.offset)).clamp(0, 1)


def _illuminated(images: torch.Tensor, changes: Changes) -> torch.Tensor:
    """Multiply by a factor that changes slowly over the image."""
    coarse = torch.rand(len(images), 1, *[3] * (images.dim() - 2), device=images.device) * 2 - 1
    mode = "bilinear" if images.dim() == 4 else "trilinear"
    return images * (1 + changes.illumination * functional.interpolate(coarse, images.shape[2:], mode=mode))


def _scaled(images: torch.Tensor) -> torch.Tensor:
    """Scale each image to 0 to 1 between its 1st and 99th percentile."""
    shares = torch.tensor([0.01, 0.99], device=images.device)
    low, high = (_spread(values, images) for values in images.flatten(1).quantile(shares, dim=1))
    return (images - low) / (high - low).clamp(min=1e-3)


def _noisy(images: torch.Tensor, changes: Changes) -> torch.Tensor:
    return images + torch.randn_like(images) * _drawn(images, changes.noise)


def _salted(images: torch.Tensor, changes: Changes) -> torch.Tensor:
    """Set some voxels to 0 and some to 1."""
    draw = torch.rand_like(images)
    share = _drawn(images, changes.salt_and_pepper).abs() / 2
    return torch.where(draw < share, 0.0, torch.where(draw > 1 - share, 1.0, images))


def _erased(images: torch.Tensor, changes: Changes) -> torch.Tensor:
    """Set a box of each image to one brightness."""
    if not changes.erased:
        return images
    inside = torch.ones_like(images[:, :1], dtype=torch.bool)
    for axis, size in enumerate(images.shape[2:], start=2):
        place = torch.arange(size, device=images.device).reshape([-1 if a == axis else 1 for a in range(images.dim())])
        centre = (_drawn(images, 0.5) + 0.5) * size
        inside &= (place - centre).abs() < _drawn(images, changes.erased / 2).abs() * size
    return torch.where(inside, _drawn(images, 0.5) + 0.5, images)
