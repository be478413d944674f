"""The task `register`: files in, aligned image and transforms out. The alignment itself is in `affine`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import UsageError
from medkit.records import absolute
from medkit.task import Case, Output, Result, Runtime, Task

if TYPE_CHECKING:
    from medkit.images import Image
    from medkit.space import AffineTransform, Grid
    from medkit_register.pyramid import Pyramid, Volume

_STARTS = ("auto", "moments", "centre", "header")


def registration(shared: Mapping[str, Path], *, kind: str, metric: str, init: str) -> Task:
    """The task for one set of options. `shared` has the roles `fixed` and, where given, `fixed_mask`, `moving_mask`.

    Raises UsageError for an `init` that is neither a known word nor a file.
    """
    if init not in _STARTS:
        if not Path(init).is_file():
            raise UsageError(f"--init {init}: expected {', '.join(_STARTS)} or a transform file")
        shared = {**shared, "init": absolute(init)}
        init = "file"
    output = functools.partial(Output, reference=shared["fixed"])
    return Task(
        name="register",
        outputs=(
            output("image", "image", "registered", entities={"space": "{space}", "desc": "registered"}),
            output("transform", "transform", "transform", ".tfm", _direction("{suffix}", "{space}")),
            output("inverse_transform", "transform", "inverse_transform", ".tfm", _direction("{space}", "{suffix}")),
        ),
        setup=functools.partial(set_up, shared=shared, kind=kind, metric=metric, init=init),
        arguments={"type": kind, "metric": metric, "init": init},
        role="moving",
        accepts=("moving_mask",),
        shared=shared,
        memory=functools.partial(memory_needed, shared["fixed"]),
    )


def _direction(start: str, end: str) -> dict[str, str]:
    return {"from": start, "to": end, "mode": "image"}


def memory_needed(fixed: Path, moving: Grid) -> int:
    """Bytes that aligning an image on the grid `moving` takes at its peak, torch included (measured, see the tests)."""
    from medkit.images import read_grid

    voxels = [int(np.prod(grid.shape)) for grid in (read_grid(fixed), moving)]
    return _PROGRAM_BYTES + _BYTES_PER_VOXEL * sum(voxels)


_PROGRAM_BYTES = 400 * 2**20
_BYTES_PER_VOXEL = 40


def set_up(
    runtime: Runtime, *, shared: Mapping[str, Path], kind: str, metric: str, init: str
) -> Callable[[Case], Result]:
    """Reads and prepares what all cases share: the fixed image, its mask, a given start."""
    from medkit.images import read_image
    from medkit.space import read_transform
    from medkit_register.affine import prepare

    fixed = read_image(shared["fixed"])
    start: Any = init
    if init == "file":
        transform = read_transform(shared["init"])
        start = getattr(transform, "matrix", None)
        if start is None:
            raise UsageError(f"--init {shared['init']}: expected an affine transform")
    mask = _mask_on(fixed.grid, shared.get("fixed_mask"))
    return _Registration(shared["fixed"], fixed, prepare(_volume(fixed, mask)), kind, metric, start, runtime.seed).case


def _volume(image: Image, mask: np.ndarray | None) -> Volume:
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
    kind: str
    metric: str
    start: Any
    seed: int

    def case(self, case: Case) -> Result:
        """Aligns one moving image."""
        from medkit.resample import resample
        from medkit.space import AffineTransform
        from medkit_register.affine import Settings, register_affine

        moving = case.image()
        mask = _mask_on(moving.grid, case.inputs.get("moving_mask"))
        settings = Settings(type=self.kind, metric=self.metric, init=self.start, seed=self.seed)  # type: ignore[arg-type]
        found = register_affine(self.pyramid, _volume(moving, mask), settings)
        fixed = self.fixed.grid
        transform = AffineTransform(
            found.matrix, fixed.digest(), moving.grid.digest(), dims=min(fixed.dims, moving.grid.dims)
        )
        moved = resample(moving, fixed, transform)
        before, after = self._similarity(resample(moving, fixed)), self._similarity(moved)
        return Result(
            {"image": moved, "transform": transform, "inverse_transform": transform.inverse()},
            metrics={"before": before, "after": after},
            warnings=[*self.fixed.warnings, *found.warnings, *_verdict(before, after)],
            details={
                "grids": {"from": transform.from_grid, "to": transform.to_grid},
                "registration": _story(found, transform),
            },
            spatial_reference=self.path,
            description=f"{case.path.name} resampled onto {self.path.name} by {self.kind} registration",
            figure=functools.partial(self._figure, moved, case.path.name),
        )

    def _similarity(self, image: Image) -> dict[str, float]:
        import torch

        from medkit.metrics import similarity

        fixed, moved = (torch.from_numpy(i.data[0].astype(np.float32)) for i in (self.fixed, image))
        return similarity(fixed, moved)

    def _figure(self, moved: Image, name: str) -> np.ndarray:
        from medkit.figures import overlay_mosaic

        return overlay_mosaic(self.fixed, moved, kind="image", title=f"{name} on {self.path.name}, {self.kind}")


def _story(found: Any, transform: AffineTransform) -> dict[str, Any]:
    """How the alignment was found, for the sidecar."""
    return {
        "metric": found.metric,
        "reason": found.reason,
        "matrix_ras_mm": np.round(transform.matrix, 6).tolist(),
        "levels": [
            {"spacing_mm": round(level.spacing, 2), "steps": level.steps, "converged": level.converged}
            for level in found.levels
        ],
    }


def _verdict(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """Mutual information rises with alignment whatever the contrasts; if it fell, somebody must look."""
    if after["mi"] >= before["mi"]:
        return []
    return [f"mutual information fell from {before['mi']:.3f} to {after['mi']:.3f}: look at the result (--qc)"]
