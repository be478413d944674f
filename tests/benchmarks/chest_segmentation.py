"""Dice of `medkit run segment` on CT of the chest: the bundle and `--method threshold` on the same images.

    python tests/benchmarks/chest_segmentation.py DATA [--bundle FOLDER]

DATA is the folder with lung_ct/ and chest_ct/. Healthy scans with masks of the lungs are scored by them. Then diseases
are painted into two scans that trained nothing, KINDS times each; the labels that the threshold finds in the healthy
scan at 2 mm are the truth. Structures that are in no label map of a scan are left out of its mean.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from medkit_segment.chest import chest_labels

from medkit.images import Image, read_image
from medkit.space import Grid
from medkit.synthesis.lung_disease import Diseases, diseased
from medkit.synthesis.ranges import Random
from medkit.transforms import resample

BUNDLE = Path(__file__).parents[2] / "bundles" / "chest_ct_segmentation"
MASKED = {
    "lung_ct/cip_ct-64.nrrd": "lung_ct/cip_wholeLung-64.nrrd",
    "lung_ct/elastix_lung_baseline_small.mha": "lung_ct/elastix_lung_baseline_mask.mha",
}
PAINTED = ("chest_ct/covidctmd_normal001_4mm.nii.gz", "lung_ct/cip_ct-64.nrrd")
KINDS = 20
SPACING = 2.0
NAMES = {1: "body", 2: "left lung", 3: "right lung", 4: "airway", 5: "bones"}
LUNGS = (2, 3)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--bundle", type=Path, default=BUNDLE)
    given = arguments.parse_args()
    methods = {
        "network": ["--bundle", str(given.bundle.resolve()), "--trust"],
        "threshold": ["--method", "threshold"],
    }
    with tempfile.TemporaryDirectory() as folder:
        healthy(given.data.resolve(), Path(folder), methods)
        simulated(given.data.resolve(), Path(folder), methods)


def healthy(data: Path, folder: Path, methods: dict[str, list[str]]) -> None:
    """Print the Dice of the lungs, left and right together, against masks."""
    print("| lungs of | " + " | ".join(methods) + " |\n|---" + "|---" * len(methods) + "|")
    found = {name: labelled([data / scan for scan in MASKED], folder / name, words) for name, words in methods.items()}
    for n, (scan, mask) in enumerate(MASKED.items()):
        truth = read_image(data / mask, labels=True)
        row = [dice(np.isin(resample(maps[n], truth.grid, interpolation="nearest").data, LUNGS), truth.data > 0)
               for maps in found.values()]  # fmt: skip
        print(f"| {Path(scan).name} | " + " | ".join(f"{value:.3f}" for value in row) + " |")


def simulated(data: Path, folder: Path, methods: dict[str, list[str]]) -> None:
    """Print the Dice of each structure where diseases are painted into the lungs."""
    for name in PAINTED:
        scan = cubic(read_image(data / name))
        truth = chest_labels(scan).labels
        scans = []
        for kind in range(KINDS):
            path = folder / f"{Path(name).name.split('.')[0]}_{kind:02d}_ct.nii.gz"
            painted(scan, truth, kind).write(path)
            scans.append(path)
        print(f"\n| {Path(name).name}, {KINDS} kinds of damage | " + " | ".join(NAMES.values()) + " | mean | worst |")
        print("|---" * (len(NAMES) + 3) + "|")
        for method, words in methods.items():
            began = time.perf_counter()
            maps = labelled(scans, folder / f"{Path(name).name}-{method}", words)
            seconds = (time.perf_counter() - began) / KINDS
            scores = np.array([[score(made, truth, label) for label in NAMES] for made in maps])
            means = np.nanmean(scores, axis=1)
            cells = [*np.nanmean(scores, axis=0), means.mean(), means.min()]
            print(f"| {method} ({seconds:.1f} s a scan) | " + " | ".join(f"{value:.3f}" for value in cells) + " |")


def score(made: Image | None, truth: np.ndarray, label: int) -> float:
    """Return the Dice of a structure; 0 for a scan without a result, NaN for a structure that is not in the truth."""
    if not (truth == label).any():
        return float("nan")
    return 0.0 if made is None else dice(made.data[0] == label, truth == label)


def cubic(image: Image) -> Image:
    """Return the scan with cubic voxels of SPACING mm along RAS+."""
    ends = np.array(np.meshgrid(*[[0, n - 1] for n in image.grid.shape])).reshape(3, -1)
    corners = (image.grid.affine[:3, :3] @ ends).T + image.grid.affine[:3, 3]
    low, high = corners.min(0), corners.max(0)
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = low
    shape = tuple(int(n) for n in (high - low) / SPACING + 1)
    return resample(image, Grid(shape, affine, image.grid.dims), outside=-1000.0)


def painted(scan: Image, labels: np.ndarray, kind: int) -> Image:
    """Return the scan with diseases in its lungs, others for each `kind`."""
    lungs = torch.from_numpy(np.stack([labels == label for label in LUNGS]))
    random = Random(kind, torch.device("cpu"))
    image = torch.from_numpy(scan.data.astype(np.float32))
    return scan.with_data(
        diseased(image, lungs, SPACING, random, Diseases(healthy=0.0)).numpy().round().astype(np.int16)
    )


def labelled(scans: list[Path], folder: Path, words: list[str]) -> list[Image | None]:
    """Return the label maps that medkit makes of the scans, None where it makes none."""
    command = [sys.executable, "-m", "medkit", "run", "segment", *words, "-o", str(folder), *map(str, scans)]
    subprocess.run(command, check=False, capture_output=True)
    names = [scan.name.split(".")[0] for scan in scans]
    paths = [
        next((path for path in folder.glob(f"{name}_dseg.*") if path.suffix not in (".tsv", ".json")), None)
        for name in names
    ]
    return [read_image(path, labels=True) if path else None for path in paths]


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    """Return the Dice of two masks."""
    return float(2 * (found & truth).sum() / max(1, found.sum() + truth.sum()))


if __name__ == "__main__":
    main()
