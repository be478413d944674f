"""Text that is drawn into pixels, found by its shape: rows of small sharp marks of one brightness on one line.

It is not read, and nothing learned is in it. What it finds, and what it misses, is measured in docs/privacy.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Box = tuple[int, int, int, int]
"""Rows from and to, columns from and to; the ends are not in it."""

_SIZES = (9, 21)
"""Pixels of the squares in which strokes are thinner than what surrounds them: for small and for large letters."""
_CONTRAST = 0.3
"""Share of the range of the plane by which strokes stand out at least."""
_LOWEST, _HIGHEST = 5, 64
"""Pixels of the height of a letter."""
_FEWEST = 4
"""Letters of a line at least."""
_FEWEST_IF_UNLIKELY = 6
"""The same, in images that usually have no text."""
_ONE_BRIGHTNESS = 0.05
"""Standard deviation of the brightness of letters there at most, as a share of the range."""
_SAME_BRIGHTNESS = 0.2
"""Share of the range within which the letters of a line are equally bright."""
_MARGIN = 0.35
"""Share of the height of a line by which its box is larger on each side: dots, accents and what is between words."""
_GAP = 2.0
"""Heights of a line between it and further marks that belong to it."""
_MOST_MARKS = 4000
"""Marks of a plane above which it is noise, not text."""


@dataclass(frozen=True)
class _Marks:
    """The marks of a plane that may be letters; all arrays have one value for each mark."""

    top: np.ndarray
    bottom: np.ndarray
    left: np.ndarray
    right: np.ndarray
    brightness: np.ndarray

    @property
    def height(self) -> np.ndarray:
        return self.bottom - self.top

    def __len__(self) -> int:
        return len(self.top)

    def chosen(self, keep: np.ndarray) -> _Marks:
        return _Marks(*(a[keep] for a in (self.top, self.bottom, self.left, self.right, self.brightness)))


def find_text(plane: np.ndarray, *, is_likely: bool = True) -> list[Box]:
    """Return the boxes of lines that look like text in a plane (rows, columns) or (rows, columns, colours).

    Where text is not likely, as in a slice of a CT, a line needs more letters and letters of one brightness.
    """
    values = plane.astype(np.float32)
    values = values.max(axis=2) if values.ndim == 3 else values
    low, high = float(values.min()), float(values.max())
    if min(values.shape) < 2 * _LOWEST or not high > low:
        return []
    scaled = (values - low) / (high - low)
    boxes: list[Box] = []
    for side in (scaled, 1 - scaled):
        for size in _SIZES:
            marks = _marks(side, size)
            letters = marks.chosen(_like_letters(marks, size))
            boxes += [
                _box(line, marks, values.shape) for line in _lines(letters) if _is_text(side, line, is_likely=is_likely)
            ]
    return merged(boxes)


def merged(boxes: list[Box]) -> list[Box]:
    """Return boxes of which no two overlap, in the order of their places."""
    found: list[Box] = []
    for box in sorted(boxes):
        while True:
            other = next((one for one in found if _overlap(box, one)), None)
            if other is None:
                break
            found.remove(other)
            box = (min(box[0], other[0]), max(box[1], other[1]), min(box[2], other[2]), max(box[3], other[3]))
        found.append(box)
    return sorted(found)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]


def _marks(side: np.ndarray, size: int) -> _Marks:
    """The connected bright strokes of the size of letters, in a plane (rows, columns) of 0 to 1."""
    from scipy import ndimage

    strokes = side - ndimage.grey_opening(side, size=(size, size)) > _CONTRAST
    labels, count = ndimage.label(strokes, np.ones((3, 3)))
    none = np.zeros(0)
    if not _FEWEST <= count <= _MOST_MARKS:
        return _Marks(none, none, none, none, none)
    rows, columns = zip(*ndimage.find_objects(labels), strict=True)
    edges = np.array([[r.start, r.stop, c.start, c.stop] for r, c in zip(rows, columns, strict=True)], float).T
    brightness = ndimage.maximum(side, labels, np.arange(1, count + 1))
    top, bottom, left, right = edges
    return _Marks(top, bottom, left, right, np.asarray(brightness))


def _like_letters(marks: _Marks, size: int) -> np.ndarray:
    """Which marks have the size of a letter, or of a few that touch each other."""
    height, width = marks.height, marks.right - marks.left
    return (height >= _LOWEST) & (height <= min(_HIGHEST, 3 * size)) & (width <= 4 * height)


def _lines(marks: _Marks) -> Iterator[_Marks]:
    """Groups of marks that stand next to each other on one line."""
    if len(marks) < _FEWEST:
        return
    order = np.argsort(marks.left)
    marks = marks.chosen(order)
    group = np.arange(len(marks))
    for n in range(len(marks)):
        follower = _next_letter(marks, n)
        if follower is not None:
            group[group == group[follower]] = group[n]
    for number, size in zip(*np.unique(group, return_counts=True), strict=True):
        if size >= _FEWEST:
            yield marks.chosen(group == number)


def _next_letter(marks: _Marks, n: int) -> int | None:
    """The nearest mark to the right that is as high and as bright and stands on the same line."""
    height = marks.height[n]
    gap = marks.left - marks.right[n]
    slack = max(1.0, 0.12 * height)
    fits = (gap >= -1) & (gap <= 1.1 * height) & (marks.left > marks.left[n])
    fits &= (np.abs(marks.bottom - marks.bottom[n]) <= slack) | (np.abs(marks.top - marks.top[n]) <= slack)
    fits &= (marks.height <= 1.7 * height) & (height <= 1.7 * marks.height)
    fits &= np.abs(marks.brightness - marks.brightness[n]) <= _SAME_BRIGHTNESS
    found = np.flatnonzero(fits)
    return int(found[np.argmin(gap[found])]) if len(found) else None


def _is_text(side: np.ndarray, line: _Marks, *, is_likely: bool) -> bool:
    """Whether a row of marks stands on a line, on ground that is much darker, and has marks of several widths."""
    height = float(np.median(line.height))
    if not is_likely and (len(line) < _FEWEST_IF_UNLIKELY or float(np.std(line.brightness)) > _ONE_BRIGHTNESS):
        return False
    on_line = np.abs(line.bottom - np.median(line.bottom)) <= max(1.0, 0.12 * height)
    if on_line.mean() < 0.6 or on_line.sum() < _FEWEST:
        return False
    if np.ptp(line.right - line.left) < 2 and np.ptp(line.height) < 2 and len(line) < 8:
        return False  # equal strokes at equal distances: a scale
    box = side[int(line.top.min()) : int(line.bottom.max()), int(line.left.min()) : int(line.right.max())]
    bright = float(np.median(line.brightness))
    ink = box > bright - 0.25
    ground = box[box < bright - _CONTRAST]
    if ground.size < 0.3 * box.size or not 0.05 < ink.mean() < 0.7:
        return False
    return float(np.std(ground)) < 0.25 and float(np.quantile(ground, 0.6)) < bright - 0.4


def _box(line: _Marks, marks: _Marks, shape: tuple[int, ...]) -> Box:
    """The box of a line, with the marks before and after it that are no longer than a word away."""
    height = float(line.height.max())
    margin = int(np.ceil(_MARGIN * height)) + 1
    top, bottom = int(line.top.min()) - margin, int(line.bottom.max()) + margin
    left, right = float(line.left.min()), float(line.right.max())
    beside = marks.chosen((marks.top >= top) & (marks.bottom <= bottom))
    for _ in range(len(beside)):
        near = (beside.right >= left - _GAP * height) & (beside.left <= right + _GAP * height)
        new = min(left, *beside.left[near]), max(right, *beside.right[near])
        if new == (left, right):
            break
        left, right = new
    return (
        max(0, top), min(shape[0], bottom), max(0, int(left) - 2 * margin), min(shape[1], int(right) + 2 * margin)
    )  # fmt: skip
