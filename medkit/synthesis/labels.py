"""What the labels of label maps mean: structures, tissues, left and right."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from medkit.errors import InputError


@dataclass(frozen=True)
class Prior:
    """Intensities (0 to 1) of a class in one contrast: normal distributions of the mean and of the deviation."""

    mean: float
    mean_deviation: float
    deviation: float
    deviation_deviation: float
    group: int
    """Number of the tissue; classes of the same tissue share a draw."""


@dataclass(frozen=True)
class LabelTable:
    """What the labels of a label map mean. Labels are renumbered to 0 .. N-1 in the order of `indices`."""

    indices: tuple[int, ...]
    """(N,) values in the files, ascending, with 0 first."""
    classes: tuple[int, ...]
    """(N,) intensity class of each value; left and right of a structure share one."""
    targets: tuple[int, ...]
    """(N,) label that a network has to find for each value; 0 is the background."""
    names: Mapping[int, str]
    """Name of each target."""
    priors: tuple[Prior, ...] = field(default=(), repr=False)
    """(N,) intensities in the contrast that is drawn most; empty without such a contrast."""

    @classmethod
    def read(
        cls, path: str | Path, priors: str | Path | None = None, outside: Sequence[int] | None = None
    ) -> LabelTable:
        """Read a table of labels and, if there is one, a table of their intensities.

        Args:
            path: tab-separated columns `index intensity_class target target_name` with a header.
            priors: tab-separated columns `index t1_class mean mean_sd std std_sd` with a header, intensities 0 to 255.
            outside: indices outside the brain. With them there are two targets only, 0 for these and 1 for all others,
                the brain.

        Raises InputError if a column or an index is missing.
        """
        rows = sorted(_rows(path, ("index", "intensity_class", "target", "target_name")), key=lambda r: int(r["index"]))
        indices = tuple(int(row["index"]) for row in rows)
        if not indices or indices[0] != 0:
            raise InputError(f"{path}: expected a row for index 0, the background")
        targets = tuple(int(row["target"]) for row in rows)
        names = {int(row["target"]): row["target_name"] for row in rows}
        classes = _paired([int(row["intensity_class"]) for row in rows], [row["target_name"] for row in rows])
        if outside is not None:
            targets = tuple(int(index not in outside) for index in indices)
            names = {0: "background", 1: "brain"}
        return cls(indices, classes, targets, names, _priors(priors, indices) if priors else ())

    @cached_property
    def channels(self) -> tuple[int, ...]:
        """Targets in the order of a network's channels; 0, the background, first."""
        return tuple(sorted(set(self.targets)))

    @cached_property
    def mirrored(self) -> tuple[int, ...]:
        """Number of the channel that each channel becomes in a mirror: the same name with left and right exchanged."""
        numbers = {name: number for number, name in self.names.items()}
        return tuple(self.channels.index(numbers.get(_other_side(self.names[t]), t)) for t in self.channels)

    def encode(self, labels: np.ndarray, path: str = "a label map") -> np.ndarray:
        """Return the values of a file renumbered to 0 .. N-1, uint8.

        Raises InputError for a value that the table does not list; `path` is named in the message.
        """
        values = np.asarray(labels).astype(np.int64)
        lookup = np.full(max(int(values.max(initial=0)), self.indices[-1]) + 1, -1, np.int16)
        lookup[list(self.indices)] = np.arange(len(self.indices))
        encoded = lookup[values]
        if (encoded < 0).any():
            unknown = sorted(set(np.unique(values[encoded < 0]).tolist()))[:5]
            raise InputError(f"{path}: expected only labels of the table, got {', '.join(map(str, unknown))} as well")
        return encoded.astype(np.uint8)


def _rows(path: str | Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a tab-separated table. Raises InputError if a column is missing."""
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t")
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise InputError(f"{path}: expected the columns {', '.join(columns)}; {', '.join(missing)} is missing")
        return list(reader)


def _priors(path: str | Path, indices: Sequence[int]) -> tuple[Prior, ...]:
    """Read the intensities of `indices`. Raises InputError if one is missing."""
    rows = {int(row["index"]): row for row in _rows(path, ("index", "t1_class", "mean", "mean_sd", "std", "std_sd"))}
    missing = [index for index in indices if index not in rows]
    if missing:
        raise InputError(f"{path}: expected a row for every index of the label table; index {missing[0]} is missing")
    numbers = ("mean", "mean_sd", "std", "std_sd")
    priors = []
    for row in (rows[index] for index in indices):
        mean, mean_deviation, deviation, deviation_deviation = (float(row[name]) / 255 for name in numbers)
        priors.append(Prior(mean, mean_deviation, deviation, deviation_deviation, int(row["t1_class"])))
    return tuple(priors)


def _other_side(name: str) -> str:
    """Return a structure's name with left and right exchanged."""
    for one, other in (("left", "right"), ("right", "left")):
        if name.startswith(one + " "):
            return other + name[len(one) :]
    return name


def _paired(classes: list[int], names: Sequence[str]) -> tuple[int, ...]:
    """Return the classes with those of the right side replaced by those of the left, paired in order of appearance."""
    for name in {n for n in names if n.startswith("left ")}:
        left = [i for i, n in enumerate(names) if n == name]
        right = [i for i, n in enumerate(names) if n == _other_side(name)]
        for one, other in zip(left, right, strict=False):
            classes[other] = classes[one]
    return tuple(classes)
