"""Scans of heads in every contrast, good and bad ones, drawn from label maps: what the network is trained with.

    python -m brain_mri_quality_classification.drawing LABELMAPS -o FOLDER [--scans 1200] [--images 300]

LABELMAPS holds label maps with FreeSurfer's labels, `labels.tsv` and `t1_priors.tsv`; the last two heads are for
validation. FOLDER gets, for each scan, what the network is given of it and the shares of its tissues (`.npz`), and
`dataset.json` for `medkit train`; some scans are written as images, with `images.json` for calibration.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from medkit.errors import MedkitError
from medkit.files import write_atomically
from medkit.images import Image, read_image
from medkit.label_table import LabelTable
from medkit.space import Grid
from medkit.synthesis import (
    Random,
    Ranges,
    Synthesis,
    acquired,
    bias_field,
    deformed,
    ghosted,
    grain,
    looked_up,
    outlined,
    random_linear,
)

from . import CONTRASTS, SHAPE, SPACING, USABILITY, described, first, pooled, sampled
from .contrasts import GROUPS, INSIDE, means

FIELD = (184, 216, 192)
"""Voxels of 1 mm that a head is drawn on."""
RANGES = Ranges(rotation=12.0, scaling=0.12, shift=8.0, warp=6.0, texture_grain=0.6, blur=(0.3, 0.7), bias=0.3)
GOOD = (0.003, 0.03)
"""Noise of usable scans, as a share of their bright parts, even on a logarithmic scale."""
NOISY = (0.065, 0.25)
LOST = (0.04, 0.35)
"""Share of the brain that a cropped scan lacks."""


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


@dataclass(frozen=True, eq=False)
class Head:
    """A deformed label map."""

    table: LabelTable
    labels: torch.Tensor
    """(1, 1, *FIELD) labels 0 .. N-1."""

    def groups(self) -> torch.Tensor:
        """(N,) the group of each label."""
        return torch.tensor([GROUPS[index] for index in self.table.indices])

    def scan(self, usability: str, random: Random) -> Scan:
        """A scan of it in any contrast."""
        name = CONTRASTS[int(random.number() * len(CONTRASTS))]
        values = means(name, random)[self.groups()] * (1 + 0.05 * random.normals(len(self.table.indices)))
        texture = float(random.evenly((0.01, 0.07)))
        image = looked_up(values.clamp(min=0), self.labels)
        image = image + texture * image.sqrt() * grain(image.shape, random, RANGES)
        image = image.clamp(min=0) * outlined(self._shown(random), random, RANGES)
        image = acquired(image, random, RANGES)[0]
        image = image * bias_field(image.shape[1:], 1.0, random, RANGES)
        labels = torch.tensor(self.table.indices)[self.labels[0, 0].long()]
        spacing, operators, steps = thickness(image.shape[1:], random)
        values3 = image[0]
        if steps:
            values3, labels = along_axes_to(values3, operators), labels[steps]
        values3 = values3 / quantile(values3)
        if usability == "motion":
            values3 = moved(values3, spacing, random)
        if usability == "cropped":
            values3, labels = cut(values3, labels, random)
        else:
            values3, labels = trimmed(values3, labels, spacing, random)
        sigma = NOISY if usability == "noise" else GOOD
        values3 = noisy(values3, math.exp(float(random.evenly((math.log(sigma[0]), math.log(sigma[1]))))), random)
        gamma = math.exp(0.1 * float(random.normals()))
        return Scan(values3.clamp(min=0).pow(gamma), labels, spacing, name, usability)

    def _shown(self, random: Random) -> torch.Tensor:
        """(1, 1, *FIELD) where a tool that removes what is outside the brain has left something."""
        if random.number() < 0.5:
            return torch.ones_like(self.labels, dtype=torch.float32)
        fluid = random.number() < 0.5
        kept = [
            float(group in INSIDE and (fluid or index != 24))
            for index, group in zip(self.table.indices, self.groups().tolist(), strict=True)
        ]
        return looked_up(torch.tensor(kept), self.labels)

    def tissues(self, scan: Scan) -> torch.Tensor:
        """(G, *SHAPE) uint8: the share of each group where the network is given the scan, over 255."""
        group = torch.zeros(1 + max(GROUPS), dtype=torch.long)
        for index, number in GROUPS.items():
            group[index] = number
        steps = [max(1, round(SPACING / mm)) for mm in scan.spacing]
        sizes = [step * mm for step, mm in zip(steps, scan.spacing, strict=True)]
        found = group[scan.labels.long()]
        shares = torch.stack([pooled((found == g).float(), steps) for g in range(1 + max(GROUPS.values()))])
        from . import brightness

        start = first(pooled(brightness(scan.image), steps), sizes)
        at = [(begin + SPACING * torch.arange(n)) / mm for begin, n, mm in zip(start, SHAPE, sizes, strict=True)]
        return (sampled(shares, at) * 255).round().to(torch.uint8)


def draw_head(labels: torch.Tensor, spacing: Sequence[float], table: LabelTable, random: Random) -> Head:
    """Another head like that of an encoded label map (1, I, J, K)."""
    grid = Synthesis(table, FIELD, 1.0, RANGES)
    seen = torch.ones(1, len(table.indices))
    out = deformed(grid, labels[None], seen, torch.zeros(1, 3), spacing, random, RANGES)
    return Head(table, out.flip(2) if random.number() < 0.5 else out)


def thickness(
    shape: Sequence[int], random: Random
) -> tuple[tuple[float, float, float], list[torch.Tensor], tuple[torch.Tensor, ...] | None]:
    """The spacing of a scan's voxels, and how 1 mm voxels become those: matrices, and what index each has."""
    spacing = [1.0, 1.0, 1.0]
    if random.number() < 0.35:
        spacing[int(random.number() * 3)] = float(random.evenly((1.5, 5.0)))
    if random.number() < 0.25:
        spacing = [max(mm, 1.5) for mm in spacing]
    if spacing == [1.0, 1.0, 1.0]:
        return (1.0, 1.0, 1.0), [], None
    operators, places = [], []
    for size, mm in zip(shape, spacing, strict=True):
        centres = torch.arange(mm / 2 - 0.5, size - 0.5, mm) if mm > 1 else torch.arange(float(size))
        weights = torch.exp(-0.5 * ((centres[:, None] - torch.arange(size)) / max(0.2, mm / 2.355)) ** 2)
        operators.append(weights / weights.sum(1, keepdim=True))
        places.append(centres.round().long().clamp(0, size - 1))
    i, j, k = places
    return (spacing[0], spacing[1], spacing[2]), operators, (i[:, None, None], j[None, :, None], k[None, None])


