"""The table of a label map's structures, and what a person should look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import listed
from medkit.figures import label_colours
from medkit.task import LOOK_AT_THIS

if TYPE_CHECKING:
    from medkit.space import Grid

UNSURE = 0.75
"""Smallest mean probability of a structure's voxels without a request to look; used if no expected Dice is known."""
POOR = 0.5
"""Smallest expected Dice of a structure without a request to look."""
EQUAL = 0.55
"""Smallest usual share of the smaller one's volume in the larger one's, of two organs that make a pair."""
NAMED = 3
"""Structures that a warning names; the others are counted."""
CUT_SHARE = 0.02
"""Largest share of a body's surface on the faces of the field of view; above it the body counts as cut off."""


@dataclass(frozen=True)
class Structure:
    """One structure of a label map."""

    index: int
    name: str
    volume_mm3: float
    confidence: float | None
    """Mean probability of its label over its voxels, 0 to 1; None if it was not found or nothing is known of it."""
    expected_dice: float | None
    """Dice that synthetic validation scans had with that confidence; None if the bundle does not state it."""
    look: tuple[str, ...]
    """Reasons why a person should look at it; empty if there are none."""


@dataclass(frozen=True)
class Expected:
    """What a bundle's metadata state about its labels, under `medkit`."""

    names: Mapping[int, str]
    """Label -> name."""
    volumes: Mapping[int, tuple[float, float]]
    """Label -> smallest and largest plausible volume in mm3; label 0: of all structures together (`total`)."""
    dice: Mapping[int, tuple[float, float]]
    """Label -> intercept and slope of the expected Dice as a function of the confidence."""
    whole: tuple[int, ...] = ()
    """Labels that should lie within the field of view as a whole; empty: all of them."""
    pairs: tuple[tuple[int, int], ...] = ()
    """Labels of organs that come in two, of about the same volume."""
    subject: str = "what the bundle is for"
    """What the bundle labels, such as `an adult brain`."""
    present: tuple[int, ...] = ()
    """Labels of structures of which at least one reaches its usual volume in an image of the subject."""
    least_dice: float = 0.0
    """Smallest mean of the expected Dice of all structures at which the image shows the subject."""
    whole_brain: bool = False
    """Whether all labels together are the brain, by whose shape a head that is turned is seen."""

    @classmethod
    def of(cls, names: Mapping[int, str], block: Mapping[str, Any]) -> Expected:
        """Read it from a bundle's metadata: the names of its labels and the block `medkit`."""
        stated = block.get("volumes_mm3") or {}
        volumes = {0 if key == "total" else int(key): (float(low), float(high)) for key, (low, high) in stated.items()}
        lines = block.get("expected_dice") or {}
        dice = {int(key): (float(intercept), float(slope)) for key, (intercept, slope) in lines.items()}
        whole = tuple(int(n) for n in block.get("whole") or ())
        trust = block.get("trust") or {}
        subject, least = str(trust.get("subject", cls.subject)), float(trust.get("expected_dice", 0))
        pairs = tuple((int(one), int(other)) for one, other in block.get("pairs") or ())
        present = tuple(int(n) for n in trust.get("present") or ())
        brain = bool(trust.get("whole_brain", False))
        return cls(names, volumes, dice, whole, pairs, subject, present, least, brain)

    def of_some(self, names: Mapping[int, str]) -> Expected:
        """Return what is expected of some of the labels only, without the volume of all together."""
        if names == self.names:
            return self
        volumes = {n: limits for n, limits in self.volumes.items() if n in names}
        return replace(self, names=names, volumes=volumes)

    def dice_at(self, index: int, confidence: float | None) -> float | None:
        """Return the expected Dice of a structure, 0 to 1; None if it is not known."""
        if confidence is None or index not in self.dice:
            return None
        intercept, slope = self.dice[index]
        return min(max(intercept + slope * confidence, 0.0), 1.0)


