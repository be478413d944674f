"""The network that aligns two images: a U-Net that finds structures in each, and a second one that compares them."""

import torch
from torch import nn
from torch.nn import functional

from .unet import RegistrationUNet

__all__ = ["Aligner"]


class Aligner(nn.Module):
    """The velocity field between a fixed and a moving image.

    One U-Net looks at each image alone, so that it learns what structures look like in any contrast. Then, step by
    step, what brings structures nearer to each other is added to the velocity: the forces of the demons algorithm
    (Thirion 1998) at several scales, between probabilities rather than intensities, and what a second, small U-Net
    makes of the two.

    Args:
        seen: channels of the first one's levels; the first level is at half of the image's resolution.
        compared: those of the second one's, at the same.
        classes: structures, the background included.
        steps: how often the two are compared.
    """

    def __init__(
        self,
        seen: list[int],
        compared: list[int],
        classes: int = 32,
        steps: int = 3,
    ) -> None:
        super().__init__()
        # as brain_mri_segmentation has it, so that it may begin with the weights of that
        self.finder = nn.Sequential(
            RegistrationUNet(4, seen[0], seen, 2), nn.LeakyReLU(0.01), nn.ConvTranspose3d(seen[0], classes, 2, 2)
        )
        self.scales = [1, 2, 4]  # points over which forces are averaged
        self.steps = steps
        self.shares = nn.Parameter(torch.tensor([[0.6, 0.3, 0.1]] * steps))
        self.given = nn.Conv3d(2 * classes + 3 * len(self.scales), compared[0], 1)
        self.comparison = RegistrationUNet(compared[0], 3, compared, 1, last=0.003)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, I / 2, J / 2, K / 2) velocity, in steps of that lattice, of (B, 2, I, J, K), fixed and moving.

        Sizes are multiples of 16. In training there is more: what was seen in the two images, of which the last layer
        of `finder` makes logits: (B, 3 + 2 * seen[0], ...).
        """
        fixed, moving = self.seen(image[:, :1]), self.seen(image[:, 1:])
        velocity = self.compared(self.found(fixed), self.found(moving))
        return torch.cat([velocity, fixed, moving], 1) if self.training else velocity

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
        weight = head.weight.mean([2, 3, 4]).t()[:, :, None, None, None]  # type: ignore[operator]
        return functional.conv3d(seen, weight, head.bias).float().softmax(1)  # type: ignore[arg-type]

    def compared(self, fixed: torch.Tensor, moving: torch.Tensor) -> torch.Tensor:
        """(B, 3, ...) velocity between probabilities (B, classes, ...)."""
        velocity = torch.zeros_like(fixed[:, :3])
        moved = moving
        for step in range(self.steps):
            if step > 0:
                velocity = velocity.detach()  # the last step alone is learned from: in half of the time
                moved = sampled(moving.detach(), flow(velocity))
            pulls = [force(fixed, moved, scale) for scale in self.scales]
            change = self.comparison(self.given(torch.cat([fixed, moved, torch.cat(pulls, 1)], 1)))
            for number, pull in enumerate(pulls):
                change = change + self.shares[step, number] * pull
            velocity = velocity + change
            velocity = (velocity + functional.avg_pool3d(velocity, 3, 1, 1)) / 2
        return velocity


def flow(velocity: torch.Tensor, squarings: int = 6) -> torch.Tensor:
    """(B, 3, I, J, K) where a stationary velocity takes points in time 1, both in steps of their lattice."""
    out = velocity / 2**squarings
    for _ in range(squarings):
        out = out + sampled(out, out)
    return out


def sampled(image: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """(B, C, I, J, K) an image's values at its voxels moved by `shift` (B, 3, I, J, K), in voxels; its border repeats.

    Linear interpolation.
    """
    size = image.shape[2:]
    axes = [torch.arange(n, device=image.device, dtype=shift.dtype) for n in size]
    index = shift + torch.stack(torch.meshgrid(axes, indexing="ij"))
    scaled = torch.stack([index[:, n] * (2.0 / (size[n] - 1)) - 1 for n in (2, 1, 0)], -1)
    return functional.grid_sample(image, scaled, mode="bilinear", padding_mode="border", align_corners=True)


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
