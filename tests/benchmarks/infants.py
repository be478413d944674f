"""Dice of `medkit run segment --bundle infant_mri_segmentation` on infants that did not train it.

    python tests/benchmarks/infants.py DATA/infants [--bundle FOLDER] [ID ...]

The folder holds TemplateID/T1w_brain.nii.gz and TemplateID/Segmentation.nii.gz. A structure in the labels that is not
found counts as 0; structures that the bundle does not have are left out. It also prints the Dice of all structures
together, their volume over the true one, and seconds of one process over all scans, start included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from segmentation import dice, voxels

BUNDLE = Path(__file__).parents[2] / "bundles" / "infant_mri_segmentation"
OUTER_CEREBELLUM = 6


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("ids", nargs="*", default=["05", "13"])
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    given = parser.parse_args()
    names = json.loads((given.bundle / "configs" / "metadata.json").read_text())["medkit"]["labels"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scans = []
        for i in given.ids:  # so that results of equal names do not collide
            scans.append(folder / f"{i}.nii.gz")
            scans[-1].symlink_to((given.data / f"Template{i}" / "T1w_brain.nii.gz").resolve())
        command = [sys.executable, "-m", "medkit", "run", "segment", "--bundle", str(given.bundle), "--trust"]
        began = time.perf_counter()
        subprocess.run([*command, "-o", str(folder / "out"), *map(str, scans)], check=True, stdout=subprocess.DEVNULL)
        seconds = (time.perf_counter() - began) / len(scans)
        scores, whole = {}, []
        for i in given.ids:
            found = voxels(folder / "out" / f"{i}_dseg.nii.gz")
            truth = voxels(given.data / f"Template{i}" / "Segmentation.nii.gz").astype(int)
            truth = np.where(truth == OUTER_CEREBELLUM, 8, truth)
            scores[i] = dice(found, truth, sorted(map(int, names)))
            both = ((found > 0) & (truth > 0)).sum()
            whole.append((2 * both / ((found > 0).sum() + (truth > 0).sum()), (found > 0).sum() / (truth > 0).sum()))
    print("| structure | " + " | ".join(given.ids) + " | mean |")
    print("|---" * (len(given.ids) + 2) + "|")
    for label in sorted(map(int, names)):
        row = [scores[i][label] for i in given.ids]
        if not np.isnan(row).all():
            print(f"| {names[str(label)]} | " + " | ".join(f"{v:.3f}" for v in row) + f" | {np.nanmean(row):.3f} |")
    means = [float(np.nanmean(list(scores[i].values()))) for i in given.ids]
    print("| **mean** | " + " | ".join(f"{v:.3f}" for v in means) + f" | **{np.mean(means):.4f}** |")
    print("| all together | " + " | ".join(f"{d:.3f}" for d, _ in whole) + f" | {np.mean([d for d, _ in whole]):.3f} |")
    print("| volume, found over true | " + " | ".join(f"{v:.3f}" for _, v in whole) + " | |")
    print(f"\n{seconds:.1f} s a scan, start included")


if __name__ == "__main__":
    main()
