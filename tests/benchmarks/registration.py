"""Registration of real brains, compared with other programs: label Dice, seconds, folding.

    python tests/benchmarks/registration.py [--type deformable|affine] [--only NAME]... [--data FOLDER] [--runs N]
                                            [FIXED:MOVING ...]

Other programs are run if they are installed (`pip install ".[bench]"`): ANTs (antspyx: Affine, SyNQuick, and with
`--only "ANTs SyN"` SyN, which takes many minutes) and greedy (picsl-greedy), each with its usual settings. Their
seconds are those of the registration calls only, with files read before (ANTs) or by the call (greedy); medkit's are
those of the whole case as the record gives them: reading, registration, resampling, similarity, writing; those of
`piped` lie between one case and the next of several, which overlap. `wall` adds the start of the program, `CPU` counts
the seconds of all cores, which a busy machine changes less. Dice is the mean over the labels that both scans share,
moved by nearest neighbour; folded is the share of the voxels with a label where the Jacobian determinant of the warp is
0 or less (central differences of the written field). Where there is a GPU, medkit computes the warp on it (not with
`MEDKIT_RUN_REGISTER_DEVICE=cpu`); what the CPU does then still is its floor, about `--type affine`.
"""

from __future__ import annotations

import argparse
import functools
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
PIPED = 8
"""Cases of a pipe."""


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
    cpu: float
    """Seconds of all cores."""
    folded: float | None = None
    """Share of folded voxels; None for affine maps."""


Method = Callable[[Pair, Path], Row]


