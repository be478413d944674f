"""Registration of two persons with scans of different contrasts: label Dice, compared with equal contrasts.

    python tests/benchmarks/registration_contrasts.py [--quality Q]... [--data FOLDER] [FIXED MOVING]

Both heads are drawn from label maps (as `registration_ct_mr.py` draws them): the fixed one as T1, the moving one as
T1, T2, proton density and FLAIR, and the other way round. `medkit run register` is started as a process for each; Dice
is the mean over the structures of the brain, labels moved by nearest neighbour, as the sidecar gives it. Seconds are
those of the whole process, CPU counts all cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import registration_ct_mr as drawing

FLUID = {(4, 5, 14, 15, 24, 43, 44, 72): 15, (136, 137, 163, 164): 40}
"""Labels of fluid -> how bright they are in FLAIR; all else is as in T2."""
PD = {
    (2, 41): 150, (3, 42): 185, (7, 46): 155, (8, 47): 185, (4, 5, 14, 15, 24, 43, 44, 72): 160,
    (10, 49): 172, (11, 26, 50, 58): 182, (12, 51): 178, (13, 52): 145, (16, 28, 60, 512): 158, (17, 18, 53, 54): 184,
}  # fmt: skip
"""Proton density; all else is as in T1."""
MOVING = ("t1", "t2", "pd", "flair")
PAIRS = (*((f"t1-{name}") for name in MOVING), "t2-t1", "pd-t1", "flair-t1")


def add_contrasts() -> None:
    """Teaches `registration_ct_mr.painted` proton density and FLAIR."""
    for labels, values in drawing.TISSUES.items():
        t1, t2 = values[1:3]
        drawing.TISSUES[labels] = (*values, PD.get(labels, t1), FLUID.get(labels, t2))
    drawing.CONTRASTS = (*drawing.CONTRASTS, "pd", "flair")


def structures(labels: np.ndarray, table: Path) -> np.ndarray:
    """The structures of the brain that labels (I, J, K) stand for."""
    rows = [line.split("\t") for line in table.read_text().splitlines()[1:]]
    target = np.zeros(1 + max(int(row[0]) for row in rows), np.uint8)
    for row in rows:
        target[int(row[0])] = int(row[2])
    return target[labels]


def main() -> None:
    """Run and print the table, row by row."""
    import nibabel

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quality", action="append", choices=["fast", "default", "best"])
    parser.add_argument("--data", type=Path, default=drawing.DATA)
    parser.add_argument("subjects", nargs="*", default=["19", "20"], metavar="FIXED MOVING")
    given = parser.parse_args()
    add_contrasts()
    print(
        "| fixed-moving | quality | Dice | to like contrasts | wall s | CPU s |\n|---|---|---|---|---|---|", flush=True
    )
    like: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        heads = {}
        for role, subject in zip(("fixed", "moving"), given.subjects, strict=True):
            image = nibabel.load(given.data / f"labelmap_{subject}.nii.gz")
            labels = np.asarray(image.dataobj).astype(np.int16)
            heads[role] = labels, image.affine, int(subject)
            found = structures(labels, given.data / "labels.tsv")
            nibabel.save(nibabel.Nifti1Image(found, image.affine), folder / f"{role}_labels.nii.gz")
        for pair in PAIRS:
            for (role, (labels, affine, seed)), contrast in zip(heads.items(), pair.split("-"), strict=True):
                drawing.write(folder / f"{role}.nii.gz", drawing.painted(labels, contrast, seed), affine)
            for quality in given.quality or ["default"]:
                files = {"--fixed": "fixed", "--fixed-labels": "fixed_labels", "--moving-labels": "moving_labels"}
                command = [sys.executable, "-m", "medkit", "run", "register", "--quality", quality, "--json"]
                command += [word for flag, name in files.items() for word in (flag, str(folder / f"{name}.nii.gz"))]
                began, before = time.perf_counter(), os.times()
                last = [str(folder / "moving.nii.gz"), "-o", str(folder / "out"), "--overwrite", "-q"]
                done = subprocess.run([*command, *last], capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"medkit failed: {done.stderr.strip()}")
                wall, after = time.perf_counter() - began, os.times()
                cpu = after.children_user + after.children_system - before.children_user - before.children_system
                metrics = json.loads(done.stdout.strip().splitlines()[-1])["medkit"]["metrics"]
                dice = float(metrics["dice"])
                like.setdefault(quality, dice)
                print(
                    f"| {pair} | {quality} | {dice:.3f} | {dice - like[quality]:+.3f} | {wall:.1f} | {cpu:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
