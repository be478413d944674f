"""Apply transforms to images, labels and points."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from medkit.errors import InputError
from medkit.evaluation.matching import shared_and_own
from medkit.images.label_values import is_whole, looks_like_labels
from medkit.pipe.records import absolute, record_of
from medkit.run.outputs import Output
from medkit.run.task import Case, Result, Runtime, Task
from medkit.space import Grid
from medkit.transform_tasks.checks import check_ends
from medkit.transform_tasks.label_images import stated_kind
from medkit.transforms.files import read_transform
from medkit.transforms.points import POINT_SUFFIXES, Points, read_points, write_points
from medkit.transforms.transform import Transform, compose

if TYPE_CHECKING:
    from medkit.images.image import Image
    from medkit.transforms.resampling import Interpolation

    _Opener = Callable[[Path | None, tuple[tuple[Path, bool], ...]], "_Applier"]

PointsFrom = Literal["input", "reference"]
_POINT_KINDS = ("points", "table")
_ADVICE = "use --inverse-transform"
OF_RECORDS = {"transform": False, "inverse_transform": True}
"""Role of a transform that a record brings -> whether it is inverted; both are applied in this order."""
_NEAR = 0.01
"""mm; a point that is mapped and mapped back to within this distance has an inverse."""


@dataclass(frozen=True)
class ApplySettings:
    """How transforms are applied."""

    interpolation: str = "auto"
    """`linear`, `nearest`, `label`, or `auto`, which is `label` for label images and `linear` for others."""
    points_from: PointsFrom = "input"
    """Space of the points: `input` (they move with the input image) or `reference` (as in ANTs and ITK)."""
    coordinates: str = "RAS"
    """Frame of the points in tables, `RAS` or `LPS`."""
    outside: float | None = None
    """Value outside the image; None: air for a CT, the minimum of other images with negative values, else 0."""


def application(reference: Path | None, transforms: Sequence[tuple[Path, bool]], settings: ApplySettings) -> Task:
    """Return the task that applies `transforms` to its inputs, the first one first.

    Each transform is given by its file and whether it is inverted. `{id}` in a path stands for the case. A record may
    bring transforms of its own, which come before these, and a reference.
    """
    given = {} if reference is None else {"reference": absolute(reference)}
    chain = {}
    for number, (path, inverted) in enumerate(transforms, start=1):
        role = f"{'inverse_transform' if inverted else 'transform'}_{number}"
        chain[role] = inverted
        given[role] = absolute(path)
    shared, own = shared_and_own(given)
    return Task(
        name="transform apply",
        outputs=(
            Output(
                *("result", "image", "transformed"),
                entities={"space": "{space}"} if "reference" in shared else {"desc": "transformed"},
                reference=shared.get("reference"),
                extensions=POINT_SUFFIXES,
            ),
        ),
        setup=functools.partial(_set_up, shared=shared, chain=chain, settings=settings),
        arguments=_arguments(settings),
        takes=("image", "labels", "mask", *_POINT_KINDS),
        accepts=("reference", *OF_RECORDS),
        shared=shared,
        own=own,
    )


def _arguments(settings: ApplySettings) -> dict[str, Any]:
    """Return the settings for the sidecar; those other than the interpolation only if they differ from the defaults."""
    others = {key: getattr(settings, key) for key in ("points_from", "coordinates", "outside")}
    default = ApplySettings()
    return {"interpolation": settings.interpolation} | {k: v for k, v in others.items() if v != getattr(default, k)}


def _set_up(
    runtime: Runtime, *, shared: Mapping[str, Path], chain: Mapping[str, bool], settings: ApplySettings
) -> Callable[[Case], Result]:
    """Return the work on a case; what all cases share is read now. Raises InputError."""
    opener = functools.lru_cache(maxsize=1)(_opened)
    if set(chain) <= set(shared):
        opener(shared.get("reference"), tuple((shared[role], inverted) for role, inverted in chain.items()))
    return functools.partial(_apply, opener=opener, chain=chain, settings=settings)


def _apply(case: Case, *, opener: _Opener, chain: Mapping[str, bool], settings: ApplySettings) -> Result:
    """Work on one case. Raises InputError."""
    brought = {role: inverted for role, inverted in OF_RECORDS.items() if role in case.inputs}
    files = tuple((case.inputs[role], inverted) for role, inverted in {**brought, **chain}.items())
    return opener(case.inputs.get("reference"), files)(case, settings)


def _opened(reference: Path | None, files: tuple[tuple[Path, bool], ...]) -> _Applier:
    """Read the reference's grid and the transforms, each inverted or not. Raises InputError."""
    from medkit.images.image import read_grid

    parts = []
    for path, inverted in files:
        part = read_transform(path)
        parts.append(part.inverse() if inverted else part)
    transform = compose(parts, [path.name for path, _ in files]) if parts else None
    return _Applier(reference, read_grid(reference) if reference else None, transform)