class Clock:
    """Wall and CPU seconds, child processes included, since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), cpu_seconds()

    def read(self) -> tuple[float, float]:
        """Wall and CPU seconds."""
        return time.perf_counter() - self._wall, cpu_seconds() - self._cpu


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def run_medkit(pair: Pair, work: Path, *options: str) -> Row:
    """`medkit run register` as a user calls it."""
    fixed, moving = pair.scans()
    command = [sys.executable, "-m", "medkit", "run", "register", *options, "--fixed", str(fixed), str(moving)]
    clock = Clock()
    done = subprocess.run([*command, "--json", "-o", str(work)], capture_output=True, text=True, check=False)
    wall, cpu = clock.read()
    if done.returncode:
        raise SystemExit(f"medkit failed on {moving.name}: {done.stderr.strip()}")
    record = json.loads(done.stdout.strip().splitlines()[-1])["medkit"]
    transform = Path(record["outputs"]["transform"]["path"])
    return Row(moved_dice(pair, transform), record["seconds"], wall, cpu, folded_share(pair, transform))


def _medkit(options: tuple[str, ...], pair: Pair, work: Path) -> Row:
    return run_medkit(pair, work, *options)


def run_piped(pair: Pair, work: Path, *options: str) -> Row:
    """The moving scan under PIPED names in one call: the seconds from one line to the next, whole cases overlapping."""
    fixed, moving = pair.scans()
    copies = [work / f"copy_{number}.nii.gz" for number in range(PIPED)]
    for copy in copies:
        copy.symlink_to(moving)
    command = [sys.executable, "-m", "medkit", "run", "register", *options, "--fixed", str(fixed), *map(str, copies)]
    clock, lines = Clock(), []
    with subprocess.Popen(
        [*command, "--json", "-q", "-o", str(work / "out")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((clock.read()[0], json.loads(line)["medkit"]))
    wall, cpu = clock.read()
    if process.returncode:
        raise SystemExit(f"medkit failed on {moving.name}")
    transform = Path(lines[-1][1]["outputs"]["transform"]["path"])
    seconds = (lines[-1][0] - lines[0][0]) / (PIPED - 1)
    return Row(moved_dice(pair, transform), seconds, wall / PIPED, cpu / PIPED, folded_share(pair, transform))


def _piped(options: tuple[str, ...], pair: Pair, work: Path) -> Row:
    return run_piped(pair, work, *options)


def folded_share(pair: Pair, transform: Path) -> float | None:
    """Of the labelled voxels those where a displacement field folds; None for an affine transform."""
    from medkit.images.image import read_image
    from medkit.transforms.files import read_transform
    from medkit.transforms.transform import DisplacementField

    field = read_transform(transform)
    if not isinstance(field, DisplacementField):
        return None
    labels = read_image(pair.labels()[0], labels=True).data[0]
    back = np.linalg.inv(field.grid.affine[:3, :3]).T
    slopes = np.stack(np.gradient(field.field @ back.astype(np.float32), axis=(0, 1, 2)), axis=-1)
    determinant = np.linalg.det(slopes[labels > 0] + np.eye(3))
    return float((determinant <= 0).mean())


def moved_dice(pair: Pair, transform: Path) -> float:
    """Overlap after moving the labels by a transform file."""
    from medkit.images.image import read_image
    from medkit.transforms.files import read_transform
    from medkit.transforms.resampling import resample

    fixed, moving = (read_image(path, labels=True) for path in pair.labels())
    moved = resample(moving, fixed.grid, read_transform(transform), interpolation="nearest")
    return mean_dice(fixed.data[0], moved.data[0])


def run_ants(pair: Pair, work: Path, kind: str) -> Row:
    """A registration of ANTs through antspyx."""
    import ants  # type: ignore[import-not-found]

    fixed, moving = (ants.image_read(str(path)) for path in pair.scans())
    clock = Clock()
    found = ants.registration(fixed, moving, kind, random_seed=1, outprefix=str(work / "ants_"))
    seconds, cpu = clock.read()
    a, b = (ants.image_read(str(path)) for path in pair.labels())
    moved = ants.apply_transforms(a, b, found["fwdtransforms"], interpolator="nearestNeighbor")
    warps = [path for path in found["fwdtransforms"] if "Warp" in path]
    folded = None
    if warps:
        determinant = ants.create_jacobian_determinant_image(fixed, warps[0]).numpy()
        folded = float((determinant[a.numpy() > 0] <= 0).mean())
    return Row(mean_dice(a.numpy(), moved.numpy()), seconds, seconds, cpu, folded)


def run_greedy(pair: Pair, work: Path, *, deformable: bool) -> Row:
    """greedy's affine stage (NCC) through picsl-greedy, and its deformable one."""
    import nibabel
    from picsl_greedy import Greedy3D  # type: ignore[import-not-found]

    (fixed, moving), (a, b) = pair.scans(), pair.labels()
    tool, matrix, warp, moved = Greedy3D(), work / "greedy.mat", work / "warp.nii.gz", work / "greedy.nii.gz"
    clock = Clock()
    given = f"-threads {THREADS} -V 0 -i {fixed} {moving} -n 100x50x10"
    tool.execute(f"{given} -a -dof 12 -ia-image-centers -m NCC 4x4x4 -o {matrix}")
    if deformable:
        tool.execute(f"{given} -it {matrix} -m NCC 2x2x2 -s 2vox 0.5vox -o {warp}")
    seconds, cpu = clock.read()
    chain = f"{warp} {matrix}" if deformable else f"{matrix}"
    tool.execute(f"-threads {THREADS} -V 0 -rf {fixed} -ri NN -rm {b} {moved} -r {chain}")
    labels, result = (np.asanyarray(nibabel.load(path).dataobj) for path in (a, moved))
    folded = None
    if deformable:
        tool.execute(f"-threads {THREADS} -V 0 -rf {fixed} -rj {work / 'jacobian.nii.gz'} -r {warp}")
        determinant = np.asanyarray(nibabel.load(work / "jacobian.nii.gz").dataobj)
        folded = float((determinant[labels > 0] <= 0).mean())
    return Row(mean_dice(labels, result), seconds, seconds, cpu, folded)


def mean_dice(a: np.ndarray, b: np.ndarray) -> float:
    """Mean Dice over the labels above 0 that both label images (I, J, K) have; 0 if they share none."""
    import torch

    from medkit.evaluation.measures.metrics import dice

    first, second = (torch.from_numpy(np.rint(labels).astype(np.int32)) for labels in (a, b))
    shared = (set(first.unique().tolist()) & set(second.unique().tolist())) - {0}
    overlap = dice(first, second)
    return statistics.fmean(overlap[label] for label in shared) if shared else 0.0


