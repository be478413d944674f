"""The structures of a label map: where they are, and their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from medkit.errors import InputError
from medkit.evaluation import names_next_to
from medkit.images import Image, looks_like_labels
from medkit.task import Record, lineage

Box = tuple[slice, slice, slice]
"""The part of a volume (I, J, K) that holds a structure."""
MANY = {"image": 64, "labels": 1000, "mask": 1000}
"""Kind of file -> how many different numbers it may hold if neighbours rarely have the same, as in an image."""
_LARGE = 1 << 20
"""Labels from here on are renumbered before they are looked for: the search keeps a box for every number."""


def places_of(image: Image, path: Path, kind: str) -> dict[int, Box]:
    """Return label -> box of each structure, in ascending order. Raises InputError if it cannot be a label map.

    kind: what the file is by its name or sidecar, one of `medkit.specs.KINDS`.
    """
    if len(image.data) > 1:
        raise InputError(f"{path}: expected a label map, got an image of {len(image.data)} channels")
    places = _boxes(image.data[0])
    if len(places) > MANY.get(kind, MANY["image"]) and not looks_like_labels(image):
        raise InputError(f"{path}: expected a label map, got an image of {len(places)} different values")
    return places


def _boxes(labels: np.ndarray) -> dict[int, Box]:
    """Return label -> box in a label map (I, J, K), without 0."""
    from scipy.ndimage import find_objects

    if labels.max(initial=0) < _LARGE:
        return {number: box for number, box in enumerate(find_objects(labels), start=1) if box is not None}
    numbers, counted = np.unique(labels, return_inverse=True)
    boxes = find_objects(counted.reshape(labels.shape) + 1)
    return {number: box for number, box in zip(numbers.tolist(), boxes, strict=True) if number}


def names_of(record: Record, numbers: Collection[int]) -> dict[int, str]:
    """Return label -> name: from the sidecars of the label map and its sources, from the table beside it, or made up.

    Equal names get their label added, because a file of structures must tell them apart.
    """
    known: dict[int, str] = {}
    for one in lineage(record):
        if one.kind == record.kind:  # the numbers of a mask are not those of the labels it was made from
            known = _stated(one) | names_next_to(one.path) | known
    names = {number: known.get(number) or unnamed(number) for number in numbers}
    counts = Counter(names.values())
    return {number: name if counts[name] == 1 else f"{name} {number}" for number, name in names.items()}


def unnamed(number: int) -> str:
    """Return the name of a structure without one."""
    return f"label_{number}"


def _stated(record: Record) -> dict[int, str]:
    stated = record.medkit.get("labels")
    if not isinstance(stated, Mapping):
        return {}
    return {int(number): str(name) for number, name in stated.items() if str(number).isdecimal()}
