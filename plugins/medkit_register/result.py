"""From a map between two scans to the files, measures and sidecar of `register`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medkit.evaluation import similarity
from medkit.images import Image
from medkit.space import Grid, apply_affine
from medkit.task import Case, Result
from medkit.transforms import Transform, TransformFile, chain, resample
from medkit_register.affine import AffineResult
from medkit_register.choices import RegisterChoices
from medkit_register.deformable import Warp
from medkit_register.fields import backward_transform, folding, forward_transform, inverse_error
from medkit_register.label_scores import scores
from medkit_register.midpoint import middle_grid, to_fixed
from medkit_register.pyramid import Pyramid
from medkit_register.verdict import doubts_about, doubts_about_scores, doubts_about_spacing

PROBES = 20_000
"""Voxels at which the inverse of a warp is checked."""


@dataclass(frozen=True, eq=False)
class Solution:
    """A map that was found between two scans."""

    moving: Image
    pyramid: Pyramid
    """Of the moving image."""
    before: Future[dict[str, float]]
    """Similarity of the scans before registration."""
    affine: AffineResult
    """The affine part, fixed points to moving points."""
    warp: Warp | None
    """What refines it: from the fixed scan, or from the middle of both."""
    doubts: tuple[str, ...] = ()
    """What is doubtful about the moving image's mask."""
    rigid: np.ndarray | None = None
    """(4, 4) RAS+ mm, the rigid map that a joint registration starts with."""
    half: np.ndarray | None = None
    """(4, 4) RAS+ mm, fixed points to the middle, where both scans go half of the way."""


@dataclass(frozen=True, eq=False)
class SolutionTransforms:
    """A solution as transforms."""

    target: Image
    """The fixed image on the grid to which the moving image is brought: its own, or one half-way."""
    transform: Transform
    """Takes points of the target to points of the moving scan."""
    inverse: Future[Transform] | None
    """Takes points of the moving scan to points of the target; None if it is not wanted."""
    whole: Transform
    """Takes fixed points to points of the moving scan."""
    files: Mapping[str, Any] = field(default_factory=dict)
    """Further outputs by role."""


