"""What `register` does with one moving scan after the other: read and prepare, find the map, make the files.

The three parts run one case apart from each other (see `medkit.run.task.Stages`). What nothing waits for is done aside, in
threads of its own: how alike the scans were before, the fixed scan's side of the comparison, the inverse of a warp.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import UsageError
from medkit.task import Case, Result, Runtime, Stages
from medkit_register.label_scores import scores

if TYPE_CHECKING:
    from medkit.images import Image
    from medkit.space import Grid
    from medkit.transforms import Transform
    from medkit_register.affine import Result as Affine
    from medkit_register.choices import RegisterChoices
    from medkit_register.deformable import Begun, Warp
    from medkit_register.network import StartNetwork
    from medkit_register.pyramid import Pyramid, ScanVolume

PROBES = 20_000
"""Voxels at which the inverse is tried."""
ALIKE = 0.58
"""Correlation of intensities from which a warp follows local correlation: T1 and FLAIR reach 0.55, for scalp and fluid
are alike in both, T1 with and without contrast agent 0.59. Scans that are wrongly taken for unlike lose little, those
wrongly taken for alike half of their Dice, so it is higher than where the affine map's metric is chosen."""


def set_up(runtime: Runtime, *, shared: Mapping[str, Path], choices: RegisterChoices) -> Stages:
    """Reads and prepares what all cases share: the fixed image, its mask, a given start."""
    from medkit.images import read_image
    from medkit.inference import choose_device
    from medkit_register.affine import prepare

    runtime = replace(runtime, device=str(choose_device(runtime.device)))
    fixed = read_image(shared["fixed"])
    pyramid = prepare(volume_of(fixed, _mask_on(fixed.grid, shared.get("fixed_mask"))))
    network = None
    if choices.bundle and choices.bends:
        from medkit_register.network import StartNetwork

        network = StartNetwork(choices.bundle, runtime.device)
    aside = ThreadPoolExecutor(2, "medkit aside")
    if choices.bends and choices.metric in ("auto", "lncc"):
        from medkit_register.deformable import prepare_fixed

        quality: Any = choices.quality
        aside.submit(prepare_fixed, pyramid, quality, runtime.device)
    work = Registration(shared["fixed"], fixed, pyramid, choices, _start(shared, choices), runtime, network, aside)
    return Stages(work.prepare, work.compute, work.finish)


def _start(shared: Mapping[str, Path], choices: RegisterChoices) -> str | np.ndarray:
    """Where the affine map begins, as in the engine's `AffineSettings`. Raises UsageError for a file that holds a warp."""
    if choices.init != "file":
        return choices.init
    from medkit.transforms import read_transform

    matrix: np.ndarray | None = getattr(read_transform(shared["init"]), "matrix", None)
    if matrix is None:
        raise UsageError(f"--init {shared['init']}: expected an affine transform")
    return matrix


def volume_of(image: Image, mask: np.ndarray | None) -> ScanVolume:
    """A scan as the engine takes it, with a mask (I, J, K) bool where there is one."""
    import torch

    from medkit_register.pyramid import ScanVolume

    return ScanVolume(
        torch.from_numpy(image.data[0].astype(np.float32)),
        image.grid.affine,
        None if mask is None else torch.from_numpy(mask.astype(np.float32)),
    )


def _mask_on(grid: Grid, path: Path | None) -> np.ndarray | None:
    """A mask (I, J, K) bool on `grid`, resampled there where its own differs."""
    if path is None:
        return None
    from medkit.images import read_image
    from medkit.transforms import resample

    mask = read_image(path, labels=True)
    if mask.grid.digest() != grid.digest():
        mask = resample(mask, grid, interpolation="nearest")
    return mask.data[0] > 0


@dataclass(frozen=True, eq=False)
class Moving:
    """A moving scan, prepared."""

    image: Image
    pyramid: Pyramid
    before: Future[dict[str, float]]
    """How alike it and the fixed scan are as they lie."""


@dataclass(frozen=True, eq=False)
class Solution:
    """A map that was found, and what it belongs to."""

    moving: Image
    before: Future[dict[str, float]]
    """As in `Moving`."""
    found: Affine
    """The affine part, fixed points to moving points."""
    warp: Warp | None
    """What refines it: from the fixed scan, or from the middle of both."""
    rigid: np.ndarray | None = None
    """(4, 4) the rigid map that a joint registration begins with."""
    half: np.ndarray | None = None
    """(4, 4) fixed points to the middle, where both scans go half of the way."""


@dataclass(frozen=True, eq=False)
class Maps:
    """A solution as transforms."""

    target: Image
    """The fixed image where the moving one is brought to: as it is, or half-way."""
    transform: Transform
    """The target's points to the moving scan."""
    inverse: Future[Transform]
    """Back."""
    whole: Transform
    """Fixed points to the moving scan."""
    files: Mapping[str, Any] = field(default_factory=dict)
    """Role -> further outputs."""


