"""Draws the training data: scans of heads in every contrast, good and bad ones, from label maps.

    python -m brain_mri_quality_classification.drawing LABELMAPS -o FOLDER [--scans 1200] [--images 300]

LABELMAPS holds label maps with FreeSurfer's labels, `labels.tsv` and `t1_priors.tsv`; the last two heads are for
validation. For each scan, FOLDER gets the network's input and the shares of tissues (`.npz`), and `dataset.json` for
`medkit train`. Some scans are also written as images, every second head with its labels, with `images.json` for
calibration.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medkit.errors import InputError, MedkitError
from medkit.images import Image, read_image
from medkit.space import Grid
from medkit.synthesis import (
    LabelTable,
    Random,
    Ranges,
    Synthesis,
    acquired,
    bias_field,
    deformed,
    grain,
    looked_up,
    outlined,
)
from medkit.task import write_atomically

from . import CONTRASTS, USABILITY, Blocks, brightness, described
from .contrasts import COUNT, GROUPS, INSIDE, means, top
from .faults import FLUID_AROUND, GOOD, NOISY, cut, moved, noisy, scanned, trimmed, voxels

FIELD = (184, 216, 192)
"""Voxels of 1 mm that a head is drawn on."""
RANGES = Ranges(rotation=12.0, scaling=0.12, shift=8.0, warp=6.0, texture_grain=0.6, blur=(0.3, 0.7), bias=0.3)
TEXTURE = (0.01, 0.07)
"""Standard deviation within tissues."""
OUTSIDE = 500
"""Labels from this number on lie outside the brain, where `medkit run segment` finds no labels."""
LABELS = "_labels.nii.gz"
"""End of the names of written label maps."""


@dataclass(frozen=True, eq=False)
class Scan:
    """A drawn scan."""

    image: torch.Tensor
    """(I, J, K) along RAS+."""
    labels: torch.Tensor
    """(I, J, K) FreeSurfer's labels."""
    spacing: tuple[float, float, float]
    """mm."""
    contrast: str
    usability: str

    def tissues(self) -> torch.Tensor:
        """Return the share of each group in the voxels of the network's input, (COUNT, *SHAPE) uint8, 0 to 255."""
        group = torch.zeros(1 + max(GROUPS), dtype=torch.long)
        for index, number in GROUPS.items():
            group[index] = number
        found, blocks = group[self.labels.long()], Blocks(self.spacing)
        shares = torch.stack([blocks.mean((found == number).float()) for number in range(COUNT)])
        start = blocks.start(blocks.mean(brightness(self.image)))
        return (blocks.sampled(shares, start) * 255).round().to(torch.uint8)


@dataclass(frozen=True, eq=False)
class Head:
    """A deformed label map."""

    table: LabelTable
    labels: torch.Tensor
    """(1, 1, *FIELD) labels 0 .. N-1 of the table."""

    @classmethod
    def drawn(cls, labels: torch.Tensor, spacing: Sequence[float], table: LabelTable, random: Random) -> "Head":
        """Return a head deformed from an encoded label map (1, I, J, K). Raises InputError for unknown labels."""
        if unknown := [index for index in table.indices if index not in GROUPS]:
            raise InputError(f"label {unknown[0]}: expected FreeSurfer's labels, and 5xx outside the brain")
        grid = Synthesis(table, FIELD, 1.0, RANGES)
        seen = torch.ones(1, len(table.indices))
        out = deformed(grid, labels[None], seen, torch.zeros(1, 3), spacing, random, RANGES)
        return cls(table, out.flip(2) if random.number() < 0.5 else out)

    def scan(self, usability: str, random: Random) -> Scan:
        """Return a scan of the head in a random contrast."""
        contrast = CONTRASTS[int(random.number() * len(CONTRASTS))]
        image = acquired(self._painted(contrast, random), random, RANGES)[0]
        image = (image * bias_field(image.shape[1:], 1.0, random, RANGES))[0]
        spacing = voxels(random)
        image, labels = scanned(image, torch.tensor(self.table.indices)[self.labels[0, 0].long()], spacing)
        image = image / top(image)
        if usability == "motion":
            image = moved(image, spacing, random)
        if usability == "cropped":
            image, labels = cut(image, labels, random)
        else:
            image, labels = trimmed(image, labels, spacing, random)
        image = noisy(image, NOISY if usability == "noise" else GOOD, random)
        image = image.clamp(min=0).pow(math.exp(0.1 * float(random.normals())))
        return Scan(image, labels, spacing, contrast, usability)

    def _painted(self, contrast: str, random: Random) -> torch.Tensor:
        """Return the tissues in a contrast, (1, 1, *FIELD); half of the time only those of the brain."""
        groups = torch.tensor([GROUPS[index] for index in self.table.indices])
        values = means(contrast, random)[groups] * (1 + 0.05 * random.normals(len(groups)))
        texture = float(random.evenly(TEXTURE))
        image = looked_up(values.clamp(min=0), self.labels)
        image = (image + texture * image.sqrt() * grain(image.shape, random, RANGES)).clamp(min=0)
        if random.number() < 0.5:
            return image
        removed = () if random.number() < 0.5 else (FLUID_AROUND,)
        kept = [
            float(group in INSIDE and index not in removed)
            for index, group in zip(self.table.indices, groups.tolist(), strict=True)
        ]
        return image * outlined(looked_up(torch.tensor(kept), self.labels), random, RANGES)


