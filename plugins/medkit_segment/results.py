"""What every method of segmentation makes from its labels: some of the structures, files, measures, rows of tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import InputError, UsageError, did_you_mean, listed
from medkit.task import Output, Record, Table, Task, Text, Writable

if TYPE_CHECKING:
    from medkit.images import Image
    from medkit_segment.density import Density

OUTPUTS: Mapping[str, tuple[Output, ...]] = {
    "labels": (Output("labels", "labels", "dseg"), Output("table", "table", "dseg", ".tsv")),
    "mask": (Output("mask", "mask", "mask"),),
    "brain": (Output("brain", "image", "brain"),),
    "probabilities": (Output("probabilities", "image", "probseg"),),
    "regions": (
        Output("regions", "labels", "regions_dseg", entities={"desc": "regions"}),
        Output("regions_table", "table", "regions_dseg", ".tsv", {"desc": "regions"}, bids_suffix="dseg"),
    ),
}
ROLES = tuple(OUTPUTS)
TABLE_COLUMNS = (
    *("index", "name", "volume_mm3", "confidence", "expected_dice"),
    *("volume_l", "mean_hu", "share_below_-950", "share_above_-600"),
    "look_at",
)


@dataclass(frozen=True)
class SegmentChoices:
    """What to make from each case."""

    roles: tuple[str, ...]
    """Outputs, the main one first; some of `ROLES`."""
    clean: bool = True
    """Whether stray pieces of structures are removed."""
    labels: tuple[str, ...] = ()
    """Names of the structures to keep; empty: all."""
    split: bool = False
    """Whether each structure also gets a mask of its own."""
    table: Path | None = None
    """A file that takes the rows of all cases instead of files for each."""
    refine: bool = True
    """Whether the scan's intensities refine the labels of bundles that state how."""

    def names(self, known: Mapping[int, str], owner: str) -> dict[int, str]:
        """Return label -> name of what is kept. Raises UsageError if `owner` knows none of the names."""
        out = {n: name for n, name in known.items() if not self.labels or name in self.labels}
        if not out:
            raise UsageError(f"--labels {','.join(self.labels)}: {owner} knows {listed(list(known.values()))}")
        return out

    def check(self, known: Iterable[str]) -> None:
        """Raise UsageError for a structure that is not among those that can be found."""
        names = list(dict.fromkeys(known))
        if unknown := [name for name in self.labels if name not in names]:
            hint = did_you_mean(unknown[0], names)
            raise UsageError(f"--labels {unknown[0]}: expected some of {', '.join(names)}{hint}")

    def fitted(self, task: Task, names: Iterable[str]) -> Task:
        """Return a task with these outputs or this table, for structures of these names."""
        outputs = [output for role in self.roles for output in OUTPUTS[role]]
        if self.split:
            outputs += [split_output(name) for name in names]
        arguments = {"outputs": list(self.roles), "clean": self.clean, "labels": list(self.labels), "split": self.split}
        if self.table is not None:
            if self.split or self.roles != ("labels",):
                raise UsageError("--table writes no files for single cases: leave out --outputs and --split")
            return replace(
                task,
                outputs=(),
                table=Table(self.table, TABLE_COLUMNS, rows_of),
                arguments={**task.arguments, **arguments},
            )
        return replace(task, outputs=tuple(outputs), arguments={**task.arguments, **arguments})


@dataclass(frozen=True)
class Found:
    """The labels that a method found."""

    labels: np.ndarray
    """(I, J, K) uint8 or uint16, on the scan's grid."""
    names: Mapping[int, str]
    """Label -> name, found or not."""
    doubts: list[str] = field(default_factory=list)
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further facts for the sidecar."""


def split_output(name: str) -> Output:
    """Return the file of one structure's mask, such as `<stem>_lung_left.nii.gz`, or `…_label-lungleft_mask.nii.gz`."""
    word = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")
    return Output(f"split_{word}", "mask", word, entities={"label": word.replace("_", "")})