@dataclass(frozen=True, eq=False)
class ResultMaker:
    """Makes the result of each case; all cases have the same fixed image."""

    path: Path
    """Of the fixed image."""
    fixed: Image
    pyramid: Pyramid
    """Of the fixed image."""
    choices: RegisterChoices
    background: ThreadPoolExecutor
    doubts: tuple[str, ...] = ()
    """What is doubtful about the fixed image's mask."""

    def result(self, case: Case, solution: Solution) -> Result:
        """Return the resampled image, the transforms, and how well the two scans match."""
        maps = self._on_fixed(solution) if solution.half is None else self._on_middle(solution)
        moved = resample(solution.moving, maps.target.grid, maps.transform)
        after = similarity_of(maps.target, moved)
        agreement, missing = scores(case.inputs, maps.whole)
        before, affine = solution.before.result(), solution.affine
        inverse = maps.inverse.result() if maps.inverse else None
        quality = self._quality(solution, maps.transform, inverse)
        doubts = [
            *self.doubts,
            *solution.doubts,
            *doubts_about_spacing(self.pyramid, solution.pyramid),
            *affine.warnings,
            *doubts_about(self.pyramid, solution.pyramid, maps.whole, affine),
            *doubts_about_scores(agreement),
        ]
        case.note(self.fixed)
        case.warnings.extend(missing)
        made = {"image": moved, "transform": maps.transform, "inverse_transform": inverse, **maps.files}
        wanted: dict[str, Any] = {role: value for role, value in made.items() if self.choices.wants(role)}
        return Result(
            {role: value if isinstance(value, Image) else TransformFile(value) for role, value in wanted.items()},
            metrics={"before": before, "after": after, **quality, **agreement},
            warnings=doubts,
            details={
                "grids": {"from": maps.transform.from_grid, "to": maps.transform.to_grid},
                "registration": _sidecar_block(affine, solution.warp),
            },
            spatial_reference=None if self.choices.midpoint else self.path,
            description=self._description(case.path),
            figure=functools.partial(_figure, solution, maps, moved, self._title(case.path.name, before, after)),
        )

    def _on_fixed(self, solution: Solution) -> SolutionTransforms:
        """Return the transforms of a solution that brings the moving image to the fixed one."""
        fixed, moving, matrix = self.fixed.grid, solution.moving.grid, solution.affine.matrix
        transform = self._forward(matrix, solution.warp, fixed, moving)
        inverse = self._inverse(solution.warp, transform, moving)
        files = {}
        if solution.rigid is not None:
            files["rigid_transform"] = forward_transform(solution.rigid, None, fixed, moving)
            files["affine_transform"] = forward_transform(matrix, None, fixed, moving)
        return SolutionTransforms(self.fixed, transform, inverse, transform, files)

    def _on_middle(self, solution: Solution) -> SolutionTransforms:
        """Return the transforms of a solution that brings both images to the middle."""
        fixed, moving, half, warp = self.fixed.grid, solution.moving.grid, solution.half, solution.warp
        assert half is not None
        middle = middle_grid(fixed, moving, half)
        transform = self._forward(half, warp, middle, moving)
        inverse = self._inverse(warp, transform, moving)
        fixed_warp = warp and to_fixed(warp)
        middle_to_fixed = self._forward(np.linalg.inv(half), fixed_warp, middle, fixed)
        fixed_to_middle = self._backward(fixed_warp, middle_to_fixed, fixed)
        target = resample(self.fixed, middle, middle_to_fixed)
        files = {
            "fixed_image": target,
            "fixed_transform": middle_to_fixed,
            "fixed_inverse_transform": fixed_to_middle,
        }
        return SolutionTransforms(target, transform, inverse, chain([transform, fixed_to_middle]), files)

    def _forward(self, matrix: np.ndarray, warp: Warp | None, fixed: Grid, moving: Grid) -> Transform:
        return forward_transform(matrix, warp, fixed, moving, coarse=self.choices.coarse_fields)

    def _backward(self, warp: Warp | None, transform: Any, moving: Grid) -> Transform:
        return backward_transform(warp, transform, moving, coarse=self.choices.coarse_fields)

    def _inverse(self, warp: Warp | None, transform: Any, moving: Grid) -> Future[Transform] | None:
        """Start to invert a transform, unless nobody wants the inverse, which takes as much memory as the transform."""
        if not self.choices.wants("inverse_transform"):
            return None
        return self.background.submit(self._backward, warp, transform, moving)

    def _quality(self, solution: Solution, transform: Any, inverse: Any) -> dict[str, Any]:
        """Return the folding of a warp, and how well its two fields invert each other inside the object."""
        if solution.warp is None:
            return {}
        if inverse is None:
            return folding(solution.warp)
        to_target = np.eye(4) if solution.half is None else solution.half
        to_voxels = np.linalg.inv(transform.grid.affine) @ to_target @ self.fixed.grid.affine
        error = inverse_error(transform, inverse, apply_affine(to_voxels, self._object_voxels))
        return {**folding(solution.warp), "inverse_error_mm": error}

    @functools.cached_property
    def _object_voxels(self) -> np.ndarray:
        """(N, 3) indices of about PROBES voxels inside the object of the fixed image."""
        data = self.fixed.data[0]
        low, high = np.percentile(data[::3, ::3, ::3] if min(data.shape) > 9 else data, (0.5, 99.5))
        inside = np.flatnonzero(data.reshape(-1, order="A") > low + self.pyramid.threshold * (high - low))
        order: Any = "F" if data.flags.f_contiguous else "C"
        chosen = inside[:: max(1, len(inside) // PROBES)]
        return np.stack(np.unravel_index(chosen, data.shape, order), axis=1)

    def _description(self, moving: Path) -> str:
        if self.choices.midpoint:
            return f"{moving.name} and {self.path.name} half-way to each other by {self.choices.kind} registration"
        return f"{moving.name} resampled onto {self.path.name} by {self.choices.kind} registration"

    def _title(self, moving: str, before: Mapping[str, float], after: Mapping[str, float]) -> str:
        """Return the title of the picture: what is what in it, and how alike both scans became."""
        names = f"{moving} (outlines) on {self.path.name} (grey), {self.choices.kind}"
        return f"{names}: correlation {before['ncc']:.2f} to {after['ncc']:.2f}"


def _figure(solution: Solution, maps: SolutionTransforms, moved: Image, title: str) -> np.ndarray:
    """Return the picture: the moved scan on the target, and what the transform does to a grid, (H, W, 3) uint8."""
    from medkit.figures import Deformation, overlay_mosaic

    deformation = Deformation("the transform", maps.transform.map_points)
    if solution.warp is not None:
        back = np.linalg.inv(solution.affine.matrix if solution.half is None else solution.half)
        deformation = Deformation("the warp", lambda points: apply_affine(back, maps.transform.map_points(points)))
    return overlay_mosaic(maps.target, moved, kind="image", title=title, deformation=deformation)


def similarity_of(fixed: Image, moved: Image) -> dict[str, float]:
    """Return the measures of `medkit.evaluation.similarity` for two images on one grid."""
    # transposed, since axis I is the fastest in memory: functions that need contiguous voxels do not copy then
    stored = (np.ascontiguousarray(image.data[0].T, np.float32) for image in (fixed, moved))
    return similarity(*map(torch.from_numpy, stored))


def _sidecar_block(affine: AffineResult, warp: Warp | None) -> dict[str, Any]:
    """Return how the alignment was found, for the sidecar."""
    block: dict[str, Any] = {
        "metric": affine.metric,
        "reason": affine.reason,
        **({"start": affine.start} if affine.start else {}),
        "matrix_ras_mm": np.round(affine.matrix, 6).tolist(),
        "levels": [_level_block(level) for level in affine.levels],
    }
    if warp is None:
        return block
    if warp.start is not None:
        costs = {"cost": round(warp.start.cost, 4), "cost_of_affine": round(warp.start.affine_cost, 4)}
        block["warp_start"] = {"network": warp.start.used, **costs}
    if warp.local is not None:
        block["local_start"] = {
            "cost": round(warp.local.cost, 4),
            "cost_of_affine": round(warp.local.affine_cost, 4),
            "share_of_affine": round(warp.local.share, 2),
        }
    return block | {"warp_metric": warp.metric, "warp_levels": [_level_block(stage) for stage in warp.stages]}


def _level_block(level: Any) -> dict[str, Any]:
    return {"spacing_mm": round(level.spacing, 2), "steps": level.steps, "converged": level.converged}
