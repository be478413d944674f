"""Brain masks of `medkit run segment`, against known ones and against deepbet (pip install deepbet).

    python tests/benchmarks/brain_mask.py DATA/brain_labelmaps DATA/brain_heads [--bundle FOLDER]

- Whole heads of the subjects 19 and 20, which were not used for training, drawn in four contrasts at 1 mm: T1, T2, PD
  and a random one. The truth are the labels inside the skull, with holes filled as in the masks.
- The real heads eun_t1 and brainchop_t1, against deepbet's masks, if it is installed.

It prints the Dice of each mask.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "plugins"))

from medkit_segment.cleaning import filled
from medkit_segment.task import MASK_GAP

from medkit.synthesis.draw import Synthesis
from medkit.synthesis.labels import LabelTable, Prior
from medkit.synthesis.ranges import Ranges

BUNDLE = Path(__file__).parents[2] / "bundles" / "brain_mri_segmentation"
OUTSIDE = (0, 24, *range(500, 600))
EASY = Ranges(prior=1.0, stripped=0.0, flip=0.0, rotation=8.0, warp=3.0, scaling=0.05, shift=5.0, thickness=(1, 2))


def contrast(table: LabelTable, name: str) -> LabelTable:
    """Return the table with priors of another contrast: T2 inverts those of T1, PD flattens them."""

    def mean(prior: Prior) -> float:
        if name == "T2":
            return max(0.02, 0.9 - prior.mean) if prior.mean > 0.05 else prior.mean
        return 0.35 + 0.35 * prior.mean if prior.mean > 0.05 else prior.mean

    return replace(table, priors=tuple(replace(p, mean=mean(p)) for p in table.priors))


LabelMap = tuple[torch.Tensor, tuple[float, ...]]
"""Encoded labels (1, 1, I, J, K) in RAS, and mm between voxels."""


def read_map(maps: Path, subject: str, table: LabelTable) -> LabelMap:
    """A subject's label map."""
    image = nibabel.as_closest_canonical(nibabel.load(maps / f"labelmap_{subject}.nii.gz"))
    return torch.from_numpy(table.encode(np.asarray(image.dataobj)))[None, None], image.header.get_zooms()[:3]


def write_drawn(path: Path, synthesis: Synthesis, label_map: LabelMap, seed: int) -> torch.Tensor:
    """Writes an image drawn from a label map; its encoded labels (I, J, K), int64."""
    drawn = synthesis(*label_map, seed=seed)
    values = (1000 * drawn.image[0, 0]).clamp(0, 4000).short().numpy()
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    return drawn.labels[0, 0].long()


def draw(maps: Path, folder: Path) -> dict[str, np.ndarray]:
    """Writes the heads; name -> true mask."""
    table = LabelTable.read(maps / "labels.tsv", maps / "t1_priors.tsv")
    inside = torch.tensor([index not in OUTSIDE for index in table.indices])
    truth = {}
    for subject in ("19", "20"):
        label_map = read_map(maps, subject, table)
        for number, name in enumerate(("T1", "T2", "PD", "any")):
            own = contrast(table, name) if name in ("T2", "PD") else table
            ranges = replace(EASY, prior=0.0) if name == "any" else EASY
            synthesis = Synthesis(own, (192, 224, 192), 1.0, ranges, OUTSIDE, (24,))
            case = f"subject{subject}_{name}"
            drawn = write_drawn(folder / f"{case}.nii.gz", synthesis, label_map, 31 * int(subject) + number)
            truth[case] = filled(inside[drawn].numpy(), np.ones(3), MASK_GAP)
    return truth


def by_deepbet(heads: list[Path], folder: Path) -> dict[str, np.ndarray]:
    """Name -> deepbet's mask; empty if it is not installed."""
    try:
        from deepbet import run_bet
    except ImportError:
        print("deepbet is not installed: no comparison with it")
        return {}
    names = [head.name.removesuffix(".nii.gz") for head in heads]
    masks = [str(folder / f"{name}_deepbet.nii.gz") for name in names]
    run_bet([str(head) for head in heads], None, masks, no_gpu=True)
    return {name: voxels(Path(mask)) > 0 for name, mask in zip(names, masks, strict=True)}


def voxels(path: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(path).dataobj)


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path)
    parser.add_argument("heads", type=Path)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        truth = draw(given.maps, folder)
        heads = [given.heads / f"{n}_t1.nii.gz" for n in ("eun", "brainchop")]
        truth |= by_deepbet(heads, folder)
        scans = [*(folder / f"{case}.nii.gz" for case in truth if case.startswith("subject")), *heads]
        command = [sys.executable, "-m", "medkit", "run", "segment", "--bundle", str(given.bundle), "--trust"]
        command += ["--outputs", "mask", "-o", str(folder / "out"), *map(str, scans)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        print("| head | Dice |\n|---|---|")
        for case, mask in truth.items():
            found = voxels(folder / "out" / f"{case}_mask.nii.gz") > 0
            print(f"| {case} | {2 * (found & mask).sum() / (found.sum() + mask.sum()):.4f} |")


if __name__ == "__main__":
    main()
