"""The unbiased average of a group of scans, round by round.

In each round every scan is registered to the average so far, and the average is recomputed: of the intensities, in a
space from which the transforms to the scans are the identity on average (Joshi 2004; Avants 2010). Scans are read one
at a time and summed; only the map of each is kept, at the spacing of the warp.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import InputError, MedkitError
from medkit.images import Image
from medkit.inference import choose_device
from medkit.space import Grid, apply_affine
from medkit.task import Case, Result, Runtime, counted, numbered, steps
from medkit.transforms import Transform, resample, write_transform
from medkit_register.affine import AffineSettings
from medkit_register.choices import TemplateChoices
from medkit_register.deformable import Warp, register_deformable
from medkit_register.fields import backward_transform, forward_transform
from medkit_register.masks import volume_of
from medkit_register.mean_maps import after_affine, centred, mean_map, with_inverse
from medkit_register.midpoint import common_grid
from medkit_register.pyramid import Pyramid, intensity_range
from medkit_register.registration import warp_metric
from medkit_register.verdict import register_better

if TYPE_CHECKING:
    from medkit.figures import Member

MEMBERS_SHOWN = 6
"""Most scans in the picture of `--qc`."""
MIN_COVERAGE = 0.5
"""Share of the scans that must cover a voxel: where fewer do, the template fades."""


def set_up(runtime: Runtime, *, choices: TemplateChoices) -> Callable[[Case], Result]:
    """Return the function that makes the template of one group."""
    runtime = replace(runtime, device=str(choose_device(runtime.device)))
    return functools.partial(make_template, choices, runtime)


def make_template(choices: TemplateChoices, runtime: Runtime, case: Case) -> Result:
    """Return the template of a group and the transforms of its scans. Raises InputError for a single scan."""
    count = len(case.members)
    if count < 2:
        raise InputError(f"{case.path}: a template takes two scans or more, got one")
    group = ScanGroup(case, runtime, [numbered("image", n) for n in range(1, count + 1)])
    kinds = choices.rounds()
    with steps(1 + len(kinds), "rounds") as advance:
        group.first_round()
        for number, kind in enumerate(kinds, start=1):
            advance()
            group.next_round(kind, choices.quality if number == len(kinds) else "fast")
            if choices.sharpen:
                group.mean = sharpened(group.mean)
    files: dict[str, Any] = {"image": group.template()}
    for number, scan in enumerate(group.scans, start=1):
        files[numbered("transform", number)] = LateTransform(group, scan, inverse=False)
        files[numbered("inverse_transform", number)] = LateTransform(group, scan, inverse=True)
    scans = [{"path": str(scan.path), "matrix_ras_mm": np.round(scan.matrix, 6).tolist()} for scan in group.scans]
    return Result(
        files,
        metrics={"scans": count, "spread": group.spreads[-1]},
        warnings=group.warnings,
        details={"template": {"rounds": group.round_blocks(["rigid", *kinds]), "scans": scans}},
        description=f"Average of {count} scans after {choices.kind} registration",
        figure=functools.partial(_figure, files["image"], group),
    )


@dataclass(eq=False)
class GroupScan:
    """One scan of a group, and its map."""

    role: str
    path: Path
    grid: Grid
    matrix: np.ndarray
    """(4, 4) RAS+ mm, template points to points of the scan."""
    low: float
    """Intensity that becomes 0."""
    high: float
    """Intensity that becomes 1."""
    warp: Warp | None = None
    """With `matrix` as its affine part; its `backward` is not up to date."""


@dataclass(eq=False)
class ScanGroup:
    """The scans of a case and their mean so far."""

    case: Case
    runtime: Runtime
    roles: list[str]
    scans: list[GroupScan] = field(default_factory=list)
    mean: Image = field(init=False)
    """Intensities 0 .. 1."""
    spreads: list[float] = field(default_factory=list)
    """Per round: root mean square difference of the scans from their mean, as a share of the intensity range; only
    voxels that all scans cover count."""
    moves: list[float] = field(default_factory=list)
    """Per round: mm by which the mean of the maps was moved back to the identity."""
    warnings: list[str] = field(default_factory=list)

    def first_round(self) -> None:
        """Register all scans rigidly to the first one, and average them in the middle of all."""
        first: Pyramid | None = None
        for role in counted(self.roles, "scans"):
            image = self.read(role)
            volume = volume_of(image)
            pyramid = Pyramid(volume)
            matrix = np.eye(4)
            if first is None:
                first = pyramid
            else:
                with self._errors_named(role):
                    found = register_better(first, pyramid, AffineSettings("rigid", seed=self.runtime.seed))
                self._warn(role, found.warnings)
                matrix = found.matrix
            self.scans.append(
                GroupScan(role, self.case.inputs[role], image.grid, matrix, *intensity_range(volume.data))
            )
        self._centre_affine()
        self._average(self._grid())

    def next_round(self, kind: str, quality: str) -> None:
        """Register every scan to the mean so far, and recompute the mean."""
        fixed = Pyramid(volume_of(self.mean))
        for scan in counted(self.scans, "scans"):
            self._register(fixed, scan, kind, quality)
        if kind == "deformable":
            self._centre_warps()
        self._centre_affine()
        self._average(self._grid() if kind != "deformable" else self.mean.grid)

    def _register(self, fixed: Pyramid, scan: GroupScan, kind: str, quality: Any) -> None:
        moving = Pyramid(volume_of(self.read(scan.role)))
        affine_type: Any = "rigid" if kind == "rigid" else "affine"
        settings = AffineSettings(affine_type, init=scan.matrix, seed=self.runtime.seed)
        with self._errors_named(scan.role):
            found = register_better(fixed, moving, settings)
        self._warn(scan.role, found.warnings)
        scan.matrix = found.matrix
        if kind == "deformable":
            metric = warp_metric("auto", found.metric, found.intensity_correlation)
            scan.warp = register_deformable(
                fixed, moving, found.matrix, metric=metric, quality=quality, device=self.runtime.device
            )

    def _centre_affine(self) -> None:
        """Move the template to where the mean of the affine maps is the identity."""
        back = np.linalg.inv(mean_map([scan.matrix for scan in self.scans]))
        if self.spreads:
            middle = self.mean.grid.centre[None]
            self.moves.append(float(np.linalg.norm(apply_affine(back, middle) - middle)))
        for scan in self.scans:
            scan.matrix = scan.matrix @ back
            scan.warp = scan.warp and after_affine(scan.warp, back)

    def _centre_warps(self) -> None:
        """Bend the template to where the mean of the displacements is zero."""
        warps = [scan.warp for scan in self.scans if scan.warp]
        for scan, warp in zip(self.scans, centred(warps), strict=True):
            scan.warp = warp

    def _grid(self) -> Grid:
        return common_grid([scan.grid for scan in self.scans], [scan.matrix for scan in self.scans])

    def _average(self, grid: Grid) -> None:
        """Compute the mean of the scans on `grid`, one read at a time."""
        total, squares, coverage = (np.zeros(grid.shape, np.float32) for _ in range(3))
        for scan in self.scans:
            scaled = (self.read(scan.role).data[0].astype(np.float32) - scan.low) / (scan.high - scan.low)
            both = Image(np.stack([scaled, np.ones_like(scaled)]), scan.grid)
            value, inside = resample(both, grid, self.transform(scan, grid)).data
            total += value
            squares += value**2
            coverage += inside
        count = len(self.scans)
        mean = total / np.maximum(coverage, MIN_COVERAGE * count)
        everywhere = coverage > count - 0.5
        variance = squares[everywhere] / count - mean[everywhere] ** 2
        self.spreads.append(round(float(np.sqrt(max(variance.mean(), 0.0))) if variance.size else 0.0, 5))
        self.mean = Image(mean[None], grid)

    def transform(self, scan: GroupScan, grid: Grid) -> Transform:
        """Return the transform from points of the template on `grid` to points of the scan."""
        return forward_transform(scan.matrix, scan.warp, grid, scan.grid)

    def inverse(self, scan: GroupScan) -> Transform:
        """Return the transform from points of the scan to points of the template."""
        to_scan = self.transform(scan, self.mean.grid)
        return backward_transform(scan.warp and with_inverse(scan.warp), to_scan, scan.grid)

    def template(self) -> Image:
        """Return the mean, float32, in the scans' own units: low and high intensities are their averages."""
        low, high = (float(np.mean([getattr(scan, end) for scan in self.scans])) for end in ("low", "high"))
        return self.mean.with_data(self.mean.data * np.float32(high - low) + np.float32(low))

    def round_blocks(self, kinds: list[str]) -> list[dict[str, Any]]:
        """Return per round what was done and how it went, for the sidecar."""
        moves = [0.0, *self.moves]
        return [
            {"type": kind, "spread": spread, "moved_mm": round(move, 4)}
            for kind, spread, move in zip(kinds, self.spreads, moves, strict=True)
        ]

    def read(self, role: str) -> Image:
        """Return a scan, which is read again each time: all of them need not fit into memory."""
        image = self.case.image(role)
        self.case.release(role)
        return image

    @contextlib.contextmanager
    def _errors_named(self, role: str) -> Iterator[None]:
        """Put the file that is registered in front of an error: the case has the name of the first one."""
        try:
            yield
        except MedkitError as error:
            raise MedkitError(f"{self.case.inputs[role]}: {error}") from error

    def _warn(self, role: str, warnings: tuple[str, ...]) -> None:
        self.warnings.extend(f"{self.case.inputs[role].name}: {warning}" for warning in warnings)


