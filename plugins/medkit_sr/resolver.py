"""Bring one image to a finer grid: by interpolation, a network, a guide, and agreement with the scan."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import InputError, size_text
from medkit.inference import Bundle, BundleRunner, RunSettings, bundle_identity, modality_of, open_bundle
from medkit.scanner import acquisition_of, estimate
from medkit.task import Case, Result, Runtime
from medkit_sr.methods import ResolveChoices, fitting, has_weights
from medkit_sr.sequence import ACROSS, over_time, stacked, unstacked
from medkit_sr.work import ResolveWork, consistency, corrected, network_inputs, resolve

if TYPE_CHECKING:
    import torch

    from medkit.images import Image
    from medkit.space import Grid

TRAINED_STEPS = 6.4
"""Largest number of fine voxels per coarse voxel, along an axis, that the networks were trained on."""


@dataclass(frozen=True)
class Networks:
    """The networks that may be used; each is loaded when it is first needed."""

    runtime: Runtime
    bundles: Sequence[Bundle]
    settings: RunSettings
    loaded: dict[str, tuple[BundleRunner, dict[str, Any]]] = field(default_factory=dict)
    """Name of a bundle -> its runner and its identity."""

    def open(self, bundle: Bundle) -> tuple[BundleRunner, dict[str, Any]]:
        """Return a bundle's runner and its identity for sidecars. Raises what `open_bundle` raises."""
        if bundle.name not in self.loaded:
            self.loaded[bundle.name] = open_bundle(self.runtime, bundle, self.settings), bundle_identity(bundle)
        return self.loaded[bundle.name]


@dataclass(frozen=True)
class Resolver:
    """The work on a case in three stages: read, compute, write."""

    choices: ResolveChoices
    networks: Networks

    def prepare(self, case: Case) -> ResolveWork:
        """Read an image and interpolate it. Raises InputError if no axis becomes finer."""
        image = stacked(case) if self.choices.sequence else case.image(blended=True)
        grid = self.choices.target.grid(image.grid, case.path)
        if "reference" in case.inputs:
            check_reference(case, grid)
        work = self.start(case, image, grid)
        if "guide" in case.inputs:
            work.guide = guide_on(grid, image, case.image("guide"), self.networks.runtime.threads)
        return work

    def start(self, case: Case, image: Image, grid: Grid) -> ResolveWork:
        """Interpolate an image of a case to a grid, make it agree with the scan, and prepare the network's inputs."""
        import torch

        acquisition = acquisition_of(image.grid, grid)
        scan = torch.from_numpy(image.data[0].astype(np.float32))
        across = ACROSS if self.choices.sequence else grid.shape.index(1) if grid.is_planar else None
        sample = image.data[0] if across is None else image.data[0].take(image.grid.shape[across] // 2, across)
        method, reason, bundle = self._method(case, across is not None)
        plain = acquisition.interpolated(scan)
        noise = estimate(sample)
        work = ResolveWork(image, grid, acquisition, noise, method, reason, scan, plain, plain, across)
        if max(acquisition.steps) == 1:  # already as fine as the result
            return work
        if method != "bspline":
            # the B-spline reproduces the noise, and most of it remains when the result is scanned again
            work.fine = corrected(work, noise.sigma * acquisition.leftover)
        if bundle is not None:
            work.runner, identity = self.networks.open(bundle)
            work.details = {"choice": identity | {"reason": reason}}
            work.network, work.bright = network_inputs(work.fine, acquisition, grid, across)
        return work

    def _method(self, case: Case, planes: bool) -> tuple[str, str, Bundle | None]:
        """Return the method for an image, the reason, and the bundle.

        Raises InputError if a network is asked for and none takes the image.
        """
        if self.choices.method not in (None, "network"):
            return self.choices.method, "as asked for", None
        dims = 2 if planes else 3
        modality = "any" if planes else modality_of(case)[0]
        bundle, why = fitting(self.networks.bundles, dims, modality)
        if self.choices.method == "network":
            if bundle is None:
                raise InputError(f"{case.path}: {why}; --method backprojection takes any image")
            return "network", why, bundle
        if bundle is None or not has_weights(bundle):
            return "backprojection", why if bundle is None else f"{bundle.name} has no weights yet", None
        return "network", why, bundle

    def compute(self, case: Case, work: ResolveWork) -> ResolveWork:
        """Run the network, if the image has one."""
        if work.runner is not None:
            work.network = [work.runner.compute(case, prepared) for prepared in work.network]
        return work

    def finish(self, case: Case, work: ResolveWork) -> Result:
        """Add the detail from the network and the guide, make it agree with the scan, and return the result."""
        resolve(work)
        made = work.image.like(work.fine.numpy()[None], work.grid)
        details = _details(work)
        return Result(
            {"image": unstacked(made) if self.choices.sequence and over_time(case) else made},
            metrics=_metrics(case, work, made),
            warnings=[*(w for answer in work.network for w in answer.warnings), *_warnings(work)],
            details={**work.details, **(work.runner.details if work.runner else {}), "superresolution": details},
            description=f"{case.path.name} on {size_text(details['spacing'], '.3g')} mm by {work.method}",
            figure=functools.partial(_figure, work.image, work.plain, made, case.path.name),
        )


def guide_on(grid: Grid, image: Image, guide: Image, threads: int) -> torch.Tensor:
    """Return the guide, aligned with the image, on the image's fine grid, (I, J, K) float32."""
    import torch

    from medkit.transforms import AffineTransform, resample
    from medkit_sr.alignment import aligned

    (matrix,) = aligned(image, [guide], threads)
    moved = resample(guide, grid, AffineTransform(matrix))
    return torch.from_numpy(moved.data[0].astype(np.float32))


def _metrics(case: Case, work: ResolveWork, made: Image) -> dict[str, Any]:
    metrics: dict[str, Any] = {"consistency": consistency(made, work)}
    if "reference" in case.inputs:
        from medkit.evaluation import rounded_scores

        reference = case.image("reference")
        before = work.image.like(work.plain.numpy()[None], work.grid)
        metrics |= {"bspline": rounded_scores(before, reference), "after": rounded_scores(made, reference)}
    return metrics


def _details(work: ResolveWork) -> dict[str, Any]:
    """Return how the image was made, for the sidecar."""
    return {
        "method": work.method + (" and guide" if work.guide is not None else ""),
        "reason": work.reason,
        "steps": [round(step, 4) for step in work.acquisition.steps],
        "spacing": [round(float(mm), 6) for mm in work.grid.spacing],
        "noise": work.noise.rounded(),
    }


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
        wanted, got = (size_text(g.shape) for g in (grid, reference.grid))
        raise InputError(
            f"{path}: expected the grid of the result of {case.path.name} ({wanted}), got another one ({got})"
        )


def _figure(image: Image, plain: torch.Tensor, made: Image, name: str) -> np.ndarray:
    from medkit.figures import comparison_mosaic

    before = image.like(plain.numpy()[None], made.grid)
    headings = ("input, interpolated", "output", "difference")
    return comparison_mosaic(before, made, title=f"sr  {name}", headings=headings)
