"""Expected Dice of a structure as a function of the network's confidence, for the bundle's metadata.

    python tests/benchmarks/segmentation_confidence.py DATA/brain_labelmaps [--bundle FOLDER] [--write]

Draws images of the subjects 19 and 20, which were not used for training, over the whole range of contrasts, resolutions
and noise, labels them with `medkit run segment`, and fits a line to each structure's Dice over its confidence. It
prints their correlation within a structure and the leave-one-out error of the line. `--write` puts the lines into the
bundle's metadata (`medkit.expected_dice`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from brain_mask import BUNDLE, OUTSIDE, read_map, write_drawn
from segmentation import dice, voxels

from medkit.synthesis.draw import Synthesis
from medkit.synthesis.labels import LabelTable
from medkit.synthesis.ranges import Ranges

RANGES = Ranges(prior=0.7, thickness=(1.0, 4.0), coarseness=(1.0, 2.0))
MOST_SLOPE = 4.0
"""Dice over confidence: steeper is noise."""


def draw(maps: Path, folder: Path, count: int) -> dict[str, np.ndarray]:
    """Writes `count` images of each subject; name -> its true labels, of those that the bundle knows and others."""
    table = LabelTable.read(maps / "labels.tsv", maps / "t1_priors.tsv")
    indices = torch.tensor(table.indices)
    truth = {}
    for subject in ("19", "20"):
        label_map = read_map(maps, subject, table)
        for number in range(count):
            ranges = replace(RANGES, stripped=float(number % 2), flip=0.0)
            synthesis = Synthesis(table, (192, 224, 192), 1.0, ranges, OUTSIDE, (24,))
            case = f"subject{subject}_{number}"
            drawn = write_drawn(folder / f"{case}.nii.gz", synthesis, label_map, 1000 * int(subject) + number)
            truth[case] = indices[drawn].numpy()
    return truth


def measured(folder: Path, truth: dict[str, np.ndarray], bundle: Path) -> dict[int, np.ndarray]:
    """Label -> (N, 2): confidence and Dice of each image it was found in."""
    command = [sys.executable, "-m", "medkit", "run", "segment", "--bundle", str(bundle), "--trust", "--json"]
    scans = [str(folder / f"{case}.nii.gz") for case in truth]
    done = subprocess.run([*command, "-o", str(folder / "out"), *scans], check=True, capture_output=True, text=True)
    found: dict[int, list[tuple[float, float]]] = {}
    for line in done.stdout.splitlines():
        block = json.loads(line)["medkit"]
        path = Path(block["outputs"]["labels"]["path"])
        names = {name: int(index) for index, name in block["labels"].items()}
        sure = {names[name]: value for name, value in block["metrics"]["confidence"].items()}
        scores = dice(voxels(path), truth[path.name.removesuffix("_dseg.nii.gz")], list(sure))
        for index, value in sure.items():
            if np.isfinite(scores[index]):
                found.setdefault(index, []).append((value, scores[index]))
    return {index: np.array(pairs) for index, pairs in sorted(found.items())}


def line(pairs: np.ndarray) -> tuple[float, float]:
    """Intercept and slope, least squares; the slope between 0 and MOST_SLOPE."""
    x, y = pairs.T
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread else 0.0
    slope = min(max(slope, 0.0), MOST_SLOPE)
    return round(float(y.mean() - slope * x.mean()), 3), round(slope, 3)


def left_out(pairs: np.ndarray) -> np.ndarray:
    """Return the error (N,) of each Dice from the line through the others."""
    rest = [line(np.delete(pairs, n, 0)) for n in range(len(pairs))]
    return np.array([start + slope * x - y for (start, slope), (x, y) in zip(rest, pairs, strict=True)])


def main() -> None:
    """Draw, label, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--count", type=int, default=16, help="Images of each subject.")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        truth = draw(given.maps, Path(name), given.count)
        found = measured(Path(name), truth, given.bundle)
    centred = np.concatenate([pairs - pairs.mean(0) for pairs in found.values()])
    off = np.concatenate([left_out(pairs) for pairs in found.values()])
    print(f"{len(truth)} images; correlation within a structure {np.corrcoef(*centred.T)[0, 1]:.2f}")
    print(f"the expected Dice is off by {np.abs(off).mean():.3f} on average")
    if given.write:
        path = given.bundle / "configs" / "metadata.json"
        metadata = json.loads(path.read_text())
        metadata["medkit"]["expected_dice"] = {str(index): line(pairs) for index, pairs in found.items()}
        path.write_text(json.dumps(metadata, indent=4) + "\n")


if __name__ == "__main__":
    main()
