"""What of a result is shown together: an image, and what was made of it on top."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.errors import InputError
from medkit.pipe.records import Record, find_kind, record_of
from medkit.run.existing import is_there

if TYPE_CHECKING:
    import numpy as np

    from medkit.images.image import Image

_LABELS = ("labels", "mask")


@dataclass(frozen=True)
class Layers:
    """An image, and at most one other on top of it; they may lie on different grids."""

    image: Image
    overlay: Image | None = None
    labels: bool = False
    """Whether the overlay is a label map."""
    names: Mapping[int, str] | None = None
    """Number of a label -> its name."""
    compared: bool = False
    """Whether the overlay was made from the image, on its grid."""


def layers_of(record: Record, arguments: Mapping[str, Any] | None = None) -> Layers:
    """Return what is shown of a result, or of another image.

    Labels lie over their image, an image over the one on whose grid it lies, else over the one that it was made from.
    A result that is no image, and the input of a failed case, show the image that they go back to. `arguments` are
    those of the task, by which the frame and the series are known. Raises InputError if there is no image to read.
    """
    read = functools.partial(_read, arguments=arguments or {})
    if record.failed or record.kind not in ("image", *_LABELS):
        return Layers(read(find_kind(record, ["image"])))
    result, under = read(record), _under(record)
    if record.kind in _LABELS:
        return Layers(result if under is None else read(under), result, labels=True, names=label_names(record))
    if under is None:
        return Layers(result)
    before = read(under)
    same = under.path in record.sources[:1] and before.grid.digest() == result.grid.digest()
    return Layers(before, result, compared=same)


def with_overlay(image: Image, overlay: Path, frame: int) -> Layers:
    """Return an image with a file that the user names on top of it. Raises InputError.

    A file that no sidecar describes is a label map if its name says so (`_dseg`), or if it has whole numbers of 0 or
    more and at most 256 different ones.
    """
    from medkit.images.image import read_image

    record = record_of(overlay)
    read = functools.partial(read_image, overlay, frame=frame, frame_if_several=True)
    if record.kind in _LABELS:
        return Layers(image, read(labels=True), labels=True, names=label_names(record))
    try:
        found = read(labels=True)
    except InputError:
        return Layers(image, read())
    if record.medkit or not _few_values(found.data):
        return Layers(image, read())
    return Layers(image, found, labels=True, names={})


def draw_layers(layers: Layers, title: str) -> np.ndarray:
    """Return the picture of layers as `--qc` draws it, (H, W, 3) uint8."""
    from medkit.figures.mosaic import comparison_mosaic, overlay_mosaic

    if layers.overlay is not None and layers.compared:
        return comparison_mosaic(layers.image, layers.overlay, title=title)
    kind = "labels" if layers.labels else "image"
    return overlay_mosaic(layers.image, layers.overlay, kind=kind, title=title, names=layers.names)  # type: ignore[arg-type]


def label_names(record: Record) -> dict[int, str]:
    """Return number -> name of the labels of a result, as its sidecar states them."""
    labels = record.medkit.get("labels")
    if not isinstance(labels, Mapping):
        return {}
    return {int(number): str(name) for number, name in labels.items() if str(number).isdecimal()}


def _few_values(data: np.ndarray) -> bool:
    import numpy as np

    return bool(data.max() < 1 << 16) and len(np.unique(data[:, ::2, ::2, ::2])) <= 256


def _under(record: Record) -> Record | None:
    """Return the image on whose grid a result lies, else the image that it was made from, if either can be read."""
    for path in (record.spatial_reference, *record.sources[:1]):
        if path is not None and path != record.path and is_there(path) and record_of(path).kind == "image":
            return record_of(path)
    return None


def _read(record: Record, arguments: Mapping[str, Any]) -> Image:
    """Return an image, of several frames or series the one that the result was made from."""
    from medkit.images.image import read_image

    return read_image(
        record.path,
        frame=arguments.get("frame", 0),
        series=arguments.get("series"),
        labels=record.kind in _LABELS,
        frame_if_several=True,
    )
