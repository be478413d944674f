"""Runs the networks of super-resolution over one image."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import InputError
from medkit.inference import Bundle, BundleRunner, RunSettings, bundle_identity, modality_of, open_bundle
from medkit.scanner import acquisition_of, estimate
from medkit.task import Case, Result, Runtime
from medkit_sr.methods import ResolveChoices, fitting, has_weights
from medkit_sr.sequence import ACROSS, over_time, stacked, unstacked
from medkit_sr.work import ResolveWork, consistency, corrected, resolve, told

if TYPE_CHECKING:
    import torch

    from medkit.images import Image
    from medkit.space import Grid

TRAINED_STEPS = 6.4
"""Fine voxels to a coarse one beyond which no network here was trained."""


@dataclass(frozen=True)
class Networks:
    """The networks that may be used."""

    runtime: Runtime
    bundles: Sequence[Bundle]
    settings: RunSettings
    loaded: dict[str, tuple[BundleRunner, dict[str, Any]]] = field(default_factory=dict)

    def open(self, bundle: Bundle) -> tuple[BundleRunner, dict[str, Any]]:
        """A bundle's network, and by what it is known in sidecars. Raises what `open_bundle` does."""
        if bundle.name not in self.loaded:
            self.loaded[bundle.name] = open_bundle(self.runtime, bundle, self.settings), bundle_identity(bundle)
        return self.loaded[bundle.name]


@dataclass(frozen=True)
class Resolver:
    """The work on one case after the other."""

    wishes: ResolveChoices
    networks: Networks

    def prepare(self, case: Case) -> ResolveWork:
        """Reads an image and interpolates it. Raises InputError where it cannot become finer."""
        image = stacked(case) if self.wishes.sequence else case.image()
        grid = self.wishes.target.grid(image.grid, case.path)
        if "reference" in case.inputs:
            check_reference(case, grid)
        work = self.begin(case, image, grid)
        if "guide" in case.inputs:
            work.guide = guide_on(grid, image, case.image("guide"), self.networks.runtime.threads)
        return work

    def begin(self, case: Case, image: Image, grid: Grid) -> ResolveWork:
        """An image of a case interpolated to a grid, corrected, and ready for the network."""
        import torch

        acquisition = acquisition_of(image.grid, grid)
        scan = torch.from_numpy(image.data[0].astype(np.float32))
        across = ACROSS if self.wishes.sequence else grid.shape.index(1) if grid.is_planar else None
        whole = image.data[0] if across is None else image.data[0].take(image.grid.shape[across] // 2, across)
        method, reason, bundle = self._method(case, across is not None)
        plain = acquisition.interpolated(scan)
        noise = estimate(whole)
        work = ResolveWork(image, grid, acquisition, noise, method, reason, scan, plain, plain, across)
        if max(acquisition.steps) == 1:  # as fine as it is to be
            return work
        if method != "bspline":
            # a B-spline goes through the noise, and most of that is still there when it is scanned
            work.fine = corrected(work, noise.sigma * acquisition.leftover)
        if bundle is not None:
            work.runner, identity = self.networks.open(bundle)
            work.details = {"choice": identity | {"reason": reason}}
            work.network, work.bright = told(work.fine, acquisition, grid, across)
        return work

    def _method(self, case: Case, planes: bool) -> tuple[str, str, Bundle | None]:
        """How an image is to be made finer, why, and by which bundle. Raises InputError for what cannot be done."""
        if self.wishes.method not in (None, "network"):
            return self.wishes.method, "as asked for", None
        dims = 2 if planes else 3
        modality = "any" if planes else modality_of(case)[0]
        bundle, why = fitting(self.networks.bundles, dims, modality)
        if self.wishes.method == "network":
            if bundle is None:
                raise InputError(f"{case.path}: {why}; --method backprojection takes any image")
            return "network", why, bundle
        if bundle is None or not has_weights(bundle):
            return "backprojection", why if bundle is None else f"{bundle.name} has no weights yet", None
        return "network", why, bundle

    def compute(self, case: Case, work: ResolveWork) -> ResolveWork:
        """Runs the network."""
        if work.runner is not None:
            work.network = [work.runner.compute(case, prepared) for prepared in work.network]
        return work

    def finish(self, case: Case, work: ResolveWork) -> Result:
        """Adds what the network and the guide know, corrects that by what was scanned, and makes the result."""
        resolve(work)
        image, made = work.image, work.image.like(work.fine.numpy()[None], work.grid)
        metrics: dict[str, Any] = {"consistency": consistency(made, work)}
        if "reference" in case.inputs:
            from medkit.evaluation import rounded_scores

            reference = case.image("reference")
            before = image.like(work.plain.numpy()[None], work.grid)
            metrics |= {
                "bspline": rounded_scores(before, reference), "after": rounded_scores(made, reference),
            }  # fmt: skip
        steps = [round(step, 4) for step in work.acquisition.steps]
        spacing = [round(float(mm), 6) for mm in work.grid.spacing]
        return Result(
            {"image": unstacked(made) if self.wishes.sequence and over_time(case) else made},
            metrics=metrics,
            warnings=[*(w for answer in work.network for w in answer.warnings), *_warnings(work)],
            details={
                **work.details,
                "superresolution": {
                    "method": work.method + (" and guide" if work.guide is not None else ""),
                    "reason": work.reason,
                    "steps": steps,
                    "spacing": spacing,
                    "noise": work.noise.rounded(),
                },
            },
            description=f"{case.path.name} on {' x '.join(f'{mm:.3g}' for mm in spacing)} mm by {work.method}",
            figure=functools.partial(_figure, image, work.plain, made, case.path.name),
        )


def guide_on(grid: Grid, image: Image, guide: Image, threads: int) -> torch.Tensor:
    """(I, J, K) the guide, aligned with the image, on the image's fine grid."""
    import torch

    from medkit.transforms import AffineTransform, resample
    from medkit_sr.alignment import aligned

    (matrix,) = aligned(image, [guide], threads)
    moved = resample(guide, grid, AffineTransform(matrix))
    return torch.from_numpy(moved.data[0].astype(np.float32))


def _warnings(work: ResolveWork) -> list[str]:
    coarsest = max(work.acquisition.steps)
    if work.method != "network" or coarsest <= TRAINED_STEPS:
        return []
    return [f"{coarsest:.3g} times finer than it was scanned: the network was trained on up to {TRAINED_STEPS:g}"]


def check_reference(case: Case, grid: Grid) -> None:
    """Raises InputError unless the case's reference lies on `grid`."""
    path, reference = case.inputs["reference"], case.image("reference")
    same = reference.grid.shape == grid.shape and np.abs(reference.grid.affine - grid.affine).max() < 1e-3
    if not same:
        wanted, got = (" x ".join(map(str, g.shape)) for g in (grid, reference.grid))
        raise InputError(
            f"{path}: expected the grid that {case.path.name} is brought to ({wanted}), got {got} elsewhere"
        )


def _figure(image: Image, plain: torch.Tensor, made: Image, name: str) -> np.ndarray:
    from medkit.figures import comparison_mosaic

    before = image.like(plain.numpy()[None], made.grid)
    return comparison_mosaic(before, made, title=f"sr  {name}")
