"""Dice of `medkit run segment` on real scans with manual labels.

    python tests/benchmarks/segmentation.py DATA/brain_t1_manual [--bundle FOLDER] [--monai] [ID ...]

The folder holds oasis_ID_t1.nii.gz, oasis_ID_labels.nii.gz (Neuromorphometrics' numbers, about 139 of them) and the
table that maps those to the bundle's; several regions may map to one structure. A structure that is in the manual
labels and is not found counts as 0. Seconds are those of one process over all scans, start included; further arguments
after `--` go to `medkit run segment`. With --monai the bundle runs under `python -m monai.bundle run` instead.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np

BUNDLE = Path(__file__).parents[2] / "bundles" / "brain_mri_segmentation"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("ids", nargs="*")
    arguments.add_argument("--bundle", type=Path, default=BUNDLE)
    arguments.add_argument("--monai", action="store_true")
    words = sys.argv[1:]
    own, more = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    given = arguments.parse_intermixed_args(own)
    ids = given.ids or sorted(p.name.split("_")[1] for p in given.data.glob("oasis_*_t1.nii.gz"))
    names = json.loads((given.bundle / "configs" / "metadata.json").read_text())["medkit"]["labels"]
    mapping = table(given.data / "neuromorphometrics_to_freesurfer.tsv")
    with tempfile.TemporaryDirectory() as folder:
        scans = [given.data.resolve() / f"oasis_{i}_t1.nii.gz" for i in ids]
        command = under_monai if given.monai else under_medkit
        seconds = timed(command(given.bundle.resolve(), scans, Path(folder), more), given.bundle)
        scores = {}
        for i in ids:
            found = voxels(Path(folder) / "out" / f"oasis_{i}_t1_dseg.nii.gz")
            scores[i] = dice(found, mapping[voxels(given.data / f"oasis_{i}_labels.nii.gz")], sorted(map(int, names)))
    print("| structure | " + " | ".join(ids) + " | mean |")
    print("|---" * (len(ids) + 2) + "|")
    for label in sorted(map(int, names)):
        row = [scores[i][label] for i in ids]
        print(f"| {names[str(label)]} | " + " | ".join(f"{v:.3f}" for v in row) + f" | {np.nanmean(row):.3f} |")
    means = [float(np.nanmean(list(scores[i].values()))) for i in ids]
    print("| **mean** | " + " | ".join(f"{v:.3f}" for v in means) + f" | **{np.mean(means):.4f}** |")
    print(f"\n{seconds / len(ids):.1f} s a scan, start included")


def under_medkit(bundle: Path, scans: list[Path], folder: Path, more: list[str]) -> list[str]:
    """Return the command that labels the scans into `folder`/out."""
    own = ["--bundle", str(bundle), "--trust", *more, "-o", str(folder / "out")]
    return [sys.executable, "-m", "medkit", "run", "segment", *own, *map(str, scans)]


def under_monai(bundle: Path, scans: list[Path], folder: Path, more: list[str]) -> list[str]:
    """The same under MONAI, which takes a folder."""
    (inputs := folder / "in").mkdir()
    for scan in scans:
        (inputs / scan.name).symlink_to(scan)
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json", *more]
    return [*command, "--dataset_dir", str(inputs), "--output_dir", str(folder / "out"), "--bundle_root", str(bundle)]


def timed(command: list[str], bundle: Path) -> float:
    """Run the command in the bundle's folder and return its seconds."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - began


def table(path: Path) -> np.ndarray:
    """Neuromorphometrics' number -> the bundle's, 0 if it has none."""
    with open(path, newline="") as file:
        rows = [
            (int(row["neuromorphometrics"]), int(row["freesurfer"])) for row in csv.DictReader(file, delimiter="\t")
        ]
    out = np.zeros(max(max(a for a, _ in rows), 1000) + 1, np.int64)
    out[[a for a, _ in rows]] = [b for _, b in rows]
    return out


def voxels(path: Path) -> np.ndarray:
    """Labels with axes nearest to RAS."""
    return np.rint(np.asanyarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)).astype(np.int64)


def dice(found: np.ndarray, manual: np.ndarray, labels: list[int]) -> dict[int, float]:
    """Return label -> Dice; NaN if the manual labels lack it."""
    count = max(int(found.max()), int(manual.max()), max(labels)) + 1
    ours, theirs, both = (
        np.bincount(a, minlength=count) for a in (found.ravel(), manual.ravel(), found[found == manual])
    )
    return {n: 2 * both[n] / (ours[n] + theirs[n]) if theirs[n] else float("nan") for n in labels}


if __name__ == "__main__":
    main()