@dataclass(frozen=True, eq=False)
class _Applier:
    """The transforms as one transform, applied to one case at a time."""

    reference: Path | None
    """Image on whose grid results lie."""
    grid: Grid | None
    """Its grid."""
    transform: Transform | None
    """Map from reference points to input points, RAS+ mm; None is the identity."""
    settings: ApplySettings = ApplySettings()
    """How it is applied."""

    def __call__(self, case: Case, settings: ApplySettings) -> Result:
        applier = replace(self, settings=settings)
        return applier._points(case) if _own_kind(case) in _POINT_KINDS else applier._image(case)

    def _image(self, case: Case) -> Result:
        from medkit.transforms.resampling import resample

        if self.grid is None or self.reference is None:
            raise InputError(f"{case.path}: an image needs --reference, the image whose grid the result lies on")
        image, kind, interpolation, warnings = self._read(case)
        warnings += check_ends(self.transform, self.grid, image.grid, _ADVICE) if self.transform else []
        moved = resample(image, self.grid, self.transform, interpolation, self.settings.outside)
        if image.data.any() and not moved.data.any():
            warnings.append(f"the result is empty: {case.path.name} does not overlap {self.reference.name}")
        return Result(
            {"result": moved},
            warnings=warnings,
            spatial_reference=self.reference,
            kind=kind,
            description=f"{case.path.name} resampled onto {self.reference.name}",
        )

    def _read(self, case: Case) -> tuple[Image, str, Interpolation, list[str]]:
        """Return the image, its kind, how it is interpolated, and warnings. Raises InputError."""
        name, wanted = case.path.name, self.settings.interpolation
        own = _own_kind(case)
        kind = stated_kind(case.path, own)
        discrete = kind in ("labels", "mask")
        interpolation = cast("Interpolation", ("label" if discrete else "linear") if wanted == "auto" else wanted)
        blended = interpolation == "linear"
        try:
            image = case.image(labels=(discrete and not blended) or interpolation == "label")
        except InputError:
            # a name is weak evidence: maps of probabilities are called so too
            if wanted != "auto" or kind != own or case.record.medkit or is_whole(image := case.image()):
                raise
            return image, "image", "linear", [f"{name} is named like labels, but holds fractions: taken for an image"]
        if blended and discrete:
            return image, kind, interpolation, [f"linear interpolation blends the numbers of {name}, which are labels"]
        if blended and wanted == "auto" and looks_like_labels(image):
            advice = "looks like labels, whose numbers are blended: --interpolation label keeps them"
            return image, kind, interpolation, [f"{name} {advice}"]
        return image, kind, interpolation, []

    def _points(self, case: Case) -> Result:
        points = read_points(case.path, self.settings.coordinates, none=True)
        moved, sizes, warnings = self._moved_points(points)
        if self.transform and self.grid:
            warnings += check_ends(self.transform, self.grid, None, _ADVICE)
        where = "the input" if self.settings.points_from == "reference" else "the reference"
        return Result(
            {"result": _PointsFile(points, moved, self.settings.coordinates, sizes)},
            warnings=warnings,
            spatial_reference=self.reference,
            kind="points",
            description=f"{case.path.name} taken to the space of {where}",
        )

    def _moved_points(self, points: Points) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
        """Return moved points (N, 3), the extents (N, 3) of boxes around them if they have any, and warnings."""
        if points.sizes is None:
            moved, warnings = self._moved(points.positions)
            return moved, None, warnings
        signs = np.stack(np.meshgrid(*[(-0.5, 0.5)] * 3, indexing="ij"), axis=-1).reshape(1, 8, 3)
        corners = points.positions[:, None] + signs * points.sizes[:, None]
        moved, warnings = self._moved(corners.reshape(-1, 3))
        low, high = (end(moved.reshape(-1, 8, 3), axis=1) for end in (np.min, np.max))
        return (low + high) / 2, high - low, warnings

    def _moved(self, positions: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Return the moved points (N, 3), RAS+ mm, and warnings about points without an inverse."""
        if self.transform is None or not len(positions):
            return positions, []
        transform = self.transform if self.settings.points_from == "reference" else self.transform.inverse()
        moved = transform.map_points(positions)
        missed = np.linalg.norm(transform.inverse().map_points(moved) - positions, axis=1)
        lost = missed > _NEAR
        if not lost.any():
            return moved, []
        return moved, [
            f"{int(lost.sum())} of {len(lost)} points lie where the displacement field ends or folds: mapped back, "
            f"they miss their positions by up to {missed.max():.3g} mm"
        ]


def _own_kind(case: Case) -> str:
    """Return what the case's own input is; the record may be that of a transform that was made from it."""
    return (case.record if case.record.path == case.path else record_of(case.path)).kind


@dataclass(frozen=True, eq=False)
class _PointsFile:
    """Moved points, which keep everything else of the file they came from."""

    source: Points
    """The points as they were read."""
    positions: np.ndarray
    """(N, 3) the new positions, RAS+ mm."""
    coordinates: str
    """Frame of tables, `RAS` or `LPS`."""
    sizes: np.ndarray | None = None
    """(N, 3) the new extents of boxes, mm; None for points."""

    def write(self, path: Path) -> None:
        """Write in the format of the name (see `write_points`)."""
        source = self.source
        moved = Points(self.positions, source.names, source.named, source.path, sizes=self.sizes)
        write_points(path, moved, self.coordinates)
