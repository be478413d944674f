"""Sets of small images with a class each, unpacked into files and a datalist for `medkit train`.

    python -m medkit.training.class_data pneumoniamnist.npz [MORE.npz] -o chest_xray
    python -m medkit.training.class_data lung_nodule_patches/ -o nodules

Sources are MedMNIST's `.npz` (`train_images`, `train_labels`, and the same of `val` and `test`; planes become PNG,
volumes NIfTI masks) and folders with `<part>_patches.zip` of pictures and `<part>datalabels.txt` (a name and a class
per line).
Of several sources only the first one's `val` and `test` are used. Training images that are, pixel by pixel, also among
those, or occur twice, are left out. The datalist has the parts training, validation and test; `medkit train` reads the
first two only.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medkit.errors import InputError, MedkitError
from medkit.pipe.atomic import write_atomically
from medkit.pipe.lines import text_lines

PARTS = {"train": "training", "val": "validation", "test": "test"}
"""Name of a part in the sources -> its name in datalists."""


@dataclass(frozen=True, eq=False)
class Sample:
    """An image and its class."""

    image: np.ndarray
    """(rows, columns) uint8 of a picture, (I, J, K) uint8 of a volume."""
    label: int
    key: bytes
    """Digest, equal for equal images."""


def unpack(sources: Sequence[Path], folder: Path) -> dict[str, int]:
    """Write the images of all sources and `dataset.json` into `folder`; return the number of images of each part.

    Raises InputError for a source of another layout.
    """
    first, *others = sources
    parts = {name: list(read_part(first, name)) for name in PARTS}
    for source in others:
        parts["train"] += read_part(source, "train")
    known = {sample.key for name in ("val", "test") for sample in parts[name]}
    # setdefault: the first of equal training images stays
    fresh: dict[bytes, Sample] = {}
    for sample in parts["train"]:
        if sample.key not in known:
            fresh.setdefault(sample.key, sample)
    parts["train"] = list(fresh.values())
    datalist = {PARTS[name]: _write_part(samples, folder, name) for name, samples in parts.items()}
    write_atomically(folder / "dataset.json", json.dumps(datalist, indent=1) + "\n")
    return {name: len(items) for name, items in datalist.items()}


def read_part(source: Path, part: str) -> Iterator[Sample]:
    """Return the samples of a part (`train`, `val` or `test`) of a source. Raises InputError."""
    if source.is_dir():
        yield from _from_zip(source, part)
        return
    try:
        with np.load(source, allow_pickle=False) as content:
            images, labels = content[f"{part}_images"], content[f"{part}_labels"].ravel()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{source}: expected {part}_images and {part}_labels in an .npz: {error}") from None
    for image, label in zip(images, labels, strict=True):
        yield Sample(image, int(label), _key(image))


def _from_zip(source: Path, part: str) -> Iterator[Sample]:
    from PIL import Image as Picture

    archive, table = source / f"{part}_patches.zip", source / f"{part}datalabels.txt"
    for path in (archive, table):
        if not path.is_file():
            raise InputError(f"{source}: expected a folder with {path.name}, or an .npz")
    rows = (line.rsplit(maxsplit=1) for line in text_lines(table.read_bytes().decode()) if line.strip())
    labels = {name: int(label) for name, label in rows}
    with zipfile.ZipFile(archive) as content:
        for name in sorted(set(content.namelist()) & set(labels)):
            image = np.asarray(Picture.open(io.BytesIO(content.read(name))).convert("L"))
            yield Sample(image, labels[name], _key(image))


def _key(image: np.ndarray) -> bytes:
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()


def _write_part(samples: Sequence[Sample], folder: Path, part: str) -> list[dict[str, object]]:
    (folder / part).mkdir(parents=True, exist_ok=True)
    return [
        {"image": f"{part}/{write_image(sample.image, folder / part, f'{number:05}')}", "label": sample.label}
        for number, sample in enumerate(samples)
    ]


def write_image(image: np.ndarray, folder: Path, name: str) -> str:
    """Write a plane as a picture, or a volume as a mask; return the file's name."""
    if image.ndim == 2:
        from PIL import Image as Picture

        Picture.fromarray(image).save(folder / f"{name}.png")
        return f"{name}.png"
    from medkit.images.image import Image
    from medkit.space import Grid

    shape = (image.shape[0], image.shape[1], image.shape[2])
    Image((image > 0).astype(np.uint8)[None], Grid(shape, np.eye(4))).write(folder / f"{name}_mask.nii.gz")
    return f"{name}_mask.nii.gz"


def main() -> None:
    """Unpack the sources that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="+", metavar="SOURCE")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    given = parser.parse_args()
    try:
        counts = unpack(given.sources, given.output)
    except MedkitError as error:
        sys.exit(f"class_data: {error}")
    print(f"{given.output / 'dataset.json'}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))


if __name__ == "__main__":
    main()