def structures(
    labels: np.ndarray, voxel_mm3: float, confidence: Mapping[int, float] | None, expected: Expected
) -> list[Structure]:
    """Return the table of a label map (I, J, K): every structure that the bundle knows, found or not.

    voxel_mm3: volume of a voxel.
    confidence: label -> mean probability of its voxels, None if the bundle has no probabilities.
    """
    counts = _counts(labels, max([int(labels.max(initial=0)), *expected.names]) + 1)
    out = []
    for index, name in sorted(expected.names.items()):
        volume = float(counts[index]) * voxel_mm3
        sure = (confidence or {}).get(index) if counts[index] else None
        look = []
        low, high = expected.volumes.get(index, (0.0, np.inf))
        if not low <= volume <= high:
            look.append("not found" if not counts[index] else "small" if volume < low else "large")
        dice = expected.dice_at(index, sure)
        if sure is not None and (sure < UNSURE if dice is None else dice < POOR):
            look.append("unsure")
        out.append(Structure(index, name, volume, _rounded(sure), _rounded(dice), tuple(look)))
    return out


def _counts(labels: np.ndarray, size: int) -> np.ndarray:
    """Return how often each label occurs, (size,); slice by slice, since counting needs eight bytes a voxel."""
    planes = labels.transpose(np.argsort(labels.strides)[::-1])
    return np.sum([np.bincount(plane.ravel(), minlength=size) for plane in planes], axis=0)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def strange(rows: Sequence[Structure], expected: Expected) -> list[str]:
    """Return sentences if an image seems to show another subject; `rows`: of all structures that the bundle knows.

    A structure that is not found counts as a Dice of 0. Nothing is said without structures that show the subject and
    without an expected Dice.
    """
    found = _too_small(rows, expected)
    known = [row.expected_dice or 0.0 for row in rows if row.index in expected.dice]
    measured = bool(known) and any(row.confidence is not None for row in rows)
    if measured and (mean := sum(known) / len(known)) < expected.least_dice:
        found.append(f"a mean Dice of {mean:.2f} is expected, at least {expected.least_dice:g} of one")
    return [f"{LOOK_AT_THIS}this may not be {expected.subject}: {text}" for text in found]


def _too_small(rows: Sequence[Structure], expected: Expected) -> list[str]:
    """Return a phrase if none of the structures that show the subject has its usual volume."""
    shown = [row for row in rows if row.index in expected.present]
    if not shown or any(row.volume_mm3 >= expected.volumes.get(row.index, (0.0, 0.0))[0] for row in shown):
        return []
    return [", ".join(f"{row.name} {row.volume_mm3 / 1000:.0f} ml" for row in shown)]