def along_axes_to(image: torch.Tensor, operators: Sequence[torch.Tensor]) -> torch.Tensor:
    """The image (I, J, K) multiplied by a matrix along each axis."""
    i, j, k = operators
    out = torch.matmul(j, image @ k.T)
    return (i @ out.reshape(len(out), -1)).reshape(-1, *out.shape[1:])


def quantile(image: torch.Tensor) -> torch.Tensor:
    """The 99th percentile of what is not 0."""
    some = image.flatten()[::7]
    some = some[some > 1e-3]
    return some.kthvalue(max(1, round(0.99 * len(some)))).values.clamp(min=1e-3) if len(some) else image.new_ones(())


def moved(image: torch.Tensor, spacing: Sequence[float], random: Random) -> torch.Tensor:
    """The image (I, J, K) of a head that moved while it was scanned.

    The lines of k-space along one axis are measured one after the other, or in turns; some of them when the head lay
    elsewhere, or was turned.
    """
    if random.number() < 0.3:
        share = float(random.evenly((0.12, 0.5)))
        return ghosted(image[None], random, Ranges(ghosting=1.0, ghosts=(share, share)))[0]
    axis = int(random.number() * 3)
    count = image.shape[axis]
    space = torch.fft.fft(image, dim=axis)
    frequency = torch.fft.fftfreq(count)
    order = torch.argsort(frequency)  # the order in which lines are measured
    turns = 1 if random.number() < 0.5 else 2 + int(random.number() * 3)
    order = torch.cat([order[n::turns] for n in range(turns)])
    for _ in range(1 + int(random.number() * 3)):
        long = max(2, int(count * float(random.evenly((0.1, 0.35)))))
        begin = int(random.number() * (count - long))
        lines = order[begin : begin + long]
        lines = lines[lines != 0]  # the mean of the image stays
        elsewhere = shifted(image, spacing, random)
        other = torch.fft.fft(elsewhere, dim=axis)
        space.index_copy_(axis, lines, other.index_select(axis, lines))
    return torch.fft.ifft(space, dim=axis).abs()


def shifted(image: torch.Tensor, spacing: Sequence[float], random: Random) -> torch.Tensor:
    """The image (I, J, K) of a head that lies 2 to 10 mm elsewhere, half of the time turned by 2 to 8 degrees."""
    way = random.normals(3)
    way = way / way.norm() * random.evenly((2.0, 10.0))
    angle = float(random.evenly((2.0, 8.0))) if random.number() < 0.5 else 0.0
    linear = random_linear(random, Ranges(rotation=angle, scaling=0.0, shearing=0.0)) if angle else torch.eye(3)
    if not angle:
        steps = [round(float(mm) / size) for mm, size in zip(way, spacing, strict=True)]
        return torch.roll(image, steps if any(steps) else [3, 0, 0], (0, 1, 2))
    sizes = torch.tensor(image.shape) * torch.tensor(spacing)
    matrix = torch.cat([linear * (sizes[None] / sizes[:, None]), (2 * way / sizes)[:, None]], 1)
    matrix = torch.cat([matrix[[2, 1, 0]][:, [2, 1, 0]], matrix[[2, 1, 0], 3:]], 1)  # grid_sample counts x first
    where = functional.affine_grid(matrix[None], [1, 1, *image.shape], align_corners=False)
    return functional.grid_sample(image[None, None], where, align_corners=False)[0, 0]


