"""The task `register`: files in, aligned image and transforms out. The work is in `affine` and `deformable`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import UsageError
from medkit.records import absolute
from medkit.runner import identity_of
from medkit.task import Case, Output, Result, Runtime, Task
from medkit_register.scores import SCORED, check_pairs, scores

if TYPE_CHECKING:
    from medkit.bundle import Bundle
    from medkit.images import Image
    from medkit.space import Grid, Transform
    from medkit_register.deformable import Begun, Warp
    from medkit_register.network import StartNetwork
    from medkit_register.pyramid import Pyramid, Volume

BENDING = ("deformable", "joint")
"""Types with a warp after the affine map."""
_STARTS = ("auto", "moments", "centre", "header")


@dataclass(frozen=True)
class Choices:
    """What the command's options say."""

    kind: str
    """rigid, affine, deformable or joint."""
    metric: str
    """auto, lncc, mi, mse or mind."""
    init: str
    """auto, moments, centre, header, or the name of a transform file."""
    quality: str = "default"
    """fast, default or best; for deformable."""
    midpoint: bool = False
    """Both images go half of the way (see `midpoint`)."""
    bundle: Bundle | None = None
    """Whose network says where a warp begins, if any."""

    @property
    def bends(self) -> bool:
        """Whether a warp follows the affine map."""
        return self.kind in BENDING


def registration(shared: Mapping[str, Path], choices: Choices) -> Task:
    """The task for one set of options.

    `shared` has the role `fixed` and, where given, `fixed_mask`, `fixed_labels`, `fixed_landmarks` and the same of
    `moving_`. Raises UsageError for an `init` that is neither a known word nor a file, and for moving labels or
    landmarks without fixed ones.
    """
    check_pairs(shared)
    if choices.kind == "joint" and choices.midpoint:
        raise UsageError("--midpoint: takes --type rigid, affine or deformable, not joint")
    if choices.init not in _STARTS:
        if not Path(choices.init).is_file():
            raise UsageError(f"--init {choices.init}: expected {', '.join(_STARTS)} or a transform file")
        shared = {**shared, "init": absolute(choices.init)}
        choices = replace(choices, init="file")
    arguments: dict[str, Any] = {"type": choices.kind, "metric": choices.metric, "init": choices.init}
    if choices.bends:
        arguments["quality"] = choices.quality
    if choices.midpoint:
        arguments["midpoint"] = True
    return Task(
        name="register",
        outputs=_outputs(shared["fixed"], choices),
        setup=functools.partial(set_up, shared=shared, choices=choices),
        arguments=arguments,
        role="moving",
        accepts=("moving_mask", *(f"moving_{what}" for what in SCORED)),
        shared=shared,
        memory=functools.partial(memory_needed, shared["fixed"], bends=choices.bends),
        bundle=identity_of(choices.bundle) if choices.bundle and choices.bends else None,
    )


def _outputs(fixed: Path, choices: Choices) -> tuple[Output, ...]:
    """The files of one case: the moving image and its transforms, with a midpoint those of the fixed one as well."""
    output = functools.partial(Output, reference=fixed)
    extension = ".nii.gz" if choices.bends else ".tfm"
    space = "midpoint" if choices.midpoint else "{space}"
    outputs = [
        output("image", "image", "registered", entities={"space": space, "desc": "registered"}),
        output("transform", "transform", "transform", extension, _direction("{suffix}", space)),
        output("inverse_transform", "transform", "inverse_transform", extension, _direction(space, "{suffix}")),
    ]
    if choices.kind == "joint":
        outputs += [
            output(
                f"{part}_transform",
                "transform",
                f"{part}_transform",
                ".tfm",
                {**_direction("{suffix}", space), "desc": part},
            )
            for part in ("rigid", "affine")
        ]
    if choices.midpoint:
        there, back = _direction("{space}", space), _direction(space, "{space}")
        outputs += [
            output("fixed_image", "image", "fixed", entities={"space": space, "desc": "fixed"}),
            output("fixed_transform", "transform", "fixed_transform", extension, there),
            output("fixed_inverse_transform", "transform", "fixed_inverse_transform", extension, back),
        ]
    return tuple(outputs)