@dataclass(frozen=True, eq=False)
class Registration:
    """A prepared fixed image and the settings: aligns one case after the other."""

    path: Path
    fixed: Image
    pyramid: Pyramid
    choices: RegisterChoices
    start: Any
    runtime: Runtime
    network: StartNetwork | None
    aside: ThreadPoolExecutor

    # ---- read

    def prepare(self, case: Case) -> Moving:
        """Reads the moving image."""
        from medkit_register.affine import prepare

        image = case.image()
        before = self.aside.submit(self._before, image)
        return Moving(image, prepare(volume_of(image, _mask_on(image.grid, case.inputs.get("moving_mask")))), before)

    def _before(self, moving: Image) -> dict[str, float]:
        from medkit.transforms import resample

        return similarity_of(self.fixed, resample(moving, self.fixed.grid))

    # ---- find

    def compute(self, case: Case, moving: Moving) -> Solution:
        """Finds the map."""
        return (self._half_way if self.choices.midpoint else self._all_the_way)(moving)

    def _all_the_way(self, moving: Moving) -> Solution:
        """The moving image on the fixed one's grid."""
        start, rigid = self.start, None
        if self.choices.kind == "joint":
            start = rigid = self._affine(self.pyramid, moving.pyramid, "rigid", start).matrix
        found = self._affine(self.pyramid, moving.pyramid, self._form, start)
        warp = self._warp(self.pyramid, moving.pyramid, found.matrix, found)
        return Solution(moving.image, moving.before, found, warp, rigid=rigid)

    def _half_way(self, moving: Moving) -> Solution:
        """Both images on a grid between them; see `midpoint`."""
        from medkit_register.midpoint import mean_matrix, middle_warp, root

        found = self._affine(self.pyramid, moving.pyramid, self._form, self.start)
        other_way = self.start if isinstance(self.start, str) else np.linalg.inv(self.start)
        back = self._affine(moving.pyramid, self.pyramid, self._form, other_way)
        found = replace(found, matrix=mean_matrix(found.matrix, back.matrix))
        half = root(found.matrix)
        there = self._warp(self.pyramid, moving.pyramid, found.matrix, found)
        again = self._warp(moving.pyramid, self.pyramid, np.linalg.inv(found.matrix), found)
        warp = middle_warp(there, again, half) if there and again else None
        return Solution(moving.image, moving.before, found, warp, half=half)

    @property
    def _form(self) -> str:
        """Of the affine map."""
        return "rigid" if self.choices.kind == "rigid" else "affine"

    def _affine(self, fixed: Pyramid, moving: Pyramid, form: Any, start: Any) -> Affine:
        """The rigid or affine map from `fixed` to `moving`; `start` as in the engine's `AffineSettings`."""
        from medkit_register.affine import AffineSettings, register_affine

        metric: Any = "mi" if self.choices.metric == "mind" else self.choices.metric
        return register_affine(fixed, moving, AffineSettings(form, metric, start, self.runtime.seed))

    def _warp(self, fixed: Pyramid, moving: Pyramid, matrix: np.ndarray, found: Affine) -> Warp | None:
        """What refines the affine map `matrix`; `found` is what the engine gave. None where the type is affine."""
        if not self.choices.bends:
            return None
        from medkit_register.deformable import register_deformable

        quality: Any = self.choices.quality
        followed = warp_metric(self.choices.metric, found.metric, found.alike)
        return register_deformable(
            fixed, moving, matrix, metric=followed, quality=quality, device=self.runtime.device, network=self.network
        )

    # ---- make the files

    def finish(self, case: Case, solution: Solution) -> Result:
        """Resamples the moving image, and says how well the two scans meet."""
        from medkit.images import Image
        from medkit.transforms import TransformFile, resample

        maps = (self._on_fixed if solution.half is None else self._on_middle)(solution)
        moved = resample(solution.moving, maps.target.grid, maps.transform)
        after = similarity_of(maps.target, moved)
        agreement, missing = scores(case.inputs, maps.whole)
        before, inverse, found = solution.before.result(), maps.inverse.result(), solution.found
        quality = self._quality(solution, maps.transform, inverse)
        others = {"transform": maps.transform, "inverse_transform": inverse, **maps.files}
        return Result(
            {"image": moved} | {k: v if isinstance(v, Image) else TransformFile(v) for k, v in others.items()},
            metrics={"before": before, "after": after, **quality, **agreement},
            warnings=[*self.fixed.warnings, *found.warnings, *missing, *_verdict(before, after)],
            details={
                "grids": {"from": maps.transform.from_grid, "to": maps.transform.to_grid},
                "registration": _story(found, solution.warp),
            },
            spatial_reference=None if self.choices.midpoint else self.path,
            description=self._description(case.path),
            figure=functools.partial(self._figure, maps.target, moved, case.path.name),
        )

    def _on_fixed(self, solution: Solution) -> Maps:
        fixed, moving, matrix = self.fixed.grid, solution.moving.grid, solution.found.matrix
        transform = forward(matrix, solution.warp, fixed, moving)
        inverse = self.aside.submit(backward, solution.warp, transform, moving)
        files = {}
        if solution.rigid is not None:
            files["rigid_transform"] = forward(solution.rigid, None, fixed, moving)
            files["affine_transform"] = forward(matrix, None, fixed, moving)
        return Maps(self.fixed, transform, inverse, transform, files)

    def _on_middle(self, solution: Solution) -> Maps:
        from medkit.transforms import chain, resample
        from medkit_register.midpoint import middle_grid, to_fixed

        fixed, moving, half, warp = self.fixed.grid, solution.moving.grid, solution.half, solution.warp
        assert half is not None
        middle = middle_grid(fixed, moving, half)
        transform = forward(half, warp, middle, moving)
        inverse = self.aside.submit(backward, warp, transform, moving)
        other_half, other_warp = np.linalg.inv(half), warp and to_fixed(warp)
        first = forward(other_half, other_warp, middle, fixed)
        from_first = backward(other_warp, first, fixed)
        target = resample(self.fixed, middle, first)
        files = {"fixed_image": target, "fixed_transform": first, "fixed_inverse_transform": from_first}
        return Maps(target, transform, inverse, chain([transform, from_first]), files)

    def _quality(self, solution: Solution, transform: Any, inverse: Any) -> dict[str, Any]:
        """Folding of a warp, and how far its two fields are from each other where the object is."""
        if solution.warp is None:
            return {}
        from medkit.space import apply_affine
        from medkit_register.fields import folding, inverse_error

        to_target = np.eye(4) if solution.half is None else solution.half
        to_voxels = np.linalg.inv(transform.grid.affine) @ to_target @ self.fixed.grid.affine
        error = inverse_error(transform, inverse, apply_affine(to_voxels, self._object_voxels))
        return {**folding(solution.warp), "inverse_error_mm": error}

    @functools.cached_property
    def _object_voxels(self) -> np.ndarray:
        """(N, 3) indices of some of the voxels that the object fills."""
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

    def _figure(self, fixed: Image, moved: Image, name: str) -> np.ndarray:
        from medkit.figures import overlay_mosaic

        return overlay_mosaic(fixed, moved, kind="image", title=f"{name} on {self.path.name}, {self.choices.kind}")


