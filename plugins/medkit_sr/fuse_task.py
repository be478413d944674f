"""`--fuse`: all scans of a case become one image."""

from __future__ import annotations

import functools
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


@dataclass(frozen=True)
class Fuser:
    """The work on one case after the other."""

    resolver: Resolver

    def case(self, case: Case) -> Result:
        """One image of all scans. Raises InputError for a single one."""
        import torch

        from medkit.scanner import refined

        roles = [role for role in case.inputs if role == "image" or role.startswith("image_")]
        if len(roles) < 2:
            raise InputError(f"{case.path}: --fuse: expected two scans or more, got one")
        images = [case.image(role) for role in roles]
        grid = self.resolver.wishes.target.common([image.grid for image in images], case.path)
        if "reference" in case.inputs:
            check_reference(case, grid)
        finest = [float(grid.spacing.min())] * 3
        matrices = [np.eye(4), *aligned(images[0], images[1:], self.resolver.networks.runtime.threads)]
        works = [self._alone(case, image, refined(image.grid, finest)) for image in images]
        views = of_one_brightness([_view(*pair) for pair in zip(works, matrices, strict=True)], grid)
        found = fused(views, grid)
        first = images[0]
        made = first.like(found.numpy()[None], grid)
        metrics: dict[str, Any] = {"consistency": [_consistency(view, found, grid) for view in views]}
        if "reference" in case.inputs:
            from medkit.evaluation import rounded_scores

            single = first.like(sampled(works[0].fine, to_common(views[0], grid), grid.shape).numpy()[None], grid)
            reference = case.image("reference")
            metrics |= {"single": rounded_scores(single, reference), "after": rounded_scores(made, reference)}
        before = torch.nan_to_num(sampled(works[0].plain, to_common(views[0], grid), grid.shape))
        return Result(
            {"image": made},
            metrics=metrics,
            details={
                "superresolution": {
                    "method": "fusion",
                    "scans": [
                        {
                            "method": work.method,
                            "reason": work.reason,
                            "steps": [round(s, 4) for s in work.acquisition.steps],
                        }
                        for work in works
                    ],
                    "spacing": [round(float(mm), 6) for mm in grid.spacing],
                    "transforms": [np.round(matrix, 6).tolist() for matrix in matrices],
                }
            },
            description=f"{len(images)} scans fused with {case.path.name}",
            figure=functools.partial(_figure, first.like(before.numpy()[None], grid), made, case.path.name),
        )

    def _alone(self, case: Case, image: Image, grid: Grid) -> ResolveWork:
        """What is known from one scan."""
        work = self.resolver.compute(case, self.resolver.begin(case, image, grid))
        resolve(work)
        return work


def _view(work: ResolveWork, matrix: np.ndarray) -> View:
    return View(work.scan, work.fine, work.grid, work.acquisition, work.noise.sigma, matrix)


def of_one_brightness(views: list[View], grid: Grid) -> list[View]:
    """The views as bright as the first one where both show something."""
    first = sampled(views[0].fine, to_common(views[0], grid), grid.shape)
    out = [views[0]]
    for view in views[1:]:
        other = sampled(view.fine, to_common(view, grid), grid.shape)
        factor = _brightness(first, other)
        out.append(replace(view, scan=view.scan * factor, fine=view.fine * factor, sigma=view.sigma * factor))
    return out


def _brightness(first: torch.Tensor, other: torch.Tensor) -> float:
    """What `other` is to be multiplied with: the median of the quotient over the bright half of what both show."""
    both = (first > 0) & (other > 0)
    if not bool(both.any()):
        return 1.0
    a, b = first[both], other[both]
    bright = a > a.mean()
    return float((a[bright] / b[bright]).median())


def _consistency(view: View, found: torch.Tensor, grid: Grid) -> dict[str, float]:
    """How far the image, scanned again, is from a scan: shares of the scan's range, five digits."""
    from medkit.scanner import span

    back = np.linalg.inv(to_common(view, grid))
    again = view.acquisition.scanned(sampled(found, back, view.grid.shape))
    low, high = span(view.scan.numpy())
    unit = (high - low) or 1.0
    rms = float((again - view.scan)[covered(view, grid)].square().mean().sqrt())
    return {"rms": float(f"{rms / unit:.5g}"), "noise": float(f"{view.sigma / unit:.5g}")}


def _figure(before: Any, made: Any, name: str) -> np.ndarray:
    from medkit.figures import comparison_mosaic

    return comparison_mosaic(before, made, title=f"sr --fuse  {name}")
