"""`--fuse`: the work on a case whose scans become one image."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import InputError
from medkit.task import Case, Result
from medkit_sr.alignment import aligned
from medkit_sr.fusion import View, covered, fused, sampled, to_common
from medkit_sr.resolver import Resolver, check_reference
from medkit_sr.work import ResolveWork, resolve

if TYPE_CHECKING:
    import torch

    from medkit.images import Image
    from medkit.space import Grid

_DOUBTFUL_TIMES, _DOUBTFUL_RMS = 3.0, 0.05
"""A scan that differs from the result by so many times its noise, and by this share of its range, is doubtful."""


@dataclass(frozen=True)
class FusedScans:
    """The scans of a case and the image made of them."""

    first: Image
    """The scan whose space is the common one."""
    grid: Grid
    """The common fine grid."""
    works: Sequence[ResolveWork]
    """Each scan refined by itself."""
    views: Sequence[View]
    """The same scans with equal brightness, and their positions."""
    values: torch.Tensor
    """(I, J, K) float32, the image on `grid`."""

    @property
    def image(self) -> Image:
        """The image made of all scans."""
        return self.first.like(self.values.numpy()[None], self.grid)

    def of_first(self, values: torch.Tensor) -> Image:
        """Return values (I, J, K) on the first scan's fine grid as an image on the common grid."""
        common = sampled(values, to_common(self.views[0], self.grid), self.grid.shape).nan_to_num()
        return self.first.like(common.numpy()[None], self.grid)


@dataclass(frozen=True)
class Fuser:
    """The work on cases with several scans each."""

    resolver: Resolver

    def case(self, case: Case) -> Result:
        """Make one image of all scans of a case. Raises InputError for a single scan."""
        images = _scans(case)
        grid = self.resolver.choices.target.common([image.grid for image in images], case.path)
        if "reference" in case.inputs:
            check_reference(case, grid)
        matrices = [np.eye(4), *aligned(images[0], images[1:], self.resolver.networks.runtime.threads)]
        works = [self._refined(case, image, float(grid.spacing.min())) for image in images]
        views = of_one_brightness([_view(*pair) for pair in zip(works, matrices, strict=True)], grid)
        scans = FusedScans(images[0], grid, works, views, fused(views, grid))
        made = scans.image
        metrics = _metrics(case, scans, made)
        return Result(
            {"image": made},
            metrics=metrics,
            warnings=disagreements([image.path.name if image.path else "" for image in images], metrics["consistency"]),
            details={"superresolution": _details(scans)},
            description=f"{len(images)} scans fused with {case.path.name}",
            figure=functools.partial(_figure, scans.of_first(works[0].plain), made, f"sr --fuse  {case.path.name}"),
        )

    def _refined(self, case: Case, image: Image, spacing: float) -> ResolveWork:
        """Refine one scan by itself, to isotropic voxels of `spacing` mm."""
        from medkit.scanner import refined

        grid = refined(image.grid, [spacing] * 3)
        work = self.resolver.compute(case, self.resolver.start(case, image, grid))
        resolve(work)
        return work


def _scans(case: Case) -> list[Image]:
    roles = [role for role in case.inputs if role == "image" or role.startswith("image_")]
    if len(roles) < 2:
        raise InputError(f"{case.path}: --fuse: expected two scans or more, got one")
    return [case.image(role, blended=True) for role in roles]


def _view(work: ResolveWork, matrix: np.ndarray) -> View:
    return View(work.scan, work.fine, work.grid, work.acquisition, work.noise.sigma, matrix)


def of_one_brightness(views: list[View], grid: Grid) -> list[View]:
    """Return the views scaled to the brightness of the first one, measured where both show something."""
    first = sampled(views[0].fine, to_common(views[0], grid), grid.shape)
    out = [views[0]]
    for view in views[1:]:
        other = sampled(view.fine, to_common(view, grid), grid.shape)
        factor = _brightness(first, other)
        out.append(replace(view, scan=view.scan * factor, fine=view.fine * factor, sigma=view.sigma * factor))
    return out


def _brightness(first: torch.Tensor, other: torch.Tensor) -> float:
    """Return the factor for `other`: the median quotient over the bright half of the voxels that both show."""
    both = (first > 0) & (other > 0)
    if not bool(both.any()):
        return 1.0
    a, b = first[both], other[both]
    bright = a > a.mean()
    return float((a[bright] / b[bright]).median())


def _metrics(case: Case, scans: FusedScans, made: Image) -> dict[str, Any]:
    metrics: dict[str, Any] = {"consistency": [_consistency(view, scans) for view in scans.views]}
    if "reference" in case.inputs:
        from medkit.evaluation import rounded_scores

        single, reference = scans.of_first(scans.works[0].fine), case.image("reference")
        metrics |= {"single": rounded_scores(single, reference), "after": rounded_scores(made, reference)}
    return metrics


def _consistency(view: View, scans: FusedScans) -> dict[str, float]:
    """Return the difference between a scan and the image scanned again, as shares of the scan's range, five digits."""
    from medkit.scanner import span

    back = np.linalg.inv(to_common(view, scans.grid))
    again = view.acquisition.scanned(sampled(scans.values, back, view.grid.shape))
    low, high = span(view.scan.numpy())
    unit = (high - low) or 1.0
    rms = float((again - view.scan)[covered(view, scans.grid)].square().mean().sqrt())
    return {"rms": float(f"{rms / unit:.5g}"), "noise": float(f"{view.sigma / unit:.5g}")}


def disagreements(names: Sequence[str], consistency: Sequence[Mapping[str, float]]) -> list[str]:
    """Return a warning if a scan differs from the image scanned again by far more than its noise.

    Scans of one person in one contrast differ by about their noise, those of two persons by four times and more.
    """
    found = [
        f"{name} differs by {100 * each['rms']:.1f} % of its range, where noise explains {100 * each['noise']:.1f} %"
        for name, each in zip(names, consistency, strict=True)
        if each["rms"] > max(_DOUBTFUL_TIMES * each["noise"], _DOUBTFUL_RMS)
    ]
    if not found:
        return []
    return [f"the scans do not fit together, are they of one person and one contrast? {'; '.join(found)}"]


def _details(scans: FusedScans) -> dict[str, Any]:
    """Return how the image was made, for the sidecar."""
    return {
        "method": "fusion",
        "scans": [
            {"method": work.method, "reason": work.reason, "steps": [round(s, 4) for s in work.acquisition.steps]}
            for work in scans.works
        ],
        "spacing": [round(float(mm), 6) for mm in scans.grid.spacing],
        "transforms": [np.round(view.matrix, 6).tolist() for view in scans.views],
    }


def _figure(before: Image, made: Image, title: str) -> np.ndarray:
    from medkit.figures import comparison_mosaic

    headings = ("first scan, interpolated", "output", "difference")
    return comparison_mosaic(before, made, title=title, headings=headings)
