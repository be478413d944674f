"""The state of an image while it is brought to a finer grid, and the steps that change it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.scanner import Acquisition, Noise, intensity_scale, span, with_floor
from medkit_sr.sequence import with_neighbours

if TYPE_CHECKING:
    import torch

    from medkit.images import Image
    from medkit.inference import BundleRunner, Prepared
    from medkit.space import Grid


@dataclass
class ResolveWork:
    """The state of the work on one image."""

    image: Image
    grid: Grid
    """The grid of the result."""
    acquisition: Acquisition
    """From `grid` to the image's own grid."""
    noise: Noise
    """Of the image."""
    method: str
    """One of `methods.METHODS`."""
    reason: str
    """Why this method was chosen."""
    scan: torch.Tensor
    """(I, J, K) float32, the voxels of the image."""
    plain: torch.Tensor
    """(I, J, K) float32, the image interpolated to `grid` by cubic B-splines."""
    fine: torch.Tensor
    """(I, J, K) float32, the result so far, on `grid`."""
    across: int | None = None
    """Axis across the planes if each plane is refined by itself; None if the volume is refined as a whole."""
    clean: bool = False
    """Whether the result so far is free of noise."""
    runner: BundleRunner | None = None
    """The bundle that `network` is for; None without a network."""
    network: list[Prepared] = field(default_factory=list)
    """The network's inputs, later its outputs: one for a volume, one for each plane otherwise."""
    bright: float = 1.0
    """Factor for the network's outputs, see `network_inputs`."""
    guide: torch.Tensor | None = None
    """(I, J, K) float32, another contrast on `grid`."""
    details: dict[str, Any] = field(default_factory=dict)
    """For the sidecar: which bundle was chosen, and why."""


def resolve(work: ResolveWork) -> None:
    """Add the detail from the network and the guide to the result, and make it agree with the scan."""
    import torch

    if work.network:
        answers = [prepared.item["pred"][0].float().to(work.fine.device) for prepared in work.network]
        added = answers[0] if work.across is None else torch.stack(answers, work.across)
        work.fine, work.clean = work.fine + work.bright * added.to(work.fine.device), True
        work.fine = corrected(work, work.noise.sigma)
    if work.guide is not None:
        from medkit_sr.guide import guided

        unguided = work.fine
        work.fine, reliability = guided(work.scan, work.guide, work.acquisition, work.noise.sigma)
        # squared, because a guide that explains half of the variance hardly helps
        work.fine = unguided + reliability.square() * (corrected(work, work.noise.sigma) - unguided)


def corrected(work: ResolveWork, sigma: float) -> torch.Tensor:
    """Return the result so far with the detail of the scan that it lacks; `sigma` is the noise of that detail."""
    return work.acquisition.corrected(work.fine, missing(work, work.fine), sigma)


def missing(work: ResolveWork, fine: torch.Tensor) -> torch.Tensor:
    """Return the scan minus a simulated scan of a fine image, (I, J, K) on the scan's grid.

    A magnitude scan raises dark voxels to a noise floor. The floor is added to an image without noise; an image that
    was interpolated from the scan has it already.
    """
    import torch

    again = work.acquisition.scanned(fine)
    if work.clean:
        again = torch.from_numpy(with_floor(again.numpy(), work.noise))
    return work.scan - again


def network_inputs(
    fine: torch.Tensor, acquisition: Acquisition, grid: Grid, across: int | None
) -> tuple[list[Prepared], float]:
    """Return the inputs of a network, and the factor for its outputs.

    Intensities are shifted so that the darkest voxel is 0 and divided by `medkit.scanner.intensity_scale`. Steps are
    the fine voxels per coarse voxel along an axis (`medkit.synthesis.sampling.with_steps` adds them in training).

    - A volume is one input (4, I, J, K): the image and the base 2 logarithm of the step along each axis.
    - Planes along the axis `across` are one input (5, I, J) each: the plane, the previous and the next one, aligned
      with it, and the logarithms of the two steps in the plane.
    """
    import torch

    from medkit.inference import Prepared

    lifted = fine - min(0.0, float(fine.min()))
    bright = float(intensity_scale(lifted))
    lifted = lifted / bright
    steps = fine.new_tensor([step for axis, step in enumerate(acquisition.steps) if axis != across]).log2()
    images = [lifted[None]] if across is None else with_neighbours(lifted.unbind(across))
    out = []
    for image in images:
        space = image.shape[1:]
        plain = steps.reshape(-1, *[1] * len(space)).expand(-1, *space)
        out.append(Prepared({"image": torch.cat([image, plain])}, grid))
    return out, bright


def consistency(made: Image, work: ResolveWork) -> Mapping[str, float]:
    """Return the difference between the scan and the result scanned again, as shares of the scan's range, five digits.

    `rms` is the root mean square of the difference, `noise` the standard deviation of the scan's noise.
    """
    import torch

    low, high = span(work.image.data[0])
    unit = (high - low) or 1.0
    rms = float(missing(work, torch.from_numpy(made.data[0].astype(np.float32))).square().mean().sqrt())
    return {"rms": float(f"{rms / unit:.5g}"), "noise": float(f"{work.noise.sigma / unit:.5g}")}