def cut(image: torch.Tensor, labels: torch.Tensor, random: Random) -> tuple[torch.Tensor, torch.Tensor]:
    """The scan with the field of view ending inside the brain, at one face or two."""
    lost = float(random.evenly(LOST))
    empty = random.number() < 0.3
    for _ in range(1 + int(random.number() < 0.25)):
        axis, side = int(random.number() * 3), int(random.number() * 2)
        brain = ((labels > 0) & (labels < 500) & (labels != 24)).movedim(axis, 0).flatten(1).sum(1).float()
        along = brain if side == 0 else brain.flip(0)
        gone = int((along.cumsum(0) < lost * along.sum()).sum())
        size = image.shape[axis]
        begin = gone if side == 0 else 0
        if empty:
            image = image.clone()
            image.narrow(axis, 0 if side == 0 else size - gone, gone).zero_()
        else:
            image, labels = (x.narrow(axis, begin, size - gone) for x in (image, labels))
    return image, labels


def trimmed(
    image: torch.Tensor, labels: torch.Tensor, spacing: Sequence[float], random: Random
) -> tuple[torch.Tensor, torch.Tensor]:
    """The scan with a field of view that holds the whole brain, and at each face up to 60 mm around it."""
    for axis, mm in enumerate(spacing):
        line = ((labels > 0) & (labels < 500) & (labels != 24)).movedim(axis, 0).flatten(1).any(1).nonzero()
        if not len(line):
            continue
        rooms = [1 + int(float(random.evenly((2.0, 60.0))) / mm) for _ in range(2)]
        low = max(0, int(line[0]) - rooms[0])
        high = min(image.shape[axis], int(line[-1]) + 1 + rooms[1])
        image, labels = (x.narrow(axis, low, high - low) for x in (image, labels))
    return image, labels


def noisy(image: torch.Tensor, sigma: float, random: Random) -> torch.Tensor:
    """The image (I, J, K) with Rician noise; half of those with nothing around the brain keep that."""
    empty = image <= 1e-3
    out = torch.hypot(image + sigma * random.noise(image.shape), sigma * random.noise(image.shape))
    return torch.where(empty, 0.0, out) if float(empty.float().mean()) > 0.2 and random.number() < 0.6 else out


def write_scan(scan: Scan, head: Head, folder: Path, name: str, image: bool) -> Mapping[str, object]:
    """Writes a scan; its item of the datalist."""
    given, _ = described(scan.image[None], scan.spacing, scan.labels[None])
    with open(folder / f"{name}.npz", "wb") as file:
        np.savez(file, given=given.half().numpy(), tissues=head.tissues(scan).numpy())
    if image:
        grid = Grid(tuple(scan.image.shape), np.diag([*scan.spacing, 1.0]))  # type: ignore[arg-type]
        values = (scan.image.numpy() * 1000).round().clip(0, 32767).astype(np.int16)
        Image(values[None], grid).write(folder / f"{name}.nii.gz")
    return {"label": [CONTRASTS.index(scan.contrast), USABILITY.index(scan.usability)]}


def draw(source: Path, folder: Path, scans: int, images: int, part: tuple[int, int] = (0, 1)) -> None:
    """Draws scans of all heads of `source`; see the module. Raises InputError. `part`: (n, of) of them alone."""
    table = LabelTable.read(source / "labels.tsv", source / "t1_priors.tsv")
    heads = sorted(source.glob("*.nii.gz"))
    kinds = {"training": (heads[:-2], scans), "validation": (heads[-2:], max(8, scans // 8))}
    folder.mkdir(parents=True, exist_ok=True)
    items: dict[str, list[dict[str, object]]] = {name: [] for name in kinds}
    for kind, (paths, count) in kinds.items():
        each = len(USABILITY)
        for number in range(part[0], count // each, part[1]):
            path = paths[number % len(paths)]
            scan = read_image(path, labels=True)
            random = Random(1_000_000 * (kind == "validation") + number, torch.device("cpu"))
            encoded = torch.from_numpy(table.encode(scan.data, str(path)))
            head = draw_head(encoded, scan.grid.spacing.tolist(), table, random)
            as_image = kind == "validation" or number * each < images
            for usability in USABILITY:
                name = f"{kind[:5]}_{number:04}_{usability}"
                item = write_scan(head.scan(usability, random), head, folder, name, as_image)
                items[kind].append({"drawn": f"{name}.npz", **item})
                write_atomically(folder / f"part{part[0]}.json", json.dumps(items))


def gather(folder: Path) -> None:
    """Writes the datalists of all parts that were drawn."""
    parts = [json.loads(path.read_text()) for path in sorted(folder.glob("part*.json"))]
    whole = {kind: [item for part in parts for item in part[kind]] for kind in ("training", "validation")}
    seen = {
        kind: [
            {"image": name, "label": item["label"]}
            for item in items
            if (folder / (name := item["drawn"].replace(".npz", ".nii.gz"))).is_file()
        ]
        for kind, items in whole.items()
    }
    write_atomically(folder / "dataset.json", json.dumps(whole, indent=1) + "\n")
    write_atomically(folder / "images.json", json.dumps(seen, indent=1) + "\n")


def main() -> None:
    """Draw what the command line asks for."""
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
