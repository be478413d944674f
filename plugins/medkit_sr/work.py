"""An image on its way to a finer grid, and the steps that take it there."""

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
    """A case on its way."""

    image: Image
    grid: Grid
    """Of the result."""
    acquisition: Acquisition
    noise: Noise
    method: str
    reason: str
    """Why that method."""
    scan: torch.Tensor
    """(I, J, K) float32, the image's voxels."""
    plain: torch.Tensor
    """Its cubic B-spline on `grid`."""
    fine: torch.Tensor
    """The result so far, on `grid`."""
    across: int | None = None
    """The axis that planes follow each other along, each of which is made finer; None: the volume is."""
    clean: bool = False
    """Whether the result so far is without noise."""
    runner: BundleRunner | None = None
    network: list[Prepared] = field(default_factory=list)
    """What the network is given, then its answers: of the volume, or of each plane."""
    bright: float = 1.0
    """What its answers are multiplied with."""
    guide: torch.Tensor | None = None
    """(I, J, K) another contrast on `grid`."""
    details: dict[str, Any] = field(default_factory=dict)


def resolve(work: ResolveWork) -> None:
    """Adds to the result what the network and the guide know, and corrects it by what was scanned."""
    import torch

    if work.network:
        answers = [prepared.item["pred"][0].float().to(work.fine.device) for prepared in work.network]
        added = answers[0] if work.across is None else torch.stack(answers, work.across)
        work.fine, work.clean = work.fine + work.bright * added.to(work.fine.device), True
        work.fine = corrected(work, work.noise.sigma)
    if work.guide is not None:
        from medkit_sr.guide import guided

        alone = work.fine
        work.fine, belief = guided(work.scan, work.guide, work.acquisition, work.noise.sigma)
        # squared: half of the variance explained is hardly better than none
        work.fine = alone + belief.square() * (corrected(work, work.noise.sigma) - alone)


def corrected(work: ResolveWork, sigma: float) -> torch.Tensor:
    """The result so far with what it lacks of the scan; `sigma` is the noise of what it lacks."""
    return work.acquisition.corrected(work.fine, missing(work, work.fine), sigma)


def missing(work: ResolveWork, fine: torch.Tensor) -> torch.Tensor:
    """(I, J, K) what was scanned minus what a scan of a fine image would show.

    Of an image without noise a magnitude scan shows a floor; what was interpolated has it already.
    """
    import torch

    again = work.acquisition.scanned(fine)
    if work.clean:
        again = torch.from_numpy(with_floor(again.numpy(), work.noise))
    return work.scan - again


def told(fine: torch.Tensor, acquisition: Acquisition, grid: Grid, across: int | None) -> tuple[list[Prepared], float]:
    """What a network is given, and what its answer is to be multiplied with.

    Of a volume (4, I, J, K): the image so far, 0 at its darkest and 1 at the 99th percentile of what is above, and the
    base 2 logarithms of the steps along its axes (as `medkit.synthesis.sampling.with_steps` gives them in training). Of
    planes along the axis `across`, for each of them (5, I, J): it, the one before and the one after, moved so that they
    lie as it does, and two logarithms.
    """
    import torch

    from medkit.inference import Prepared

    low = min(0.0, float(fine.min()))
    lifted = fine - low
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
    """How far the result, scanned again, is from what was scanned: shares of the scan's range, five digits.

    `rms` is the root mean square of the difference, and `noise` the standard deviation of the scan's noise.
    """
    import torch

    low, high = span(work.image.data[0])
    unit = (high - low) or 1.0
    rms = float(missing(work, torch.from_numpy(made.data[0].astype(np.float32))).square().mean().sqrt())
    return {"rms": float(f"{rms / unit:.5g}"), "noise": float(f"{work.noise.sigma / unit:.5g}")}
