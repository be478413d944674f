"""Fine-tuning `brain_mri_segmentation` on three label maps in a contrast that it was not made for.

    python tests/benchmarks/fine_tuning.py LABEL_MAPS FOLDER [--steps N]

LABEL_MAPS holds `labelmap_01.nii.gz` and so on, `labels.tsv` and `t1_priors.tsv`. The contrast is a table of
intensities of its own: dark fluid, white matter hardly darker than grey matter, and noise. Maps 01 to 03 train, 20
validates, and an image drawn from 19 is the test. FOLDER gets the data, and with `--steps` the new bundle, its zip, and
the results of the base and of the new bundle on the test image. All is done by commands of medkit, which are printed.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

BASE = "brain_mri_segmentation"
TRAINING, VALIDATION, TEST = ("01", "02", "03"), "20", "19"
OUTSIDE = (0, 24, *range(500, 600))
"""Values of the maps that lie outside the brain."""
FIELD = (144, 176, 144)
"""Voxels of 1 mm around the brain, of which a step has a window of the size that the config states."""
RANGES = {"prior": 1.0, "stripped": 1.0, "thickness": [1.0, 2.0], "coarseness": [1.0, 1.3], "noise": 0.06, "warp": 4.0}
"""What the images of the new scanner have in common."""
SETTINGS = {
    "field": list(FIELD), "learning_rate": 0.0007, "epoch_length": 15, "ramp": 1,
    "ranges": {"_target_": "medkit.synthesis.Ranges", **RANGES},
    "validate::contrasts": "$[@synthesis] * 3",
}  # fmt: skip


def new_contrast(row: dict[str, str]) -> dict[str, str]:
    """Return a row of the table of intensities in the new contrast: inverted, with little between the tissues."""
    mean = float(row["mean"])
    row["mean"] = f"{40 + 0.45 * (220 - mean) if mean > 60 else 0.4 * mean:.1f}"
    row["mean_sd"] = "2.0"
    row["std"] = f"{0.5 * float(row['std']):.1f}"
    row["std_sd"] = "0.5"
    return row


def write_data(maps: Path, folder: Path) -> None:
    """Write the maps, both tables, the test image with its labels, and the datalist."""
    folder.mkdir(parents=True)
    for number in (*TRAINING, VALIDATION):
        shutil.copy(maps / f"labelmap_{number}.nii.gz", folder)
    shutil.copy(maps / "labels.tsv", folder)
    with open(maps / "t1_priors.tsv", newline="") as source, open(folder / "t1_priors.tsv", "w", newline="") as target:
        reader = csv.DictReader(source, delimiter="\t")
        writer = csv.DictWriter(target, reader.fieldnames or (), delimiter="\t")
        writer.writeheader()
        writer.writerows(map(new_contrast, reader))
    draw_test(maps / f"labelmap_{TEST}.nii.gz", folder)
    listing = {
        "training": [{"labels": f"labelmap_{number}.nii.gz"} for number in TRAINING],
        "validation": [{"labels": f"labelmap_{VALIDATION}.nii.gz"}],
        "test": [{"image": "drawn.nii.gz", "label": "drawn_dseg.nii.gz", "subject": TEST}],
    }
    (folder / "dataset.json").write_text(json.dumps(listing, indent=1) + "\n")


def draw_test(path: Path, folder: Path) -> None:
    """Draw the test image from a label map, without deforming it, and write the labels of its structures."""
    import nibabel
    import numpy as np
    import torch

    from medkit.synthesis import LabelTable, Ranges, Synthesis

    still = {"rotation": 0.0, "scaling": 0.0, "shearing": 0.0, "shift": 0.0, "warp": 0.0, "flip": 0.0, "cut": 0.0}
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in RANGES.items()}
    table = LabelTable.read(folder / "labels.tsv", folder / "t1_priors.tsv")
    scan = nibabel.as_closest_canonical(nibabel.load(path))
    encoded = torch.from_numpy(table.encode(np.asarray(scan.dataobj), str(path)))[None, None]
    shape = tuple(int(16 * -(-n // 16)) for n in scan.shape[:3])
    drawing = Synthesis(table, shape, 1.0, Ranges(**still, **given), outside=OUTSIDE, fluid=(24,))
    drawn = drawing(encoded, [float(n) for n in scan.header.get_zooms()[:3]], seed=1)
    targets = np.array(table.channels, np.int16)[drawn.target[0, 0].numpy()]
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(255 * drawn.image[0, 0].numpy(), affine), folder / "drawn.nii.gz")
    nibabel.save(nibabel.Nifti1Image(targets, affine), folder / "drawn_dseg.nii.gz")


def medkit(*words: object) -> str:
    """Run a command of medkit and return its output."""
    command = ["medkit", *map(str, words)]
    print(f"$ {shlex.join(command)}", flush=True)
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, check=True)
    print(f"{done.stdout.rstrip()}\n({time.monotonic() - start:.0f} s)", flush=True)
    return done.stdout


def scored(bundle: object, data: Path, out: Path) -> float:
    """Run a bundle on the test image; return its mean Dice."""
    medkit("run", "segment", data / "drawn.nii.gz", "--bundle", bundle, "-o", out, "--overwrite")
    found = medkit("evaluate", out / "drawn_dseg.nii.gz", data / "drawn_dseg.nii.gz", "--json")
    return float(json.loads(found)["summary"]["dice"]["mean"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--patience", type=int, default=4)
    given = parser.parse_args()
    data, made = given.folder / "data", given.folder / "new_scanner"
    if not data.exists():
        write_data(given.maps, data)
    if given.steps is None:
        return
    before = scored(BASE, data, given.folder / "before")
    settings = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={_text(value)}")]
    medkit("train", "segment", "--bundle", BASE, "--init-from", BASE, "--data", data, "-o", made, *settings,
           "--steps", given.steps, "--patience", given.patience)  # fmt: skip
    after = scored(made, data, given.folder / "after")
    medkit("bundle", "verify", made)
    medkit("bundle", "pack", made, "-o", given.folder / "new_scanner.zip", "--overwrite")
    print(f"mean Dice of the test image: {before:.4f} before, {after:.4f} after")


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    main()