def forward(matrix: np.ndarray, warp: Warp | None, fixed: Grid, moving: Grid) -> Transform:
    """The transform from `fixed` to `moving`, affine by `matrix` where there is no warp."""
    from medkit.transforms import AffineTransform
    from medkit_register.fields import forward_field

    if warp is None:
        return AffineTransform(matrix, fixed.digest(), moving.digest(), dims=min(fixed.dims, moving.dims))
    return forward_field(warp, fixed, moving)


def backward(warp: Warp | None, transform: Any, moving: Grid) -> Transform:
    """The inverse of what `forward` gave for a warp."""
    from medkit_register.fields import backward_field

    inverse: Transform = transform.inverse() if warp is None else backward_field(warp, transform, moving)
    return inverse


def similarity_of(fixed: Image, moved: Image) -> dict[str, float]:
    """See `medkit.evaluation.measures.metrics.similarity`."""
    import torch

    from medkit.evaluation import similarity

    # transposed, since axis I is the fastest in memory: what looks at one voxel after the other need not copy them
    stored = (np.ascontiguousarray(image.data[0].T, np.float32) for image in (fixed, moved))
    return similarity(*map(torch.from_numpy, stored))


def warp_metric(asked: str, affine: str, alike: float | None = None) -> str:
    """What a warp follows: unlike contrasts need mind.

    `asked` is what was asked for, `affine` what the affine map followed, `alike` by how much the intensities correlate.
    """
    unlike = affine == "mi" or (alike is not None and alike < ALIKE)
    return "mind" if asked == "mind" or (asked == "auto" and unlike) else affine


def _story(found: Affine, warp: Warp | None) -> dict[str, Any]:
    """How the alignment was found, for the sidecar."""
    story = {
        "metric": found.metric,
        "reason": found.reason,
        "matrix_ras_mm": np.round(found.matrix, 6).tolist(),
        "levels": [_level(level) for level in found.levels],
    }
    if warp is None:
        return story
    if warp.begun is not None:
        story["warp_start"] = {"network": warp.begun.used, **_rounded(warp.begun)}
    return story | {"warp_metric": warp.metric, "warp_levels": [_level(stage) for stage in warp.stages]}


def _rounded(begun: Begun) -> dict[str, float]:
    return {"cost": round(begun.cost, 4), "cost_of_affine": round(begun.affine_cost, 4)}


def _level(level: Any) -> dict[str, Any]:
    return {"spacing_mm": round(level.spacing, 2), "steps": level.steps, "converged": level.converged}


def _verdict(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """Mutual information rises with alignment whatever the contrasts; if it fell, somebody must look."""
    if after["mi"] >= before["mi"]:
        return []
    return [f"mutual information fell from {before['mi']:.3f} to {after['mi']:.3f}: look at the result (--qc)"]