@dataclass(frozen=True, eq=False)
class LateTransform:
    """A transform that is computed when it is written: those of all scans at once would not fit into memory."""

    group: ScanGroup
    scan: GroupScan
    inverse: bool

    def write(self, path: Path) -> None:
        """Compute and write it."""
        group = self.group
        found = group.inverse(self.scan) if self.inverse else group.transform(self.scan, group.mean.grid)
        write_transform(found, path)


def sharpened(image: Image) -> Image:
    """Return the image plus its difference from itself after a Gaussian of one voxel, clipped to its range."""
    from scipy.ndimage import gaussian_filter

    data = image.data
    sigma = [0.0] + [1.0 if n > 1 else 0.0 for n in data.shape[1:]]
    return image.with_data(np.clip(2 * data - gaussian_filter(data, sigma), data.min(), data.max()))


def _figure(template: Image, group: ScanGroup) -> np.ndarray:
    """Return the picture: the template, and below it some of its scans in its space, (H, W, 3) uint8."""
    from medkit.figures import members_mosaic, overlay_mosaic, stacked

    count = len(group.scans)
    chosen = sorted({round(n) for n in np.linspace(0, count - 1, MEMBERS_SHOWN)})
    shown = "its scans" if len(chosen) == count else f"{len(chosen)} of its {count} scans, evenly chosen"
    members = [functools.partial(_member, group, group.scans[number]) for number in chosen]
    return stacked(
        [
            overlay_mosaic(template, title=f"template of {count} scans", slices=MEMBERS_SHOWN),
            members_mosaic(template, members, title=f"the template and {shown}"),
        ]
    )


def _member(group: ScanGroup, scan: GroupScan) -> Member:
    """Read a scan for the picture."""
    from medkit.figures import Member

    return Member(scan.path.name, group.read(scan.role), group.transform(scan, group.mean.grid).map_points)