@dataclass(frozen=True)
class Measured:
    """The densities of a CT's structures; empty for other images."""

    cells: Mapping[int, Mapping[str, str]]
    """Label -> cells of the table."""
    metrics: Mapping[str, Any]
    doubts: Sequence[str] = ()
    """What to look at."""


def measured(image: Image, labels: np.ndarray, names: Mapping[int, str], path: Path) -> Measured:
    """Return the densities of structures in labels (I, J, K), if the image is a CT; `path`: of the scan."""
    from medkit_segment import density

    if not density.is_hounsfield(image):
        return Measured({}, {})
    found = density.densities(image.data[0], labels, image.grid.voxel_volume)
    named: dict[str, Density] = {names[n]: value for n, value in found.items() if n in names}
    rounded = {name: {k: round(v, 4) for k, v in asdict(value).items()} for name, value in named.items()}
    metrics = {"density": rounded, **density.lung_metrics(named, density.person_of(path))}
    doubts = [*density.airless(named), *density.gas(image.data[0], labels, found, names, image.grid.spacing.tolist())]
    return Measured({n: value.cells() for n, value in found.items()}, metrics, doubts)


def kept(labels: np.ndarray, names: Mapping[int, str]) -> np.ndarray:
    """Return labels (I, J, K) with those only that have a name here."""
    if not set(range(1, int(labels.max()) + 1)) - set(names):
        return labels
    wanted = np.zeros(int(labels.max()) + 1, labels.dtype)
    numbers = [n for n in names if n < len(wanted)]
    wanted[numbers] = numbers
    return wanted[labels]


def more_files(
    image: Image, labels: np.ndarray, names: Mapping[int, str], choices: SegmentChoices
) -> Iterable[tuple[str, Writable]]:
    """Yield the regions of the lungs and the masks of single structures, as far as they are wanted."""
    if "regions" in choices.roles:
        yield from _regions(image, labels, names)
    if choices.split:
        for number, name in names.items():
            yield split_output(name).role, image.with_data((labels == number)[None].astype(np.uint8))


def _regions(image: Image, labels: np.ndarray, names: Mapping[int, str]) -> Iterable[tuple[str, Writable]]:
    from medkit_segment import density, regions, report

    lungs = {name: labels == n for n, name in names.items() if name in regions.SIDES}
    if not any(mask.any() for mask in lungs.values()):
        raise InputError(f"{image.path}: expected lungs for --outputs regions, found none")
    made = regions.regions_of(lungs, image.grid.affine)
    yield "regions", image.with_data(made[None])
    rows = report.structures(made, image.grid.voxel_volume, None, report.Expected(regions.REGIONS, {}, {}))
    cells = {}
    if density.is_hounsfield(image):
        found = density.densities(image.data[0], made, image.grid.voxel_volume)
        cells = {n: value.cells() for n, value in found.items()}
    yield "regions_table", Text(report.as_tsv(rows, image.grid, cells))


def rows_of(record: Record) -> Sequence[Mapping[str, str]]:
    """Return a finished case's rows of the table of all cases: one for each structure."""
    block = record.medkit
    metrics = block.get("metrics", {})
    out = []
    for index, name in block.get("labels", {}).items():
        density = metrics.get("density", {}).get(name, {})
        row = {
            "index": index,
            "name": name,
            "volume_mm3": metrics.get("volumes_mm3", {}).get(name),
            "confidence": metrics.get("confidence", {}).get(name),
            "expected_dice": metrics.get("expected_dice", {}).get(name),
            "volume_l": density.get("volume_l"),
            "mean_hu": density.get("mean_hu"),
            "share_below_-950": density.get("below_950"),
            "share_above_-600": density.get("above_600"),
            "look_at": ", ".join(metrics.get("look_at", {}).get(name, [])),
        }
        out.append({key: str(value) for key, value in row.items() if value not in (None, "")})
    return out
