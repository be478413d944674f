"""The network that aligns two images: a U-Net that finds structures in each, and a second one that compares them."""

from typing import List

import torch
from monai.networks.nets import DynUNet
from torch import nn
from torch.nn import functional

__all__ = ["Aligner"]


class Aligner(nn.Module):
    """The velocity field between a fixed and a moving image.

    One U-Net looks at each image alone, so that it learns what structures look like in any contrast. Another one
    compares what was found in the two, and adds to what would bring structures nearer to each other at several scales:
    the forces of the demons algorithm (Thirion 1998), between probabilities rather than intensities. Both U-Nets are
    MONAI's DynUNet.

    Args:
        seen: channels of the first one's levels; the first level is at half of the image's resolution.
        compared: those of the second one's, at the same.
        classes: structures, the background included.
        scales: voxels of the velocity's lattice over which forces are averaged.
    """

    def __init__(
        self,
        seen: List[int],  # noqa: UP006
        compared: List[int],  # noqa: UP006
        classes: int = 32,
        scales: List[int] = [1, 2, 4],  # noqa: UP006, B006
    ) -> None:
        super().__init__()
        self.classes = classes
        # as brain_mri_segmentation has it, so that it may begin with the weights of that
        self.finder = nn.Sequential(
            unet(4, seen[0], seen, [2] * len(seen)), nn.LeakyReLU(0.01), nn.ConvTranspose3d(seen[0], classes, 2, 2)
        )
        self.scales = scales
        self.shares = nn.Parameter(0.5 / torch.tensor(scales))
        self.given = nn.Conv3d(2 * classes + 3 * len(scales), compared[0], 1)
        self.comparison = unet(compared[0], 3, compared, [1] + [2] * (len(compared) - 1))
        nn.init.normal_(self.comparison.output_block.conv.conv.weight, 0.0, 0.003)
        nn.init.zeros_(self.comparison.output_block.conv.conv.bias)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, I / 2, J / 2, K / 2) velocity, in steps of that lattice, of (B, 2, I, J, K), fixed and moving.

        Sizes are multiples of 16. In training there is more: the velocity of the moving image's points to the fixed
        one's, and what was seen in the two, of which `head` makes logits: (B, 6 + 2 * seen[0], ...).
        """
        fixed_seen, moving_seen = self.seen(image[:, :1]), self.seen(image[:, 1:])
        fixed, moving = self.found(fixed_seen), self.found(moving_seen)
        there = self.compared(fixed, moving)
        if not self.training:
            return there
        return torch.cat([there, self.compared(moving, fixed), fixed_seen, moving_seen], 1)

    def seen(self, image: torch.Tensor) -> torch.Tensor:
        """(B, seen[0], I / 2, J / 2, K / 2) of one image (B, 1, I, J, K) and the place of its voxels."""
        places = torch.meshgrid(
            [torch.linspace(-0.5, 0.5, n, device=image.device, dtype=image.dtype) for n in image.shape[2:]],
            indexing="ij",
        )
        place = torch.stack(places)[None].expand(image.shape[0], -1, -1, -1, -1)
        return self.finder[1](self.finder[0](torch.cat([image, place], 1)))

    def found(self, seen: torch.Tensor) -> torch.Tensor:
        """(B, classes, ...) probabilities of the labels at half of the image's resolution."""
        head = self.finder[2]
        weight = head.weight.mean([2, 3, 4]).t()[:, :, None, None, None]
        return functional.conv3d(seen, weight, head.bias).float().softmax(1)

    def compared(self, fixed: torch.Tensor, moving: torch.Tensor) -> torch.Tensor:
        """(B, 3, ...) velocity between probabilities (B, classes, ...)."""
        pulls = [force(fixed, moving, scale) for scale in self.scales]
        out = self.comparison(self.given(torch.cat([fixed, moving, torch.cat(pulls, 1)], 1)))
        for share, pull in zip(self.shares, pulls):  # noqa: B905
            out = out + share * pull
        return out


def force(fixed: torch.Tensor, moving: torch.Tensor, scale: int) -> torch.Tensor:
    """(B, 3, I, J, K) steps that bring `moving` (B, C, I, J, K) to `fixed`, one Gauss-Newton step at every point.

    Both are averaged over `scale` voxels first.
    """
    size = fixed.shape[2:]
    if scale > 1:
        fixed, moving = functional.avg_pool3d(fixed, scale), functional.avg_pool3d(moving, scale)
    difference = moving - fixed
    mean = functional.pad((moving + fixed) / 2, [1, 1, 1, 1, 1, 1], mode="replicate")
    slopes = [
        (mean[:, :, 2:, 1:-1, 1:-1] - mean[:, :, :-2, 1:-1, 1:-1]) / 2,
        (mean[:, :, 1:-1, 2:, 1:-1] - mean[:, :, 1:-1, :-2, 1:-1]) / 2,
        (mean[:, :, 1:-1, 1:-1, 2:] - mean[:, :, 1:-1, 1:-1, :-2]) / 2,
    ]
    pull = torch.stack([-(difference * slope).sum(1) for slope in slopes], 1)
    stiff = torch.stack([slope.square().sum(1) for slope in slopes], 1).sum(1, keepdim=True)
    pull, stiff = (functional.avg_pool3d(x, 3, 1, 1) for x in (pull, stiff))
    step = pull / (stiff + 0.02) * scale
    if scale > 1:
        step = functional.interpolate(step, size=size, mode="trilinear")
    return step


def unet(given: int, made: int, channels: List[int], strides: List[int]) -> DynUNet:  # noqa: UP006
    """A DynUNet of `channels` per level."""
    return DynUNet(
        spatial_dims=3,
        in_channels=given,
        out_channels=made,
        kernel_size=[3] * len(channels),
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=channels,
        norm_name=("INSTANCE", {"affine": True}),
    )
