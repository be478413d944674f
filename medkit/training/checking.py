"""A look at the data before the first step: all faults at once, each with the names of its files."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import InputError, listed
from medkit.images.image import read_grid, read_image
from medkit.images.stored import FramesError
from medkit.machine.threads import granted_threads
from medkit.pipe.names import ANALYZE_SUFFIXES, IMAGE_SUFFIXES, PICTURE_SUFFIXES
from medkit.pipe.records import sha256_of
from medkit.space import Grid, apply_affine
from medkit.terminal.progress import steps, working_on
from medkit.training.data_layouts import is_label
from medkit.training.label_rules import LabelRule, label_rule
from medkit.training.splits import DataList, files_of, subject_of

if TYPE_CHECKING:
    from medkit.training.config import TrainConfig
    from medkit.training.plan import TrainingPlan

SAME_PLACE = 0.5
"""Share of a voxel by which the corners of an image's grid and of its labels' grid may differ."""
WILD = 3.0
"""Ratio of two spacings of a data set above which they are mentioned."""
_SIDES = ("trains", "validates", "is in the test")


@dataclass(frozen=True)
class Findings:
    """What was found in the data."""

    faults: tuple[str, ...]
    """Sentences about what a training must not start with."""
    notes: tuple[str, ...]
    """Sentences about what is worth knowing."""

    def require_none(self, source: object) -> None:
        """Raise InputError, which lists all faults, if there are any."""
        if self.faults:
            count = f"{len(self.faults)} faults" if len(self.faults) > 1 else "1 fault"
            raise InputError(
                "\n".join([f"{source}: {count} in the data (--no-check trains all the same)", *self.faults])
            )


@dataclass(frozen=True, eq=False)
class _Look:
    """What a file holds."""

    path: Path
    fault: str = ""
    grid: Grid | None = None
    """None for pictures and arrays."""
    values: tuple[int, ...] | None = None
    """The labels in it; None for images."""
    digest: str = ""


@dataclass(frozen=True)
class _Files:
    """The files of the data, and what they hold."""

    looks: Mapping[tuple[Path, bool], _Look] = field(default_factory=dict)
    """(file, whether it holds labels) -> what it holds."""

    def of(self, item: Mapping[str, Any], keys: Iterable[str], *, labels: bool) -> list[_Look]:
        """Return what the files of an item hold: its labels, or its images."""
        paths = files_of(item, [key for key in keys if is_label(key) == labels])
        return [self.looks[path, labels] for path in paths if (path, labels) in self.looks]


def checked(plan: TrainingPlan, config: TrainConfig, data: DataList) -> tuple[str, ...]:
    """Check the data if the plan says so, and return what is worth knowing.

    Raises InputError, which lists all faults.
    """
    if not plan.check:
        return ()
    keys = config.data_keys
    found = check_data(data, keys, label_rule(config, keys), plan.threads or granted_threads())
    found.require_none(f"--data {plan.data}" if plan.data else config.path)
    return found.notes


def check_data(data: DataList, keys: Sequence[str], rule: LabelRule, threads: int) -> Findings:
    """Read all files of a training's items, and return what is wrong with them.

    `keys`: those that the config reads; `rule`: which labels its network can learn.
    """
    parts = [
        [item for item in part if isinstance(item, Mapping)] for part in (data.training, data.validation, data.test)
    ]
    wanted = [*keys, *(key for key in ("image", "label") if key not in keys)]  # those of the test
    files = _Files(_looked_at(itertools.chain(*parts), wanted, threads))
    faults = [
        *_on_two_sides(data, parts, wanted, files),
        *(look.fault for look in files.looks.values() if look.fault),
        *_strange_labels(files, rule),
        *(() if rule.resampled else _other_grids(itertools.chain(*parts), wanted, files)),
    ]
    empty_faults, empty_notes = _empty(parts, wanted, files)
    notes = [*empty_notes, *_wild_spacings(files)]
    if rule.unknown and any(look.values for look in files.looks.values()):
        notes.append(f"which labels the network can learn is not known, since the config changes them: {rule.unknown}")
    return Findings(tuple(dict.fromkeys((*faults, *empty_faults))), tuple(notes))


# ---- files


def _looked_at(items: Iterable[Mapping[str, Any]], keys: Sequence[str], threads: int) -> dict[tuple[Path, bool], _Look]:
    """Read every file once, several at a time: headers of all first, so that what is quickly found is found quickly."""
    wanted = dict.fromkeys((path, is_label(key)) for item in items for key in keys for path in files_of(item, [key]))
    found: dict[tuple[Path, bool], _Look] = {}
    with working_on("data", "checking"), steps(len(wanted), "files") as advance, ThreadPoolExecutor(threads) as pool:
        for place, look in zip(wanted, pool.map(lambda place: _look(*place), wanted), strict=True):
            found[place] = look
            advance()
    return found


def _look(path: Path, labels: bool) -> _Look:
    """Return what a file holds; files of forms that medkit does not read are only digested."""
    name = path.name.lower()
    try:
        if not path.exists():
            return _Look(path, fault=f"{path}: does not exist")
        if path.is_dir() or name.endswith((*IMAGE_SUFFIXES, *ANALYZE_SUFFIXES, ".dcm", ".ima")):
            return _image(path, labels)
        if name.endswith(PICTURE_SUFFIXES):
            return _Look(path, values=_picture(path, labels), digest=sha256_of(path))
        if name.endswith(".npy"):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            return _Look(path, values=_values(np.asarray(array)) if labels else None, digest=sha256_of(path))
        return _Look(path, digest=sha256_of(path))
    except InputError as error:
        text = str(error)
        return _Look(path, fault=text if str(path) in text else f"{path}: {text}")
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        return _Look(path, fault=f"{path}: cannot be read: {' '.join(str(error).split())[:200]}")


def _image(path: Path, labels: bool) -> _Look:
    grid = read_grid(path)
    digest = sha256_of(path) if path.is_file() else ""
    try:
        image = read_image(path, labels=labels)
    except FramesError as error:
        if error.count > 1:  # channels in one file, as in the Medical Decathlon
            return _Look(path, grid=grid, digest=digest)
        raise
    return _Look(path, grid=grid, values=_values(image.data) if labels else None, digest=digest)


def _picture(path: Path, labels: bool) -> tuple[int, ...] | None:
    from PIL import Image as Picture

    with Picture.open(path) as opened:
        pixels = np.asarray(opened)
    return _values(pixels) if labels else None


def _values(data: np.ndarray) -> tuple[int, ...]:
    """Return the labels in an array, ascending."""
    if np.issubdtype(data.dtype, np.integer) and data.size and data.min() >= 0 and data.max() < 1 << 16:
        return tuple(np.flatnonzero(np.bincount(data.reshape(-1))).tolist())
    return tuple(int(value) for value in np.unique(data))


# ---- faults


def _on_two_sides(
    data: DataList, parts: Sequence[Sequence[Mapping[str, Any]]], keys: Sequence[str], files: _Files
) -> Iterator[str]:
    """Yield a sentence for each subject, and each content of a file, that is in two parts of the data."""
    seen: dict[str, tuple[int, str]] = {}
    told: set[str] = set()
    for side, part in enumerate(parts):
        for item in part:
            paths = files_of(item, keys)
            name = str(paths[0]) if paths else str(item)[:80]
            subject = subject_of(item, keys, data)
            marks = {f"subject {subject}": "subject"}
            images = files.of(item, keys, labels=False) or files.of(item, keys, labels=True)
            marks |= {look.digest: "file" for look in images if look.digest}
            for mark, what in marks.items():
                first = seen.setdefault(mark, (side, name))
                if first[0] == side or name in told:
                    continue
                told.add(name)
                same = f"is of {mark} too" if what == "subject" else "is the same image"
                yield f"{name} {_SIDES[side]}, and {first[1]}, which {_SIDES[first[0]]}, {same}"


def _strange_labels(files: _Files, rule: LabelRule) -> Iterator[str]:
    for look in files.looks.values():
        if look.values and (strange := rule.strange(look.values)):
            shown = listed([str(value) for value in strange[:8]]) + (" and more" if len(strange) > 8 else "")
            yield f"{look.path}: expected {rule.text}, got {shown} as well"


def _other_grids(items: Iterable[Mapping[str, Any]], keys: Sequence[str], files: _Files) -> Iterator[str]:
    """Yield a sentence for each item whose files have different grids."""
    for item in items:
        looks = [*files.of(item, keys, labels=False), *files.of(item, keys, labels=True)]
        placed = [(look.path, look.grid) for look in looks if look.grid is not None]
        for path, grid in placed[1:]:
            if words := _difference(placed[0][1], grid):
                yield f"{path}: expected the grid of {placed[0][0]}, got {words}"


def _difference(one: Grid, other: Grid) -> str:
    """Return how a grid differs from another one, in words; empty if it does not."""
    if one.shape != other.shape:
        return f"{' x '.join(map(str, other.shape))} voxels for {' x '.join(map(str, one.shape))}"
    corners = np.array(list(itertools.product(*((0, n - 1) for n in one.shape))))
    apart = np.linalg.norm(apply_affine(one.affine, corners) - apply_affine(other.affine, corners), axis=1).max()
    return f"another place or direction, {apart:.1f} mm away" if apart > SAME_PLACE * one.spacing.min() else ""


# ---- notes


def _empty(
    parts: Sequence[Sequence[Mapping[str, Any]]], keys: Sequence[str], files: _Files
) -> tuple[list[str], list[str]]:
    """Return a fault for each part of the data whose labels are all empty, and a note about single empty ones."""
    faults, notes = [], []
    for side, part in enumerate(parts):
        looks = [look for item in part for look in files.of(item, keys, labels=True) if look.values is not None]
        empty = [look.path for look in looks if set(look.values or ()) <= {0}]
        if empty and len(empty) == len(looks):
            faults += [f"{path}: no voxel has a label, as in all images of what {_SIDES[side]}" for path in empty]
        else:
            notes += [f"{path}: no voxel has a label" for path in empty]
    return faults, notes


def _wild_spacings(files: _Files) -> Iterator[str]:
    """Yield a sentence if the finest and the coarsest voxels of the images are very different."""
    found = [(look, np.sort(look.grid.spacing)) for look in files.looks.values() if look.grid is not None]
    for place, name in ((0, "smallest"), (2, "largest")):
        ordered = sorted(((float(spacing[place]), look.path) for look, spacing in found), key=lambda pair: pair[0])
        if ordered and ordered[-1][0] > WILD * ordered[0][0]:
            (low, fine), (high, coarse) = ordered[0], ordered[-1]
            yield f"the {name} spacing of a voxel goes from {low:.3g} mm ({fine}) to {high:.3g} mm ({coarse})"
            return
