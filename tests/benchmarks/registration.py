"""Affine registration of real brains beside its peers: label Dice and seconds.

    python tests/benchmarks/registration.py [--data FOLDER] [--runs N] [FIXED:MOVING ...]

Peers are run where they are installed (`pip install ".[bench]"`): ANTs (antspyx) and greedy (picsl-greedy), each with
its usual affine settings. A peer's seconds are those of its registration call alone, files read before (ANTs) or by it
(greedy); medkit's are those of the whole case as the record gives them: reading, registration, resampling, similarity,
writing. `wall` adds the start of the program. Dice is the mean over the labels that both scans share, moved by nearest
neighbour.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "brain_t1_manual"
PAIRS = ("1000:1001", "1002:1014", "1015:1017")
THREADS = "2"


@dataclass(frozen=True)
class Pair:
    """Two scans and their labels."""

    folder: Path
    """Where `oasis_<name>_t1.nii.gz` and `oasis_<name>_labels.nii.gz` lie."""
    fixed: str
    """Name of the fixed scan."""
    moving: str
    """Name of the moving scan."""

    def scans(self) -> tuple[Path, Path]:
        """Fixed and moving image."""
        return self.folder / f"oasis_{self.fixed}_t1.nii.gz", self.folder / f"oasis_{self.moving}_t1.nii.gz"

    def labels(self) -> tuple[Path, Path]:
        """Fixed and moving labels."""
        return self.folder / f"oasis_{self.fixed}_labels.nii.gz", self.folder / f"oasis_{self.moving}_labels.nii.gz"


@dataclass(frozen=True)
class Row:
    """One method on one pair, once."""

    dice: float
    """Mean over shared labels."""
    seconds: float
    """See the module's docstring."""
    wall: float
    """With the start of the program, where one is started; else as `seconds`."""


Method = Callable[[Pair, Path], Row]


def run_medkit(pair: Pair, work: Path) -> Row:
    """`medkit run register` as a user calls it."""
    fixed, moving = pair.scans()
    command = ["medkit", "run", "register", "--type", "affine", "--fixed", str(fixed), str(moving), "--json"]
    start = time.perf_counter()
    done = subprocess.run([*command, "-o", str(work)], capture_output=True, text=True, check=False)
    wall = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"medkit failed on {moving.name}: {done.stderr.strip()}")
    record = json.loads(done.stdout.strip().splitlines()[-1])["medkit"]
    return Row(moved_dice(pair, Path(record["outputs"]["transform"]["path"])), record["seconds"], wall)


def moved_dice(pair: Pair, transform: Path) -> float:
    """Overlap after moving the labels by a transform file."""
    from medkit.images import read_image
    from medkit.resample import resample
    from medkit.space import read_transform

    fixed, moving = (read_image(path, labels=True) for path in pair.labels())
    moved = resample(moving, fixed.grid, read_transform(transform), interpolation="nearest")
    return mean_dice(fixed.data[0], moved.data[0])


def run_ants(pair: Pair, work: Path) -> Row:
    """ANTs' `Affine` through antspyx."""
    import ants  # type: ignore[import-not-found]

    fixed, moving = (ants.image_read(str(path)) for path in pair.scans())
    start = time.perf_counter()
    found = ants.registration(fixed, moving, "Affine", random_seed=1, outprefix=str(work / "ants_"))
    seconds = time.perf_counter() - start
    a, b = (ants.image_read(str(path)) for path in pair.labels())
    moved = ants.apply_transforms(a, b, found["fwdtransforms"], interpolator="nearestNeighbor")
    return Row(mean_dice(a.numpy(), moved.numpy()), seconds, seconds)


def run_greedy(pair: Pair, work: Path) -> Row:
    """greedy's affine stage (NCC) through picsl-greedy."""
    import nibabel
    from picsl_greedy import Greedy3D  # type: ignore[import-not-found]

    (fixed, moving), (a, b) = pair.scans(), pair.labels()
    tool, matrix, moved = Greedy3D(), work / "greedy.mat", work / "greedy.nii.gz"
    start = time.perf_counter()
    settings = "-a -dof 12 -ia-image-centers -n 100x50x10 -m NCC 4x4x4"
    tool.execute(f"-threads {THREADS} -V 0 -i {fixed} {moving} {settings} -o {matrix}")
    seconds = time.perf_counter() - start
    tool.execute(f"-threads {THREADS} -V 0 -rf {fixed} -ri NN -rm {b} {moved} -r {matrix}")
    images = (np.asanyarray(nibabel.load(path).dataobj) for path in (a, moved))
    return Row(mean_dice(*images), seconds, seconds)


def mean_dice(a: np.ndarray, b: np.ndarray) -> float:
    """Mean Dice over the labels above 0 that both label images (I, J, K) have."""
    import torch

    from medkit.metrics import dice

    first, second = (torch.from_numpy(np.rint(labels).astype(np.int32)) for labels in (a, b))
    shared = (set(first.unique().tolist()) & set(second.unique().tolist())) - {0}
    overlap = dice(first, second)
    return statistics.fmean(overlap[label] for label in shared)


def methods() -> dict[str, Method]:
    """Ours and the peers that are installed; a line on stderr for each that is not."""
    found: dict[str, Method] = {"medkit": run_medkit}
    for name, module, method in (("ANTs Affine", "ants", run_ants), ("greedy affine", "picsl_greedy", run_greedy)):
        if importlib.util.find_spec(module):
            found[name] = method
        else:
            print(f"{name}: {module} is not installed, left out", file=sys.stderr)
    return found


def measure(method: Method, pairs: list[Pair], runs: int) -> list[list[Row]]:
    """Per pair its runs."""
    rows = []
    for pair in pairs:
        rows.append([])
        for _ in range(runs):
            with tempfile.TemporaryDirectory() as work:
                rows[-1].append(method(pair, Path(work)))
    return rows


def table(results: dict[str, list[list[Row]]], pairs: list[Pair]) -> str:
    """Dice and median seconds per pair, then mean Dice, median seconds and the ratio of seconds to medkit's."""
    head = ["method", *(f"{p.fixed}:{p.moving}" for p in pairs), "mean Dice", "median s", "wall s", "s / medkit's"]
    lines = [head]
    ours = median_seconds(results["medkit"])
    for name, rows in results.items():
        cells = [f"{runs[0].dice:.4f}, {statistics.median(r.seconds for r in runs):.1f} s" for runs in rows]
        mean = statistics.fmean(runs[0].dice for runs in rows)
        seconds = median_seconds(rows)
        wall = statistics.median(r.wall for runs in rows for r in runs)
        lines.append([name, *cells, f"{mean:.4f}", f"{seconds:.2f}", f"{wall:.2f}", f"{seconds / ours:.1f}"])
    lines.insert(1, ["---"] * len(head))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def median_seconds(rows: list[list[Row]]) -> float:
    """Over all pairs and runs."""
    return statistics.median(row.seconds for runs in rows for row in runs)


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description="Affine registration beside its peers: label Dice and seconds.")
    parser.add_argument("pairs", nargs="*", default=PAIRS, metavar="FIXED:MOVING")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--runs", type=int, default=1)
    options = parser.parse_args()
    if not options.data.is_dir():
        raise SystemExit(f"real scans are not at {options.data}; give --data FOLDER")
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", THREADS)
    pairs = [Pair(options.data, *pair.split(":")) for pair in options.pairs]
    results = {name: measure(method, pairs, options.runs) for name, method in methods().items()}
    print(table(results, pairs))


if __name__ == "__main__":
    main()