ANTS, GREEDY = "ants", "picsl_greedy"
METHODS: dict[str, dict[str, tuple[str, Method]]] = {
    "affine": {
        "medkit affine": ("medkit", functools.partial(_medkit, ("--type", "affine"))),
        "medkit affine, piped": ("medkit", functools.partial(_piped, ("--type", "affine"))),
        "ANTs Affine": (ANTS, functools.partial(run_ants, kind="Affine")),
        "greedy affine": (GREEDY, functools.partial(run_greedy, deformable=False)),
    },
    "deformable": {
        "medkit": ("medkit", run_medkit),
        "medkit fast": ("medkit", functools.partial(_medkit, ("--quality", "fast"))),
        "medkit best": ("medkit", functools.partial(_medkit, ("--quality", "best"))),
        "medkit piped": ("medkit", run_piped),
        "greedy": (GREEDY, functools.partial(run_greedy, deformable=True)),
        "ANTs SyNQuick": (ANTS, functools.partial(run_ants, kind="antsRegistrationSyNQuick[s]")),
        "ANTs SyN": (ANTS, functools.partial(run_ants, kind="antsRegistrationSyN[s]")),
    },
}
"""Type -> name -> the module that it needs, and the method; ours first."""
SLOW = ("ANTs SyN",)
"""Only where asked for."""


def methods(kind: str, only: list[str]) -> dict[str, Method]:
    """Ours and the peers that are installed; a line on stderr for each that is not."""
    known = METHODS[kind]
    unknown = set(only) - set(known)
    if unknown:
        raise SystemExit(f"expected --only to be among {', '.join(known)}, got {', '.join(sorted(unknown))}")
    found: dict[str, Method] = {}
    for name, (module, method) in known.items():
        if name not in only and (only or name in SLOW):
            continue
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
    """Dice and median seconds per pair, then means and medians over pairs; the ratio is to the first method's."""
    columns = ["mean Dice", "median s", "wall s", "CPU s", "s / first", "folded %"]
    head = ["method", *(f"{p.fixed}:{p.moving}" for p in pairs), *columns]
    lines = [head]
    first = median_seconds(next(iter(results.values())))
    for name, rows in results.items():
        cells = [f"{runs[0].dice:.4f}, {statistics.median(r.seconds for r in runs):.1f} s" for runs in rows]
        mean = statistics.fmean(runs[0].dice for runs in rows)
        seconds = median_seconds(rows)
        wall, cpu = (statistics.median(getattr(r, what) for runs in rows for r in runs) for what in ("wall", "cpu"))
        folds = [runs[0].folded for runs in rows if runs[0].folded is not None]
        folded = f"{100 * max(folds):.4f}" if folds else "-"
        numbers = [f"{mean:.4f}", f"{seconds:.2f}", f"{wall:.2f}", f"{cpu:.2f}", f"{seconds / first:.1f}", folded]
        lines.append([name, *cells, *numbers])
    lines.insert(1, ["---"] * len(head))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def median_seconds(rows: list[list[Row]]) -> float:
    """Over all pairs and runs."""
    return statistics.median(row.seconds for runs in rows for row in runs)


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description="Registration beside its peers: label Dice and seconds.")
    parser.add_argument("--type", choices=list(METHODS), default="deformable")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="Run these methods alone.")
    parser.add_argument("pairs", nargs="*", default=PAIRS, metavar="FIXED:MOVING")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--runs", type=int, default=1)
    options = parser.parse_args()
    if not options.data.is_dir():
        raise SystemExit(f"real scans are not at {options.data}; give --data FOLDER")
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", THREADS)
    pairs = [Pair(options.data, *pair.split(":")) for pair in options.pairs]
    results = {
        name: measure(method, pairs, options.runs) for name, method in methods(options.type, options.only).items()
    }
    print(table(results, pairs))


if __name__ == "__main__":
    main()
