"""Numbers and names of labels: tables that translate them, names next to a label image, lists such as `2,3,10-13`."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medkit.errors import InputError, UsageError
from medkit.pipe.names import stem

_TABLE = 1 << 20
"""Labels below this number are looked up in an array, larger ones by bisection."""


@dataclass(frozen=True)
class LabelMap:
    """Translation of the reference's label numbers into the result's."""

    numbers: Mapping[int, int]
    """Reference's number -> result's number; a number that is not listed, or that becomes 0, is left out."""
    names: Mapping[int, str] = field(default_factory=dict)
    """Result's number -> name of the structure."""

    @classmethod
    def read(cls, path: Path) -> LabelMap:
        """Read a tab-separated table with a header: the reference's number, the result's, and optionally a `name`.

        If several numbers become one, that one has the name they share, or none. Raises InputError.
        """
        header, *rows = _rows(path)
        name_column = header.index("name") if "name" in header else None
        if len(header) < 2 or name_column in (0, 1) or not rows:
            raise InputError(f"{path}: expected two columns of numbers below a header, and optionally one called name")
        numbers: dict[int, int] = {}
        names: dict[int, set[str]] = {}
        for line, row in enumerate(rows, start=2):
            try:
                source, target = int(row[0]), int(row[1])
            except (ValueError, IndexError):
                raise InputError(f"{path}: line {line}: expected two whole numbers, got {' '.join(row)!r}") from None
            if numbers.setdefault(source, target) != target:
                raise InputError(f"{path}: line {line}: {source} is mapped to {numbers[source]} and to {target}")
            if name_column is not None and name_column < len(row):
                names.setdefault(target, set()).add(row[name_column])
        return cls(numbers, {number: names[number].copy().pop() for number in names if len(names[number]) == 1})

    @property
    def targets(self) -> tuple[int, ...]:
        """The result's numbers in ascending order, without 0."""
        return tuple(sorted(set(self.numbers.values()) - {0}))


def translated(voxels: np.ndarray, numbers: Mapping[int, int]) -> np.ndarray:
    """Return whole numbers of any shape, each replaced by the number it is mapped to, or by 0 if it is not listed."""
    kind = np.min_scalar_type(max(numbers.values(), default=0))
    highest = int(voxels.max(initial=0))
    if highest < _TABLE:
        table = np.zeros(highest + 1, kind)
        for source, target in numbers.items():
            if source <= highest:
                table[source] = target
        return table[voxels]
    if not numbers:
        return np.zeros(voxels.shape, kind)
    sources = np.array(sorted(numbers), np.int64)
    targets = np.array([numbers[int(source)] for source in sources], kind)
    index = np.searchsorted(sources, voxels).clip(max=len(sources) - 1)
    return np.where(sources[index] == voxels, targets[index], 0).astype(kind)


def present(voxels: np.ndarray) -> set[int]:
    """Return the labels of a label image, without 0."""
    if int(voxels.max(initial=0)) < _TABLE:
        found = np.flatnonzero(np.bincount(voxels.ravel(order="K")))
    else:
        found = np.unique(voxels)
    return {int(label) for label in found} - {0}


def names_next_to(path: Path) -> dict[int, str]:
    """Return label -> name from the BIDS table next to a label image, `x_dseg.tsv` for `x_dseg.nii.gz`.

    Empty if there is no such table, or if it has no columns `index` and `name`.
    """
    table = path.with_name(stem(path) + ".tsv")
    if not table.is_file():
        return {}
    header, *rows = _rows(table)
    if not {"index", "name"} <= set(header):
        return {}
    index, name = header.index("index"), header.index("name")
    return {int(row[index]): row[name] for row in rows if len(row) > max(index, name) and row[index].strip().isdigit()}


def parse_labels(text: str) -> tuple[int, ...]:
    """Return the labels of a list such as `2,3,10-13` in ascending order. Raises UsageError.

    >>> parse_labels("3,10-12")
    (3, 10, 11, 12)
    """
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) < int(first):
            raise UsageError(f"{text}: expected labels such as 2,3,10-13")
        found.update(range(int(first), int(last or first) + 1))
    if 0 in found:
        raise UsageError(f"{text}: 0 is the background, which is never compared")
    return tuple(sorted(found))


def _rows(path: Path) -> Sequence[list[str]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file, delimiter="\t") if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected a tab-separated table: {error}") from error
    return rows or [[]]
