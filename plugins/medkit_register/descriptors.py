"""Self-similarity descriptors: what makes scans of unlike contrasts comparable (MIND; Heinrich et al. 2012).

A point is described by how much the patches one step away differ from its own, each way along each axis, measured by
how much they differ on average. No intensity is left in that, only the shape of what lies around, and so the
descriptors of a CT and of an MR are compared by plain squared differences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medkit_register.warp import smooth_field

if TYPE_CHECKING:
    import torch

PATCH = 0.5
"""Standard deviation of a patch in lattice steps."""
SUPPORT = 1.0
"""About the same of all that a descriptor rests on."""
FLOOR = 0.2
"""Of the object's median of mean differences, added to each point's: in flat regions all else is noise."""
GAIN = 2.0
"""Descriptors run from 0 to this, so that their squares add up to about what those of the other metrics do."""
EVEN = 0.5
"""How far intensities are spread evenly."""
OBJECT = 0.3
"""Share of the threshold between background and object above which intensities count as the object's."""
SAMPLE = 200_000
"""Voxels from which quantiles are taken."""


def descriptors(image: torch.Tensor, threshold: float) -> torch.Tensor:
    """(C, I, J, K) of an image (I, J, K): two for each axis with more than one point.

    `threshold` is the intensity between background and object.
    """
    import torch

    on = image > OBJECT * threshold
    image = evened(image, on)
    out = torch.stack([d for axis, size in enumerate(image.shape) if size > 1 for d in differences(image, axis)])
    unit = out.mean(0)
    inner = unit[on] if bool(on.any()) else unit.reshape(-1)
    unit += FLOOR * float(inner[:: max(1, len(inner) // SAMPLE)].median()) + 1e-9
    return out.sub_(out.amin(0)).div_(unit).neg_().exp_().mul_(GAIN)


def differences(image: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squared difference of each point's patch from the next one along an axis and from the one before."""
    import torch

    size = image.shape[axis]
    onward = torch.zeros_like(image)
    step = image.narrow(axis, 1, size - 1) - image.narrow(axis, 0, size - 1)
    onward.narrow(axis, 0, size - 1).copy_(step.square_())
    onward = smooth_field(onward[None], PATCH)[0]
    back = torch.cat([onward.narrow(axis, 0, 1), onward.narrow(axis, 0, size - 1)], axis)
    return onward, back


def evened(image: torch.Tensor, on: torch.Tensor) -> torch.Tensor:
    """(I, J, K) midway between intensities and their ranks, 0..1, among those where `on` (I, J, K) bool is true.

    Soft tissue spans a fiftieth of a CT's intensities, and beside bone it would leave no trace.
    """
    import torch

    values = image[on]
    if not len(values):
        return image
    ranks = torch.linspace(0, 1, 257, device=image.device)
    steps = torch.quantile(values[:: max(1, len(values) // SAMPLE)], ranks)
    after = torch.bucketize(image.contiguous(), steps).clamp_(1, len(steps) - 1)
    low, high = steps[after - 1], steps[after]
    part = ((image - low) / (high - low).clamp_min(1e-12)).clamp_(0, 1)
    return (after - 1 + part).mul_(EVEN / (len(steps) - 1)).add_(image, alpha=1 - EVEN)
