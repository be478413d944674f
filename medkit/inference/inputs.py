"""A case's images on their way into a bundle's preprocessing.

medkit has already read and checked the scan, so the bundle's own `LoadImage` gets one more reader, which knows the
names of the case and is asked first. All other settings of a `LoadImaged`, and every transform after it, work as in
MONAI.
Pictures (PNG and the like), which medkit does not read here, are left to the bundle's readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medkit.bundles.contract import Contract
from medkit.errors import InputError
from medkit.images.image import Image, read_image
from medkit.pipe.names import PICTURE_SUFFIXES
from medkit.run.looks import LOOK_AT_THIS
from medkit.run.task import Case
from medkit.scanner.intensity import LEAST
from medkit.space import Grid, strange_size


@dataclass(frozen=True)
class Feed:
    """The images of one case."""

    item: Mapping[str, Any]
    """Key -> name, or list of names if each channel is a separate file; an item of MONAI's dataset."""
    images: Mapping[str, Image]
    """Name -> image, for the names that medkit has read."""
    grid: Grid
    """Grid of the case's own input."""


class ScanReader:
    """A reader for MONAI's `LoadImage` (as `monai.data.ImageReader`) that returns images which medkit has read."""

    def __init__(self, planar: bool) -> None:
        self.images: Mapping[str, Image] = {}
        self.planar = planar
        """Whether a volume of one slice is passed on as a 2D image."""

    def verify_suffix(self, names: Sequence[str] | str) -> bool:
        """Return whether medkit has read the images of all these names."""
        return all(name in self.images for name in _tuple(names))

    def read(self, names: Sequence[str] | str) -> list[tuple[str, Image]]:
        """Return names and images. Raises KeyError for an unknown name: MONAI then asks its next reader."""
        return [(name, self.images[name]) for name in _tuple(names)]

    def get_data(self, images: Sequence[tuple[str, Image]]) -> tuple[np.ndarray, dict[str, Any]]:
        """Return (I, J, K), or (I, J) of a 2D image, or several of them stacked first; and MONAI's metadata of them."""
        arrays = [self._array(image) for _, image in images]
        name, first = images[0]
        affine = first.grid.affine
        meta = _header_facts(name, first.grid) | {
            "affine": affine.copy(),
            "original_affine": affine.copy(),
            "spatial_shape": np.array(arrays[0].shape),
            "space": "RAS",
            "original_channel_dim": 0 if len(arrays) > 1 else float("nan"),
        }
        return (np.stack(arrays) if len(arrays) > 1 else arrays[0]), meta

    def _array(self, image: Image) -> np.ndarray:
        flat = image.grid.dims == 2 or (self.planar and image.grid.shape[2] == 1)
        return image.data[0, ..., 0] if flat else image.data[0]


def _header_facts(name: str, grid: Grid) -> dict[str, Any]:
    """Return what MONAI's readers take from a NIfTI header; of other formats, the spacing (mm) in NIfTI's form."""
    path = Path(name)
    if not path.is_file():  # a frame, whose name has its number at the end, or an image that was made
        path = Path(name.rpartition(":")[0] or name)
    facts: dict[str, Any] = {"pixdim": np.array([1, *grid.spacing, 0, 0, 0, 0], np.float32)}
    if path.is_file() and path.name.lower().endswith((".nii", ".nii.gz")):
        from medkit.images import nifti

        # torch has no texts, and no numbers in the other byte order
        header = dict(nifti.read_header(path).as_byteswapped("<"))
        facts = {key: value for key, value in header.items() if np.asarray(value).dtype.kind in "iuf"}
        # where and how voxels are stored no longer matters
        stored = {"vox_offset": 0.0, "scl_slope": np.nan, "scl_inter": np.nan}
        facts |= {key: np.array(value, np.float32) for key, value in stored.items()}
    return facts | {"original_pixdim": np.array(facts["pixdim"]), "as_closest_canonical": False}


