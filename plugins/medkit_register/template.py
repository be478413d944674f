"""The task `template`: the unbiased average of several scans, and the transforms from it to each of them.

Round by round every scan is registered to the average so far, and the average is made anew: of the intensities, in a
space from which the transforms to the scans are the identity on average (Joshi 2004; Avants 2010). Scans are read one
at a time and summed; what is kept of each is its map, at the spacing of the warp.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import InputError
from medkit.task import Case, Output, Result, Runtime, Task, numbered

if TYPE_CHECKING:
    from pathlib import Path

    from medkit.images import Image
    from medkit.space import Grid
    from medkit.transforms import Transform
    from medkit_register.deformable import Warp
    from medkit_register.pyramid import Pyramid

LEAST = 0.5
"""Where fewer than this share of the scans see anything, the template fades."""
_PROGRAM_BYTES = 500 * 2**20
_BYTES_PER_VOXEL = 100
"""Of one scan: its forms while it is registered, and the sums."""
_BYTES_PER_POINT = 180


@dataclass(frozen=True)
class TemplateChoices:
    """What the command's options say."""

    kind: str
    """rigid, affine or deformable."""
    iterations: int
    """Rounds of that kind."""
    quality: str
    """fast, default or best: of the last deformable round; those before it are fast."""
    sharpen: bool
    """Whether the average is sharpened after every round."""

    def rounds(self) -> list[str]:
        """The kind of each round after the first, rigid one."""
        return ["affine"] * (self.kind == "deformable") + [self.kind] * self.iterations


def average(wishes: TemplateChoices) -> Task:
    """The task for one set of options."""
    extension = ".nii.gz" if wishes.kind == "deformable" else ".tfm"
    there = {"from": "{suffix}", "to": "template", "mode": "image"}
    back = {"from": "template", "to": "{suffix}", "mode": "image"}
    return Task(
        name="template",
        outputs=[Output("image", "image", "template", entities={"desc": "template"})],
        members=[
            Output("transform", "transform", "transform", extension, there),
            Output("inverse_transform", "transform", "inverse_transform", extension, back),
        ],
        setup=functools.partial(set_up, wishes=wishes),
        arguments={
            "type": wishes.kind,
            "iterations": wishes.iterations,
            "sharpen": wishes.sharpen,
            **({"quality": wishes.quality} if wishes.kind == "deformable" else {}),
        },
        arity="all",
        whole=True,
        devices=("cpu", "cuda"),
        memory=functools.partial(memory_needed, kind=wishes.kind),
    )


def memory_needed(scan: Grid, *, kind: str) -> int:
    """Bytes at the peak for scans on grids like this one, without the maps (12 MB per brain)."""
    voxels = int(np.prod(scan.shape))
    return _PROGRAM_BYTES + voxels * (_BYTES_PER_VOXEL + _BYTES_PER_POINT * (kind == "deformable"))


def set_up(runtime: Runtime, *, wishes: TemplateChoices) -> Callable[[Case], Result]:
    """The work on one group."""
    from medkit.inference import choose_device

    runtime = replace(runtime, device=str(choose_device(runtime.device)))
    return functools.partial(_template, wishes, runtime)


def _template(wishes: TemplateChoices, runtime: Runtime, case: Case) -> Result:
    """The template of a group. Raises InputError for a single scan."""
    count = len(case.members)
    if count < 2:
        raise InputError(f"{case.path}: a template takes two scans or more, got one")
    group = _Group(case, runtime, [numbered("image", n) for n in range(1, count + 1)])
    group.begin()
    kinds = wishes.rounds()
    for number, kind in enumerate(kinds, start=1):
        group.advance(kind, wishes.quality if number == len(kinds) else "fast")
        if wishes.sharpen:
            group.mean = sharpened(group.mean)
    files: dict[str, Any] = {"image": group.template()}
    for number, member in enumerate(group.members, start=1):
        files[numbered("transform", number)] = _File(group, member, inverse=False)
        files[numbered("inverse_transform", number)] = _File(group, member, inverse=True)
    subjects = [{"path": str(m.path), "matrix_ras_mm": np.round(m.matrix, 6).tolist()} for m in group.members]
    return Result(
        files,
        metrics={"scans": count, "spread": group.spreads[-1]},
        warnings=group.warnings,
        details={"template": {"rounds": group.story(["rigid", *kinds]), "scans": subjects}},
        description=f"Average of {count} scans after {wishes.kind} registration",
        figure=functools.partial(_figure, files["image"], count),
    )


