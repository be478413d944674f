"""Network that aligns two images: a U-Net finds structures in each image, and a second one compares them."""

import torch
from torch import nn
from torch.nn import functional

from .unet import RegistrationUNet

__all__ = ["Aligner"]


class Aligner(nn.Module):
    """Finds the velocity field between a fixed and a moving image.

    One U-Net sees each image by itself, so that it learns what structures look like in any contrast. Then, step by
    step, changes that bring structures nearer to each other are added to the velocity: the forces of the demons
    algorithm (Thirion 1998) at several scales, between probabilities rather than intensities, and the output of a
    second, small U-Net for both images.

    Args:
        seen: channels of the levels of the first U-Net; its first level has half of the image's resolution.
        compared: channels of the levels of the second U-Net, at the same resolutions.
        classes: number of structures, the background included.
        steps: number of comparisons.
    """

    def __init__(
        self,
        seen: list[int],
        compared: list[int],
        classes: int = 32,
        steps: int = 3,
    ) -> None:
        super().__init__()
        # as in brain_mri_segmentation, so that it can start with those weights
        self.finder = nn.Sequential(
            RegistrationUNet(4, seen[0], seen, 2), nn.LeakyReLU(0.01), nn.ConvTranspose3d(seen[0], classes, 2, 2)
        )
        self.scales = [1, 2, 4]  # points over which forces are averaged
        self.steps = steps
        self.shares = nn.Parameter(torch.tensor([[0.6, 0.3, 0.1]] * steps))
        self.given = nn.Conv3d(2 * classes + 3 * len(self.scales), compared[0], 1)
        self.comparison = RegistrationUNet(compared[0], 3, compared, 1, last=0.003)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the velocity (B, 3, I / 2, J / 2, K / 2), in steps of that lattice, of images (B, 2, I, J, K).

        The fixed image is the first channel, the moving one the second. Sizes are multiples of 16. In training the
        features of both images follow, (B, 3 + 2 * seen[0], ...); the last layer of `finder` turns them into logits.
        """
        fixed, moving = self.seen(image[:, :1]), self.seen(image[:, 1:])
        velocity = self.compared(self.found(fixed), self.found(moving))
        return torch.cat([velocity, fixed, moving], 1) if self.training else velocity

    def seen(self, image: torch.Tensor) -> torch.Tensor:
        """Return features (B, seen[0], I / 2, J / 2, K / 2) of an image (B, 1, I, J, K) and its voxels' places."""
        places = torch.meshgrid(
            [torch.linspace(-0.5, 0.5, n, device=image.device, dtype=image.dtype) for n in image.shape[2:]],
            indexing="ij",
        )
        place = torch.stack(places)[None].expand(image.shape[0], -1, -1, -1, -1)
        return self.finder[1](self.finder[0](torch.cat([image, place], 1)))

    def found(self, seen: torch.Tensor) -> torch.Tensor:
        """Return the labels' probabilities (B, classes, ...), at half of the image's resolution, from features."""
        head = self.finder[2]
        weight = head.weight.mean([2, 3, 4]).t()[:, :, None, None, None]  # type: ignore[operator]
        return functional.conv3d(seen, weight, head.bias).float().softmax(1)  # type: ignore[arg-type]

    def compared(self, fixed: torch.Tensor, moving: torch.Tensor) -> torch.Tensor:
        """Return the velocity (B, 3, ...) between probabilities (B, classes, ...)."""
        velocity = torch.zeros_like(fixed[:, :3])
        moved = moving
        for step in range(self.steps):
            if step > 0:
                velocity = velocity.detach()  # only the last step is trained, which takes half of the time
                moved = sampled(moving.detach(), flow(velocity))
            pulls = [force(fixed, moved, scale) for scale in self.scales]
            change = self.comparison(self.given(torch.cat([fixed, moved, torch.cat(pulls, 1)], 1)))
            for number, pull in enumerate(pulls):
                change = change + self.shares[step, number] * pull
            velocity = velocity + change
            velocity = (velocity + functional.avg_pool3d(velocity, 3, 1, 1)) / 2
        return velocity


def flow(velocity: torch.Tensor, squarings: int = 6) -> torch.Tensor:
    """Return the displacement (B, 3, I, J, K) of a stationary velocity in time 1, both in steps of their lattice."""
    out = velocity / 2**squarings
    for _ in range(squarings):
        out = out + sampled(out, out)
    return out


def sampled(image: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Return an image's values (B, C, I, J, K) at its voxels moved by `shift` (B, 3, I, J, K), in voxels.

    Interpolation is linear; beyond the border the border is repeated.
    """
    size = image.shape[2:]
    axes = [torch.arange(n, device=image.device, dtype=shift.dtype) for n in size]
    index = shift + torch.stack(torch.meshgrid(axes, indexing="ij"))
    scaled = torch.stack([index[:, n] * (2.0 / (size[n] - 1)) - 1 for n in (2, 1, 0)], -1)
    return functional.grid_sample(image, scaled, mode="bilinear", padding_mode="border", align_corners=True)


def force(fixed: torch.Tensor, moving: torch.Tensor, scale: int) -> torch.Tensor:
    """Return steps (B, 3, I, J, K) that bring `moving` (B, C, I, J, K) to `fixed`: a Gauss-Newton step at every point.

    Both are first averaged over `scale` voxels.
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