def _tuple(names: Sequence[str] | str) -> tuple[str, ...]:
    return (str(names),) if isinstance(names, str | Path) else tuple(map(str, names))


def is_picture(path: Path) -> bool:
    """Return whether a file is a picture, which a bundle reads itself."""
    return path.name.lower().endswith(PICTURE_SUFFIXES) and not path.is_dir()


def feed_of(case: Case, contract: Contract) -> Feed:
    """Read a case's images. Raises InputError if one is missing or if they do not share one grid.

    The channels of an input are files that a record names, or the frames of one file.
    """
    main, *others = contract.keys
    if missing := [key for key in others if key not in case.inputs and key not in contract.optional]:
        takes = ", ".join(contract.keys)
        raise InputError(f"{case.path}: no {', '.join(missing)}: the bundle takes {takes}; a record names them")
    more = {key: str(case.inputs[key]) for key in others if key in case.inputs}
    files = _channels(case, contract)
    if is_picture(case.path):
        grids = {name: _picture_grid(Path(name)) for name in files or (str(case.path),)}
        _check_one_grid(grids)
        return Feed({main: _one_or_all(grids)} | more, {}, grids[next(iter(grids))])
    images = {name: case.image(role) for name, role in files.items()} if files else _single(case, contract)
    item = {main: _one_or_all(images)} | more
    images |= {name: case.image(key) for key, name in more.items()}
    _check_one_grid({name: image.grid for name, image in images.items()})
    grid = next(iter(images.values())).grid
    if size := strange_size(grid):  # networks know bodies only
        raise InputError(f"{case.path}: {size}")
    peak = max(max(-float(image.data.min()), float(image.data.max())) for image in images.values())
    if peak < LEAST:
        case.doubts.append(
            f"{LOOK_AT_THIS}its values reach only {peak:.2g}, where bundles expect more than {LEAST:g}: multiply them"
        )
    return Feed(item, images, grid)


def _one_or_all(names: Iterable[str]) -> str | list[str]:
    first, *others = names
    return [first, *others] if others else first


def _channels(case: Case, contract: Contract) -> dict[str, str | None] | None:
    """Return the files that a record names for the channels -> their roles (None: the case's own); None without any."""
    named = [name for name in contract.channels if name in case.inputs and len(contract.channels) > 1]
    if not named:
        return None
    first, *rest = contract.channels
    if missing := [name for name in rest if name not in named]:
        raise InputError(f"{case.path}: no {', '.join(missing)}: the bundle takes {', '.join(contract.channels)}")
    first_role = first if first in case.inputs else None
    return {str(case.inputs.get(name or "", case.path)): name for name in (first_role, *rest)}


def _single(case: Case, contract: Contract) -> dict[str, Image]:
    """Read the case's own file, or its frames if it has as many as the input has channels."""
    try:
        return {str(case.path): case.image()}
    except InputError:
        count = len(contract.channels)
        if count < 2 or _frame_count(case.path) != count:
            raise
    frames = {f"{case.path}:{n}": read_image(case.path, frame=n) for n in range(count)}
    for frame in frames.values():
        case.note(frame)
    return frames


def _frame_count(path: Path) -> int:
    if not path.name.endswith((".nii", ".nii.gz")):
        return 1
    from medkit.images import nifti

    shape = nifti.promised_shape(path, nifti.read_header(path))
    return shape[3] if len(shape) == 4 else 1


def _check_one_grid(grids: Mapping[str, Grid]) -> None:
    (name, first), *others = grids.items()
    for other, grid in others:
        if grid.digest() != first.digest():
            raise InputError(f"{other}: expected the grid of {Path(name).name}; use medkit run register")


def _picture_grid(path: Path) -> Grid:
    from PIL import Image as Picture

    try:
        with Picture.open(path) as picture:
            return Grid((*picture.size, 1), np.eye(4), dims=2)
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a picture: {error}") from None
