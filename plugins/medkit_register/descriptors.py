"""Self-similarity descriptors, which make scans of unlike contrasts comparable (MIND; Heinrich et al. 2012).

A point is described by how much the patches one step away, in both directions along each axis, differ from its own,
relative to the mean of these differences. Descriptors hold no intensity, only the shape of the surroundings, and so
those of a CT and of an MR are compared by plain squared differences.
"""

from __future__ import annotations

import torch

from medkit_register.warp import smooth_field

PATCH = 0.5
"""Standard deviation of a patch in lattice steps."""
SUPPORT = 1.0
"""About the standard deviation, in lattice steps, of all that a descriptor depends on."""
FLOOR = 0.2
"""Share of the object's median of mean differences that is added to each point's: in flat regions the rest is noise."""
GAIN = 2.0
"""Descriptors run from 0 to this, so that their sum of squares is about that of the other metrics."""
EVEN = 0.5
"""How far intensities are replaced by their ranks: 0 not at all, 1 wholly."""
OBJECT = 0.3
"""Share of the threshold between background and object above which intensities are the object's."""
SAMPLE = 200_000
"""Voxels from which quantiles are computed."""


def descriptors(image: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return descriptors (C, I, J, K) of an image (I, J, K): two for each axis with more than one point.

    `threshold` is the intensity between background and object.
    """
    on_object = image > OBJECT * threshold
    image = evened(image, on_object)
    out = torch.stack([d for axis, size in enumerate(image.shape) if size > 1 for d in differences(image, axis)])
    unit = out.mean(0)
    inner = unit[on_object] if bool(on_object.any()) else unit.reshape(-1)
    unit += FLOOR * float(inner[:: max(1, len(inner) // SAMPLE)].median()) + 1e-9
    return out.sub_(out.amin(0)).div_(unit).neg_().exp_().mul_(GAIN)


def differences(image: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean squared difference of each point's patch from the next one along an axis, and from the previous.

    `image` and both results are (I, J, K).
    """
    size = image.shape[axis]
    onward = torch.zeros_like(image)
    step = image.narrow(axis, 1, size - 1) - image.narrow(axis, 0, size - 1)
    onward.narrow(axis, 0, size - 1).copy_(step.square_())
    onward = smooth_field(onward[None], PATCH)[0]
    back = torch.cat([onward.narrow(axis, 0, 1), onward.narrow(axis, 0, size - 1)], axis)
    return onward, back


def evened(image: torch.Tensor, on_object: torch.Tensor) -> torch.Tensor:
    """Return a mean (I, J, K) of intensities and their ranks, 0..1, among those where `on_object` (I, J, K) is true.

    Soft tissue spans a fiftieth of a CT's intensities: next to bone it would leave no trace.
    """
    values = image[on_object]
    if not len(values):
        return image
    shares = torch.linspace(0, 1, 257, device=image.device)
    steps = torch.quantile(values[:: max(1, len(values) // SAMPLE)], shares)
    after = torch.bucketize(image.contiguous(), steps).clamp_(1, len(steps) - 1)
    low, high = steps[after - 1], steps[after]
    part = ((image - low) / (high - low).clamp_min(1e-12)).clamp_(0, 1)
    return (after - 1 + part).mul_(EVEN / (len(steps) - 1)).add_(image, alpha=1 - EVEN)