@dataclass(eq=False)
class _Member:
    """One scan of the group."""

    role: str
    path: Path
    grid: Grid
    matrix: np.ndarray
    """(4, 4) RAS+ mm, template points to points of the scan."""
    low: float
    high: float
    """Intensities that become 0 and 1."""
    warp: Warp | None = None
    """With `matrix` as its affine part; its `backward` is not up to date."""


@dataclass(eq=False)
class _Group:
    """The scans and their mean so far."""

    case: Case
    runtime: Runtime
    roles: list[str]
    members: list[_Member] = field(default_factory=list)
    mean: Image = field(init=False)
    """Intensities 0 .. 1."""
    spreads: list[float] = field(default_factory=list)
    """Per round: root mean square of the scans' differences from their mean where all see, as a share of the range."""
    moves: list[float] = field(default_factory=list)
    """Per round: mm by which the mean of the maps was moved back to the identity."""
    warnings: list[str] = field(default_factory=list)

    def begin(self) -> None:
        """The first round: all scans rigidly to the first one, then to where they meet on average."""
        from medkit_register.affine import AffineSettings, prepare, register_affine
        from medkit_register.pyramid import intensity_range

        first: Pyramid | None = None
        for role in self.roles:
            image = self._image(role)
            pyramid = prepare(self._volume(image))
            matrix = np.eye(4)
            if first is None:
                first = pyramid
            else:
                found = register_affine(first, pyramid, AffineSettings("rigid", seed=self.runtime.seed))
                self._warn(role, found.warnings)
                matrix = found.matrix
            low, high = intensity_range(self._volume(image).data)
            self.members.append(_Member(role, self.case.inputs[role], image.grid, matrix, low, high))
        self._centre_affine()
        self._average(self._grid())

    def advance(self, kind: str, quality: str) -> None:
        """One round: every scan to the mean so far, and the mean made anew."""
        from medkit_register.affine import prepare

        fixed = prepare(self._volume(self.mean))
        for member in self.members:
            self._register(fixed, member, kind, quality)
        if kind == "deformable":
            self._centre_warps()
        self._centre_affine()
        self._average(self._grid() if kind != "deformable" else self.mean.grid)

    def _register(self, fixed: Pyramid, member: _Member, kind: str, quality: Any) -> None:
        from medkit_register.affine import AffineSettings, prepare, register_affine
        from medkit_register.deformable import register_deformable
        from medkit_register.registration import warp_metric

        moving = prepare(self._volume(self._image(member.role)))
        form: Any = "rigid" if kind == "rigid" else "affine"
        found = register_affine(fixed, moving, AffineSettings(form, init=member.matrix, seed=self.runtime.seed))
        self._warn(member.role, found.warnings)
        member.matrix = found.matrix
        if kind == "deformable":
            metric = warp_metric("auto", found.metric, found.alike)
            member.warp = register_deformable(
                fixed, moving, found.matrix, metric=metric, quality=quality, device=self.runtime.device
            )

    def _centre_affine(self) -> None:
        """Moves the template to where the mean of the affine maps is the identity."""
        from medkit.space import apply_affine
        from medkit_register.mean_maps import mean_map, seen_from

        back = np.linalg.inv(mean_map([m.matrix for m in self.members]))
        if self.spreads:
            middle = self.mean.grid.centre[None]
            self.moves.append(float(np.linalg.norm(apply_affine(back, middle) - middle)))
        for member in self.members:
            member.matrix = member.matrix @ back
            member.warp = member.warp and seen_from(member.warp, back)

    def _centre_warps(self) -> None:
        """Bends the template to where the mean of the displacements is zero."""
        from medkit_register.mean_maps import centred

        warps = [m.warp for m in self.members if m.warp]
        for member, warp in zip(self.members, centred(warps), strict=True):
            member.warp = warp

    def _grid(self) -> Grid:
        from medkit_register.midpoint import common_grid

        return common_grid([m.grid for m in self.members], [m.matrix for m in self.members])

    def _average(self, grid: Grid) -> None:
        """The mean of the scans on `grid`, one read after the other."""
        from medkit.images import Image
        from medkit.transforms import resample

        total, squares, seen = (np.zeros(grid.shape, np.float32) for _ in range(3))
        for member in self.members:
            scaled = (self._image(member.role).data[0].astype(np.float32) - member.low) / (member.high - member.low)
            both = Image(np.stack([scaled, np.ones_like(scaled)]), member.grid)
            value, inside = resample(both, grid, self.transform(member, grid)).data
            total += value
            squares += value**2
            seen += inside
        count = len(self.members)
        mean = total / np.maximum(seen, LEAST * count)
        everywhere = seen > count - 0.5
        variance = squares[everywhere] / count - mean[everywhere] ** 2
        self.spreads.append(round(float(np.sqrt(max(variance.mean(), 0.0))) if variance.size else 0.0, 5))
        self.mean = Image(mean[None], grid)

    def transform(self, member: _Member, grid: Grid) -> Transform:
        """Points of the template on `grid` to points of the scan."""
        from medkit_register.registration import forward

        return forward(member.matrix, member.warp, grid, member.grid)

    def inverse(self, member: _Member) -> Transform:
        """Points of the scan to points of the template."""
        from medkit_register.mean_maps import with_inverse
        from medkit_register.registration import backward

        there = self.transform(member, self.mean.grid)
        return backward(member.warp and with_inverse(member.warp), there, member.grid)

    def template(self) -> Image:
        """The mean in the scans' own units: as bright as they are on average, float32."""
        low, high = (float(np.mean([getattr(m, end) for m in self.members])) for end in ("low", "high"))
        return self.mean.with_data(self.mean.data * np.float32(high - low) + np.float32(low))

    def story(self, kinds: list[str]) -> list[dict[str, Any]]:
        """Per round what was done and how it went, for the sidecar."""
        moves = [0.0, *self.moves]
        return [
            {"type": kind, "spread": spread, "moved_mm": round(move, 4)}
            for kind, spread, move in zip(kinds, self.spreads, moves, strict=True)
        ]

    def _image(self, role: str) -> Image:
        """A scan, read anew each time: all of them need not fit into memory."""
        image = self.case.image(role)
        self.case.release(role)
        return image

    def _volume(self, image: Image) -> Any:
        from medkit_register.registration import volume_of

        return volume_of(image, None)

    def _warn(self, role: str, warnings: tuple[str, ...]) -> None:
        self.warnings.extend(f"{self.case.inputs[role].name}: {warning}" for warning in warnings)


@dataclass(frozen=True, eq=False)
class _File:
    """A transform that is computed when it is written: those of all scans at once would not fit into memory."""

    group: _Group
    member: _Member
    inverse: bool

    def write(self, path: Path) -> None:
        """Computes and writes it."""
        from medkit.transforms import write_transform

        group = self.group
        found = group.inverse(self.member) if self.inverse else group.transform(self.member, group.mean.grid)
        write_transform(found, path)


def sharpened(image: Image) -> Image:
    """The image and as much again of what a Gaussian of one voxel takes from it; within its range."""
    from scipy.ndimage import gaussian_filter

    data = image.data
    sigma = [0.0] + [1.0 if n > 1 else 0.0 for n in data.shape[1:]]
    return image.with_data(np.clip(2 * data - gaussian_filter(data, sigma), data.min(), data.max()))


def _figure(template: Image, count: int) -> np.ndarray:
    from medkit.figures import overlay_mosaic

    return overlay_mosaic(template, template, kind="image", title=f"template of {count} scans")