def _direction(start: str, end: str) -> dict[str, str]:
    return {"from": start, "to": end, "mode": "image"}


def memory_needed(fixed: Path, moving: Grid, *, bends: bool) -> int:
    """Bytes that aligning an image on the grid `moving` takes at its peak, torch included (measured, see the tests)."""
    from medkit.images import read_grid

    voxels = [int(np.prod(grid.shape)) for grid in (read_grid(fixed), moving)]
    needed = _PROGRAM_BYTES + _BYTES_PER_VOXEL * sum(voxels)
    if bends:
        from medkit_register.deformable import LARGEST

        needed += _BYTES_PER_POINT * min(voxels[0], LARGEST)
    return needed


_PROGRAM_BYTES = 400 * 2**20
_BYTES_PER_VOXEL = 40
_BYTES_PER_POINT = 180


def set_up(runtime: Runtime, *, shared: Mapping[str, Path], choices: Choices) -> Callable[[Case], Result]:
    """Reads and prepares what all cases share: the fixed image, its mask, a given start."""
    from medkit.images import read_image
    from medkit.space import read_transform
    from medkit_register.affine import prepare

    fixed = read_image(shared["fixed"])
    start: Any = choices.init
    if start == "file":
        transform = read_transform(shared["init"])
        start = getattr(transform, "matrix", None)
        if start is None:
            raise UsageError(f"--init {shared['init']}: expected an affine transform")
    mask = _mask_on(fixed.grid, shared.get("fixed_mask"))
    network = None
    if choices.bundle and choices.bends:
        from medkit_register.network import StartNetwork

        network = StartNetwork(choices.bundle, runtime.device)
    return _Registration(shared["fixed"], fixed, prepare(volume_of(fixed, mask)), choices, start, runtime, network).case


def volume_of(image: Image, mask: np.ndarray | None) -> Volume:
    """A scan as the engine takes it, with a mask (I, J, K) bool where there is one."""
    import torch

    from medkit_register.pyramid import Volume

    return Volume(
        torch.from_numpy(image.data[0].astype(np.float32)),
        image.grid.affine,
        None if mask is None else torch.from_numpy(mask.astype(np.float32)),
    )


def _mask_on(grid: Grid, path: Path | None) -> np.ndarray | None:
    """A mask (I, J, K) bool on `grid`, resampled there where its own differs."""
    if path is None:
        return None
    from medkit.images import read_image
    from medkit.resample import resample

    mask = read_image(path, labels=True)
    if mask.grid.digest() != grid.digest():
        mask = resample(mask, grid, interpolation="nearest")
    return mask.data[0] > 0