def warnings(labels: np.ndarray, rows: Sequence[Structure], expected: Expected) -> list[str]:
    """Return what is doubtful about the label map as a whole, in sentences that start with `look at this one`."""
    total = sum(row.volume_mm3 for row in rows)
    found = []
    low, high = expected.volumes.get(0, (0.0, np.inf))
    if not total:
        found.append("nothing was found")
    elif not low <= total <= high:
        found.append(f"{total / 1000:.0f} ml in all, expected {low / 1000:.0f} to {high / 1000:.0f}")
    whole = np.isin(labels, expected.whole) if expected.whole else labels > 0
    if (share := _at_the_faces(whole)) > CUT_SHARE:
        cut = _names_at_the_faces(np.where(whole, labels, 0), expected.names)
        found.append(f"cut off by the field of view ({share:.0%} of the surface): {cut}")
    else:
        found += _unequal(rows, expected.pairs)
    sure = [(row.confidence, row.volume_mm3) for row in rows if row.confidence is not None]
    mean = sum(c * v for c, v in sure) / sum(v for _, v in sure) if sure else None
    if mean is not None and mean < UNSURE:
        found.append(f"the network is unsure ({mean:.2f})")
    doubtful = [row for row in rows if row.look]
    if len(doubtful) > max(1, len(rows) // 5):
        found.append(f"{len(doubtful)} of {len(rows)} structures are doubtful, {doubtful[0].name} among them")
    return [LOOK_AT_THIS + text for text in found]


def _unequal(rows: Sequence[Structure], pairs: Sequence[tuple[int, int]]) -> list[str]:
    """Return a sentence for each pair of organs whose volumes differ much; pairs that are not wanted are left out."""
    by_index = {row.index: row for row in rows}
    known = [[by_index[n] for n in pair] for pair in pairs if set(pair) <= set(by_index)]
    sorted_pairs = [sorted(pair, key=lambda row: row.volume_mm3) for pair in known]
    return [
        f"{small.name} {small.volume_mm3 / 1000:.0f} ml, {large.name} {large.volume_mm3 / 1000:.0f} ml"
        for small, large in sorted_pairs
        if small.volume_mm3 < EQUAL * large.volume_mm3
    ]


def _at_the_faces(body: np.ndarray) -> float:
    """Return the share of a body's surface voxels that lie on the faces of the volume; `body`: (I, J, K) bool."""
    inside = 0
    if min(body.shape) > 2 and body.any():
        from scipy import ndimage

        (box,) = ndimage.find_objects(body.astype(np.uint8))
        inside = int(np.count_nonzero(ndimage.binary_erosion(body[box])))
    surface = int(np.count_nonzero(body)) - inside
    return sum(int(face.sum()) for face in _faces(body)) / surface if surface else 0.0


def _names_at_the_faces(labels: np.ndarray, names: Mapping[int, str]) -> str:
    """Return the structures on the faces of a label map (I, J, K), the one with the most voxels there first."""
    there = np.bincount(np.concatenate([face.ravel() for face in _faces(labels)]))
    cut = [str(names.get(int(n), f"label {n}")) for n in np.argsort(-there, kind="stable") if n and there[n]]
    rest = [f"{len(cut) - NAMED} more"] if len(cut) > NAMED else []
    return listed([*cut[:NAMED], *rest])


def _faces(volume: np.ndarray) -> list[np.ndarray]:
    """Return the planes of a volume (I, J, K) that lie on its faces; none across an axis of one voxel."""
    return [np.take(volume, end, axis) for axis in range(3) if volume.shape[axis] > 1 for end in (0, -1)]


def volumes(rows: Sequence[Structure], grid: Grid) -> dict[str, Any]:
    """Return the volumes of structures for the sidecar, mm3; empty for planes, which have no depth."""
    if grid.dims == 2:
        return {}
    return {
        "total_mm3": round(sum(row.volume_mm3 for row in rows), 1),
        "volumes_mm3": {row.name: round(row.volume_mm3, 1) for row in rows},
    }


def as_tsv(rows: Sequence[Structure], grid: Grid, cells: Mapping[int, Mapping[str, str]] | None = None) -> str:
    """Return a BIDS table of segmentation labels (`_dseg.tsv`), with additional columns for what was measured.

    grid: of the image; structures of planes have no volume. cells: label -> column -> text, for further columns.
    """
    more = list(dict.fromkeys(column for own in (cells or {}).values() for column in own))
    lines = ["\t".join(["index", "name", "color", "volume_mm3", "confidence", "expected_dice", "look", *more])]
    for row in rows:
        colour = "#" + "".join(f"{int(c):02X}" for c in label_colours(np.array(row.index)))
        sure, dice = ("n/a" if value is None else f"{value:.4f}" for value in (row.confidence, row.expected_dice))
        look = ", ".join(row.look) or "n/a"
        own = (cells or {}).get(row.index, {})
        volume = "n/a" if grid.dims == 2 else f"{row.volume_mm3:.1f}"
        first = (str(row.index), row.name, colour, volume, sure, dice, look)
        lines.append("\t".join([*first, *(own.get(column, "n/a") for column in more)]))
    return "\n".join([*lines, ""])