def write_scan(scan: Scan, folder: Path, name: str, image: bool) -> Mapping[str, object]:
    """Write a scan and return its item of the datalist."""
    given, _ = described(scan.image[None], scan.spacing, scan.labels[None])
    with open(folder / f"{name}.npz", "wb") as file:
        np.savez(file, given=given.half().numpy(), tissues=scan.tissues().numpy())
    if image:
        grid = Grid(tuple(scan.image.shape), np.diag([*scan.spacing, 1.0]))  # type: ignore[arg-type]
        values = (scan.image.numpy() * 1000).round().clip(0, 32767).astype(np.int16)
        Image(values[None], grid).write(folder / f"{name}.nii.gz")
        labels = scan.labels.numpy().astype(np.int16)
        Image(np.where(labels < OUTSIDE, labels, 0)[None], grid).write(folder / f"{name}{LABELS}")
    return {"label": [CONTRASTS.index(scan.contrast), USABILITY.index(scan.usability)]}


def draw(source: Path, folder: Path, scans: int, images: int, part: tuple[int, int] = (0, 1)) -> None:
    """Draw scans of all heads of `source`; see the module. `part`: (n, of), only part n of them. Raises InputError."""
    table = LabelTable.read(source / "labels.tsv", source / "t1_priors.tsv")
    heads = sorted(source.glob("*.nii.gz"))
    kinds = {"validation": (heads[-2:], max(8, scans // 8)), "training": (heads[:-2], scans)}
    folder.mkdir(parents=True, exist_ok=True)
    items: dict[str, list[dict[str, object]]] = {name: [] for name in kinds}
    for kind, (paths, count) in kinds.items():
        each = len(USABILITY)
        for number in range(part[0], count // each, part[1]):
            path = paths[number % len(paths)]
            scan = read_image(path, labels=True)
            random = Random(1_000_000 * (kind == "validation") + number, torch.device("cpu"))
            encoded = torch.from_numpy(table.encode(scan.data, str(path)))
            head = Head.drawn(encoded, scan.grid.spacing.tolist(), table, random)
            as_image = kind == "validation" or number * each < images
            for usability in USABILITY:
                name = f"{kind[:5]}_{number:04}_{usability}"
                item = write_scan(head.scan(usability, random), folder, name, as_image)
                items[kind].append({"drawn": f"{name}.npz", **item})
                write_atomically(folder / f"part{part[0]}.json", json.dumps(items))


def gather(folder: Path) -> None:
    """Write the datalists of all parts that were drawn."""
    parts = [json.loads(path.read_text()) for path in sorted(folder.glob("part*.json"))]
    whole = {kind: [item for part in parts for item in part[kind]] for kind in ("training", "validation")}
    seen = {kind: list(as_images(folder, items)) for kind, items in whole.items()}
    write_atomically(folder / "dataset.json", json.dumps(whole, indent=1) + "\n")
    write_atomically(folder / "images.json", json.dumps(seen, indent=1) + "\n")


def as_images(folder: Path, items: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, object]]:
    """Return the items of scans that were written as images, every second head with labels, as from a pipe."""
    for number, item in enumerate(items):
        stem = item["drawn"].removesuffix(".npz")
        if (folder / f"{stem}.nii.gz").is_file():
            labels = {"labels": f"{stem}{LABELS}"} if number // len(USABILITY) % 2 else {}
            yield {"image": f"{stem}.nii.gz", **labels, "label": item["label"]}


def main() -> None:
    """Draw the scans that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="LABELMAPS")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--scans", type=int, default=1200, help="For training; an eighth as many for validation.")
    parser.add_argument("--images", type=int, default=300, help="Training scans that are written as images as well.")
    parser.add_argument("--part", default="0/1", help="N/M: every M-th head from N on, for several processes.")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    n, of = map(int, given.part.split("/"))
    try:
        draw(given.source, given.output, given.scans, given.images, (n, of))
        gather(given.output)
    except MedkitError as error:
        sys.exit(f"drawing: {error}")


if __name__ == "__main__":
    main()