@dataclass(frozen=True, eq=False)
class _Registration:
    """A prepared fixed image and the settings: aligns one case after the other."""

    path: Path
    fixed: Image
    pyramid: Pyramid
    choices: Choices
    start: Any
    runtime: Runtime
    network: StartNetwork | None

    def case(self, case: Case) -> Result:
        """Aligns one moving image."""
        from medkit.resample import resample
        from medkit_register.pyramid import Pyramid

        moving = case.image()
        pyramid = Pyramid(volume_of(moving, _mask_on(moving.grid, case.inputs.get("moving_mask"))))
        outcome = (self._half_way if self.choices.midpoint else self._all_the_way)(moving.grid, pyramid)
        del pyramid
        found, target = outcome.found, outcome.target
        moved = resample(moving, target.grid, outcome.transform)
        before = self._similarity(self.fixed, resample(moving, self.fixed.grid))
        after = self._similarity(target, moved)
        agreement, missing = scores(case.inputs, outcome.whole)
        files = {"image": moved, "transform": outcome.transform, "inverse_transform": outcome.inverse, **outcome.files}
        return Result(
            files,
            metrics={"before": before, "after": after, **outcome.metrics, **agreement},
            warnings=[*self.fixed.warnings, *found.warnings, *missing, *_verdict(before, after)],
            details={
                "grids": {"from": outcome.transform.from_grid, "to": outcome.transform.to_grid},
                "registration": _story(found, outcome.warp),
            },
            spatial_reference=None if self.choices.midpoint else self.path,
            description=self._description(case.path),
            figure=functools.partial(self._figure, target, moved, case.path.name),
        )

    def _description(self, moving: Path) -> str:
        if self.choices.midpoint:
            return f"{moving.name} and {self.path.name} half-way to each other by {self.choices.kind} registration"
        return f"{moving.name} resampled onto {self.path.name} by {self.choices.kind} registration"

    def _all_the_way(self, moving: Grid, pyramid: Pyramid) -> _Outcome:
        """The moving image on the fixed one's grid."""
        fixed, files = self.fixed.grid, {}
        start = self.start
        if self.choices.kind == "joint":
            start = self._affine(self.pyramid, pyramid, "rigid", start).matrix
            files["rigid_transform"] = self._maps(start, None, fixed, moving)[0]
        found = self._affine(self.pyramid, pyramid, self._form, start)
        if self.choices.kind == "joint":
            files["affine_transform"] = self._maps(found.matrix, None, fixed, moving)[0]
        warp = self._warp(self.pyramid, pyramid, found.matrix, found)
        transform, inverse = self._maps(found.matrix, warp, fixed, moving)
        metrics = self._quality(warp, transform, inverse, np.eye(4))
        return _Outcome(found, self.fixed, transform, inverse, transform, warp, metrics, files)

    def _half_way(self, moving: Grid, pyramid: Pyramid) -> _Outcome:
        """Both images on a grid between them; see `midpoint`."""
        from medkit.resample import resample
        from medkit.space import chain
        from medkit_register.midpoint import mean_matrix, middle_grid, middle_warp, root, to_fixed

        fixed = self.fixed.grid
        found = self._affine(self.pyramid, pyramid, self._form, self.start)
        other_way = self.start if isinstance(self.start, str) else np.linalg.inv(self.start)
        back = self._affine(pyramid, self.pyramid, self._form, other_way)
        found = replace(found, matrix=mean_matrix(found.matrix, back.matrix))
        half = root(found.matrix)
        there = self._warp(self.pyramid, pyramid, found.matrix, found)
        again = self._warp(pyramid, self.pyramid, np.linalg.inv(found.matrix), found)
        warp = middle_warp(there, again, half) if there and again else None
        middle = middle_grid(fixed, moving, half)
        transform, inverse = self._maps(half, warp, middle, moving)
        first, from_first = self._maps(np.linalg.inv(half), warp and to_fixed(warp), middle, fixed)
        metrics = self._quality(warp, transform, inverse, half)
        target = resample(self.fixed, middle, first)
        files = {"fixed_image": target, "fixed_transform": first, "fixed_inverse_transform": from_first}
        return _Outcome(found, target, transform, inverse, chain([transform, from_first]), warp, metrics, files)

    @property
    def _form(self) -> str:
        """Of the affine map."""
        return "rigid" if self.choices.kind == "rigid" else "affine"

    def _affine(self, fixed: Pyramid, moving: Pyramid, form: Any, start: Any) -> Any:
        """The rigid or affine map from `fixed` to `moving`; `start` as in the engine's `Settings`."""
        from medkit_register.affine import Settings, register_affine

        metric: Any = "mi" if self.choices.metric == "mind" else self.choices.metric
        return register_affine(fixed, moving, Settings(form, metric, start, self.runtime.seed))

    def _warp(self, fixed: Pyramid, moving: Pyramid, matrix: np.ndarray, found: Any) -> Warp | None:
        """What refines the affine map `matrix`; `found` is what the engine gave. None where the type is affine."""
        if not self.choices.bends:
            return None
        from medkit_register.deformable import register_deformable

        quality: Any = self.choices.quality
        followed = warp_metric(self.choices.metric, found.metric, found.alike)
        return register_deformable(
            fixed, moving, matrix, metric=followed, quality=quality, device=self.runtime.device, network=self.network
        )

    def _maps(self, matrix: np.ndarray, warp: Warp | None, fixed: Grid, moving: Grid) -> tuple[Transform, Transform]:
        """The transform from `fixed` to `moving`, and the one back."""
        from medkit.space import AffineTransform
        from medkit_register.fields import backward_field, forward_field

        if warp is None:
            linear = AffineTransform(matrix, fixed.digest(), moving.digest(), dims=min(fixed.dims, moving.dims))
            return linear, linear.inverse()
        transform = forward_field(warp, fixed, moving)
        return transform, backward_field(warp, transform, moving)

    def _quality(self, warp: Warp | None, transform: Any, inverse: Any, to_target: np.ndarray) -> dict[str, Any]:
        """Folding of a warp, and how far its two fields are from each other where the object is.

        `to_target` (4, 4) RAS+ mm takes fixed points to the space that `transform` leads from.
        """
        if warp is None:
            return {}
        from medkit.space import apply_affine
        from medkit_register.fields import folding, inverse_error

        to_voxels = np.linalg.inv(transform.grid.affine) @ to_target @ self.fixed.grid.affine
        error = inverse_error(transform, inverse, apply_affine(to_voxels, self._object_voxels()))
        return {**folding(warp), "inverse_error_mm": error}

    def _object_voxels(self) -> np.ndarray:
        """(N, 3) indices of some of the voxels that the object fills."""
        data = self.fixed.data[0]
        low, high = np.percentile(data[::3, ::3, ::3] if min(data.shape) > 9 else data, (0.5, 99.5))
        inside = np.flatnonzero(data.reshape(-1, order="A") > low + self.pyramid.threshold * (high - low))
        order: Any = "F" if data.flags.f_contiguous else "C"
        chosen = inside[:: max(1, len(inside) // _PROBES)]
        return np.stack(np.unravel_index(chosen, data.shape, order), axis=1)

    def _similarity(self, fixed: Image, moved: Image) -> dict[str, float]:
        import torch

        from medkit.metrics import similarity

        return similarity(*(torch.from_numpy(image.data[0].astype(np.float32)) for image in (fixed, moved)))

    def _figure(self, fixed: Image, moved: Image, name: str) -> np.ndarray:
        from medkit.figures import overlay_mosaic

        return overlay_mosaic(fixed, moved, kind="image", title=f"{name} on {self.path.name}, {self.choices.kind}")


_PROBES = 20_000
"""Voxels at which the inverse is tried."""


@dataclass(frozen=True, eq=False)
class _Outcome:
    """Transforms and what is known of them."""

    found: Any
    """The affine part, as `register_affine` gives it."""
    target: Image
    """The fixed image where the moving one is brought to: as it is, or half-way."""
    transform: Transform
    """The target's points to the moving scan."""
    inverse: Transform
    """Back."""
    whole: Transform
    """Fixed points to the moving scan."""
    warp: Warp | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Any] = field(default_factory=dict)
    """Role -> further outputs."""


ALIKE = 0.58
"""Correlation of intensities from which a warp follows local correlation: T1 and FLAIR reach 0.55, for scalp and fluid
are alike in both, T1 with and without contrast agent 0.59. Scans that are wrongly taken for unlike lose little, those
wrongly taken for alike half of their Dice, so it is higher than where the affine map's metric is chosen."""


def warp_metric(asked: str, affine: str, alike: float | None = None) -> str:
    """What a warp follows: unlike contrasts need mind.

    `asked` is what was asked for, `affine` what the affine map followed, `alike` by how much the intensities correlate.
    """
    unlike = affine == "mi" or (alike is not None and alike < ALIKE)
    return "mind" if asked == "mind" or (asked == "auto" and unlike) else affine


def _story(found: Any, warp: Warp | None) -> dict[str, Any]:
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
