"""Whether `medkit run segment` is repeatable, flags doubtful results, and saves time in a pipe.

    python tests/benchmarks/segmentation_checks.py DATA

- Volumes of one person in two contrasts (chris_t1, chris_pd) and in two scans (1003, 1023): median difference.
- Flags: how many good scans are flagged, and the Dice of flagged structures and of the others.
- Noise, a phantom of blobs, a chest CT: refused, or flagged.
- A pipe `register | segment` over eight scans: seconds, and those of its stages run separately.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from segmentation import dice, table, voxels

from medkit.images.phantom import make_image

PYTHON = [sys.executable, "-m", "medkit", "run"]


def segment(scans: list[Path], output: Path, *more: str) -> dict[str, dict[str, Any]]:
    """Name of each scan -> its record; failed ones too."""
    done = subprocess.run(
        [*PYTHON, "segment", "--json", *more, "-o", str(output), *map(str, scans)], capture_output=True, text=True
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    print(done.stderr, file=sys.stderr)
    made = {Path(r["path"]).name.split("_dseg")[0]: r for r in records}
    return {s.name.split(".")[0]: made.get(s.name.split(".")[0], {}) for s in scans}


def volumes(record: dict[str, Any]) -> dict[str, float]:
    found: dict[str, float] = record["medkit"]["metrics"]["volumes_mm3"]
    return found


def agreement(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Median difference of the volumes of two records, as a share of their mean."""
    a, b = volumes(one), volumes(other)
    return statistics.median(2 * abs(a[n] - b[n]) / (a[n] + b[n]) for n in a if a[n] + b[n])


def flags(data: Path, records: dict[str, dict[str, Any]], output: Path) -> None:
    """Dice of the structures that are flagged, and of the others."""
    mapping = table(data / "neuromorphometrics_to_freesurfer.tsv")
    groups: dict[bool, list[float]] = {True: [], False: []}
    for name in records:
        with open(output / f"{name}_dseg.tsv", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        manual = mapping[voxels(data / f"{name.removesuffix('_t1')}_labels.nii.gz")]
        scores = dice(voxels(output / f"{name}_dseg.nii.gz"), manual, [int(r["index"]) for r in rows])
        for row in rows:
            groups[row["look"] != "n/a"].append(scores[int(row["index"])])
    looks = sum(r["medkit"]["metrics"]["look"] for r in records.values())
    print(f"flagged scans: {looks} of {len(records)}")
    for flagged, values in groups.items():
        mean = f"{np.nanmean(values):.3f}" if values else "n/a"
        print(f"{'flagged' if flagged else 'other'} structures: {len(values)}, mean Dice {mean}")


def impossible(data: Path, folder: Path) -> None:
    """Return images that are not brains."""
    noise = np.random.default_rng(0).normal(500, 150, (180, 200, 180)).clip(0).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(noise, np.eye(4)), folder / "noise.nii.gz")
    make_image(folder / "phantom.nii.gz", (120, 140, 120), (1.5, 1.5, 1.5))
    chest = data / "lung_ct" / "cip_ct-64.nrrd"
    scans = [folder / "noise.nii.gz", folder / "phantom.nii.gz", *([chest] if chest.exists() else [])]
    scans += sorted((data / "lung_ct").glob("totalseg_example_ct_sm_3mm.nii.gz"))
    for name, record in segment(scans, folder / "none").items():
        metrics = record.get("medkit", {}).get("metrics")
        said = "refused" if metrics is None else f"flagged: {metrics['look']}; {record['medkit']['warnings']}"
        print(f"{name}: {said}")


def pipe(scans: list[Path], folder: Path) -> None:
    """Seconds of the two stages, and of the pipe."""
    fixed, *moving = scans
    register = [*PYTHON, "register", "--type", "affine", "--fixed", str(fixed), *map(str, moving)]

    def timed(command: str) -> float:
        start = time.perf_counter()
        subprocess.run(
            ["bash", "-o", "pipefail", "-c", command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return time.perf_counter() - start

    first = " ".join([*register, "-o", str(folder / "r1")])
    second = " ".join([*PYTHON, "segment", "-o", str(folder / "s1"), str(folder / "r1" / "*_registered.nii.gz")])
    whole = " ".join([*register, "-o", str(folder / "r2"), "|", *PYTHON, "segment", "-o", str(folder / "s2")])
    apart = [timed(first), timed(second)]
    print(f"register {apart[0]:.1f} s, segment {apart[1]:.1f} s, the pipe {timed(whole):.1f} s, {len(moving)} scans")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data.resolve()
    manual, heads = data / "brain_t1_manual", data / "brain_heads"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scans = sorted(manual.glob("oasis_*_t1.nii.gz"))
        records = segment(scans, folder / "oasis")
        chris = segment([heads / "chris_t1.nii.gz", heads / "chris_pd.nii.gz"], folder / "chris")
        print(f"chris, T1 and PD: median volume difference {agreement(chris['chris_t1'], chris['chris_pd']):.1%}")
        retest = agreement(records["oasis_1003_t1"], records["oasis_1023_t1"])
        print(f"1003 and 1023: median volume difference {retest:.1%}")
        flags(manual, records, folder / "oasis")
        impossible(data, folder)
        pipe(scans, folder)


if __name__ == "__main__":
    main()
