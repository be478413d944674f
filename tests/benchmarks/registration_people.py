"""Registration by sides of people, one to tune on and one to report: medians, and the share of pairs won against peers.

    python tests/benchmarks/registration_people.py adults|infants|liver [--side reporting|tuning|all] [--limit N]
        [--only METHOD]... [--peers FOLDER]

People are split into two sides by their number, and a pair lies on one side only if both of its people do: tune on
`tuning`, report on `reporting`. (Before this split the defaults were tuned on the pairs 1000:1001, 1002:1014, 1015:1017
and 1003:1000, so of the adults nobody is quite unseen; the infants are.)
`adults` are the pairs of `brain_t1_manual` (1003 and 1023 are most likely one person, and count as one), `infants`
those of `infants`; each is scored by the mean Dice of the labels that both have, moved by nearest neighbour. `liver`
are the pairs of one person in several phases of breathing, scored by the mean TRE in mm of landmarks inside and outside
of the liver. All methods run on the same pairs in one run, `medkit run register` as a
process with all its files; a peer that is not installed is left out with a line (`--peers` names a folder of packages,
as `pip install --target` fills it).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from registration import DATA as ADULTS
from registration import THREADS, Clock, mean_dice

SHARED = ADULTS.parent
SAME_PERSON = {"1023": "1003"}
"""Adult -> the same person under another number."""
LIVER = {"dataset18": ("cyc_1_10", "cyc_3_10"), "dataset19": ("cyc_1_6", "cyc_1_9")}
"""Person -> phases that are compared with the end of exhalation."""
EXHALED = "exhMaster"
WRONG_SPACING = {("dataset18", "cyc_1_10"): 4.0}
"""Slice spacing in mm of scans whose header says another one than their landmarks."""
SIDES = ("tuning", "reporting")


@dataclass(frozen=True)
class Pair:
    """Two scans, and what their registration is scored by."""

    name: str
    fixed: Path
    moving: Path
    truth: tuple[Path, Path] | Mapping[str, tuple[np.ndarray, np.ndarray]]
    """Fixed and moving labels, or place -> fixed and moving landmarks (N, 3), RAS+ mm."""


@dataclass(frozen=True)
class Outcome:
    """One method on one pair."""

    scores: Mapping[str, float]
    """Dice, or TRE in mm by place."""
    seconds: float


Apply = Callable[[Pair, Path], Mapping[str, float]]


def side_of(person: str) -> str:
    """Return the side of a person: every other one by the last digits of the name."""
    return SIDES[int(re.sub(r"\D", "", SAME_PERSON.get(person, person))) % 2]


def pairs_of(people: Mapping[str, tuple[Path, Path]], side: str) -> Iterator[Pair]:
    """Yield ordered pairs of different people on one side; `people` are name -> scan and labels."""
    for fixed, moving in itertools.permutations(people, 2):
        same = SAME_PERSON.get(fixed, fixed) == SAME_PERSON.get(moving, moving)
        if not same and (side == "all" or side_of(fixed) == side_of(moving) == side):
            truth = people[fixed][1], people[moving][1]
            yield Pair(f"{fixed}:{moving}", people[fixed][0], people[moving][0], truth)


def adults(side: str, work: Path) -> Iterator[Pair]:
    """Yield pairs of adults."""
    scans = sorted(ADULTS.glob("oasis_*_t1.nii.gz"))
    yield from pairs_of({p.name.split("_")[1]: (p, p.with_name(p.name.replace("_t1", "_labels"))) for p in scans}, side)


def infants(side: str, work: Path) -> Iterator[Pair]:
    """Yield pairs of infants."""
    folders = sorted((SHARED / "infants").glob("Template*"))
    yield from pairs_of({f.name: (f / "T1w_brain.nii.gz", f / "Segmentation.nii.gz") for f in folders}, side)


def liver(side: str, work: Path) -> Iterator[Pair]:
    """Yield pairs of phases, in both directions; their scans are written into `work` with the right slice spacing."""
    for person, phases in LIVER.items():
        if side in ("all", side_of(person)):
            for phase in phases:
                for fixed, moving in ((EXHALED, phase), (phase, EXHALED)):
                    scans = [phase_scan(person, name, work) for name in (fixed, moving)]
                    points = {
                        where: (landmarks(person, fixed, where), landmarks(person, moving, where))
                        for where in ("liver", "outside")
                    }
                    yield Pair(f"{person}:{fixed}:{moving}", scans[0], scans[1], points)


def phase_scan(person: str, phase: str, work: Path) -> Path:
    """Return a phase as NIfTI in `work`."""
    import SimpleITK as sitk  # noqa: N813 - as all its users call it

    path = work / f"{person}_{phase}.nii.gz"
    if not path.exists():
        (source,) = (SHARED / "liver_mr_landmarks/ETHLiver" / person).glob(f"{phase}*.force_direction.mha")
        image = sitk.ReadImage(str(source))
        if spacing := WRONG_SPACING.get((person, phase)):
            image.SetSpacing((*image.GetSpacing()[:2], spacing))
        sitk.WriteImage(image, str(path))
    return path


def landmarks(person: str, phase: str, where: str) -> np.ndarray:
    """Return the landmarks (N, 3) of a phase, RAS+ mm; the files are in LPS mm."""
    text = (SHARED / f"liver_mr_landmarks/ETHLiver/{person}/{phase}LM{where}.vtk").read_text()
    found = re.search(r"POINTS (\d+) float\n", text)
    assert found is not None
    values = np.array(text[found.end() :].split()[: 3 * int(found[1])], float)
    return values.reshape(-1, 3) * [-1, -1, 1]


def scores(pair: Pair, transform: Path | None) -> dict[str, float]:
    """Return the scores of a pair under a transform file that medkit reads; None: as the scans lie."""
    from medkit.images.image import read_image
    from medkit.transforms.files import read_transform
    from medkit.transforms.resampling import resample

    found = None if transform is None else read_transform(transform)
    if isinstance(pair.truth, Mapping):
        moved = {k: (a if found is None else found.map_points(a)) - b for k, (a, b) in pair.truth.items()}
        return {where: float(np.linalg.norm(apart, axis=1).mean()) for where, apart in moved.items()}
    fixed, moving = (read_image(path, labels=True) for path in pair.truth)
    return {"dice": mean_dice(fixed.data[0], resample(moving, fixed.grid, found, interpolation="nearest").data[0])}


def medkit(pair: Pair, work: Path, quality: str) -> Outcome:
    """Run `medkit run register` as a user calls it; seconds are those of the case."""
    command = [sys.executable, "-m", "medkit", "run", "register", "--fixed", str(pair.fixed), str(pair.moving)]
    done = subprocess.run(
        [*command, "--quality", quality, "--json", "-q", "-o", str(work)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"medkit failed on {pair.name}: {done.stderr.strip()}")
    record = json.loads(done.stdout)["medkit"]
    return Outcome(scores(pair, Path(record["outputs"]["transform"]["path"])), record["seconds"])


def greedy(pair: Pair, work: Path, metric: str, smoothing: str) -> Outcome:
    """Run greedy: affine by NCC, then its warp; both become one field on the fixed grid."""
    from picsl_greedy import Greedy3D  # type: ignore[import-not-found]

    tool, matrix, warp, whole = Greedy3D(), work / "greedy.mat", work / "warp.nii.gz", work / "whole.nii.gz"
    given = f"-threads {THREADS} -V 0 -i {pair.fixed} {pair.moving} -n 100x50x10"
    clock = Clock()
    tool.execute(f"{given} -a -dof 12 -ia-image-centers -m NCC 4x4x4 -o {matrix}")
    tool.execute(f"{given} -it {matrix} -m {metric} -s {smoothing} -o {warp}")
    seconds = clock.read()[0]
    tool.execute(f"-threads {THREADS} -V 0 -rf {pair.fixed} -rc {whole} -r {warp} {matrix}")
    return Outcome(scores(pair, whole), seconds)


def syn(pair: Pair, work: Path, kind: str) -> Outcome:
    """Run a registration of ANTs through antspyx; the warp and the affine map become one field."""
    import ants  # type: ignore[import-not-found]

    fixed, moving = (ants.image_read(str(path)) for path in (pair.fixed, pair.moving))
    clock = Clock()
    found = ants.registration(fixed, moving, kind, random_seed=1, outprefix=str(work / "ants_"))
    seconds = clock.read()[0]
    whole = ants.apply_transforms(fixed, moving, found["fwdtransforms"], compose=str(work / "whole_"))
    return Outcome(scores(pair, Path(whole)), seconds)


METHODS: dict[str, tuple[str, Callable[[Pair, Path], Outcome]]] = {
    "before": ("medkit", lambda pair, work: Outcome(scores(pair, None), 0.0)),
    "medkit": ("medkit", lambda pair, work: medkit(pair, work, "default")),
    "medkit fast": ("medkit", lambda pair, work: medkit(pair, work, "fast")),
    "medkit best": ("medkit", lambda pair, work: medkit(pair, work, "best")),
    "greedy": ("picsl_greedy", lambda pair, work: greedy(pair, work, "NCC 2x2x2", "1.732vox 0.707vox")),
    "greedy, less smooth": ("picsl_greedy", lambda pair, work: greedy(pair, work, "NCC 2x2x2", "2vox 0.5vox")),
    "ANTs SyNQuick": ("ants", lambda pair, work: syn(pair, work, "antsRegistrationSyNQuick[s]")),
    "ANTs SyN": ("ants", lambda pair, work: syn(pair, work, "antsRegistrationSyN[s]")),
}
"""Name -> the module that it needs, and the method. Greedy once with its authors' options, once with the best found."""
SLOW = ("ANTs SyN", "medkit fast", "medkit best")
"""Only where asked for."""
OURS = "medkit"


def chosen(only: list[str]) -> Iterator[tuple[str, Callable[[Pair, Path], Outcome]]]:
    """Yield the methods that are installed; a line on stderr for each that is not."""
    import importlib.util

    if unknown := set(only) - set(METHODS):
        raise SystemExit(f"expected --only to be among {', '.join(METHODS)}, got {', '.join(sorted(unknown))}")
    for name, (module, method) in METHODS.items():
        if name not in only and (only or name in SLOW):
            continue
        if importlib.util.find_spec(module):
            yield name, method
        else:
            print(f"{name}: {module} is not installed, left out", file=sys.stderr)


def summary(results: Mapping[str, Mapping[str, Outcome]]) -> str:
    """Return the table: median score over pairs, share of pairs that medkit wins, median seconds."""
    first = next(iter(results.values()))
    keys = list(next(iter(first.values())).scores)
    lines = ["| method | " + " | ".join(f"{k}, median | {k}: medkit wins" for k in keys) + " | seconds |"]
    lines.append("|---" * (2 + 2 * len(keys)) + "|")
    for name, outcomes in results.items():
        cells = []
        for key in keys:
            values = {pair: outcome.scores[key] for pair, outcome in outcomes.items()}
            cells.append(f"{statistics.median(values.values()):.3f}")
            sign = 1 if key == "dice" else -1
            wins = (
                [sign * (results[OURS][pair].scores[key] - v) > 0 for pair, v in values.items()] if name != OURS else []
            )
            cells.append(f"{100 * statistics.fmean(wins):.0f} %" if wins and OURS in results else "-")
        seconds = statistics.median(outcome.seconds for outcome in outcomes.values())
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {seconds:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Run all methods on each pair in turn, print a line for each, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", choices=["adults", "infants", "liver"])
    parser.add_argument("--side", choices=[*SIDES, "all"])
    parser.add_argument("--limit", type=int, help="Only so many pairs, evenly spread.")
    parser.add_argument("--only", action="append", default=[], metavar="METHOD")
    parser.add_argument("--peers", type=Path, help="A folder with the packages of peers.")
    options = parser.parse_args()
    if options.peers:
        sys.path.append(str(options.peers))
    if not SHARED.is_dir():
        raise SystemExit(f"real scans are not at {SHARED}")
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", THREADS)
    side = options.side or ("all" if options.people == "liver" else "reporting")
    results: dict[str, dict[str, Outcome]] = {name: {} for name, _ in chosen(options.only)}
    with tempfile.TemporaryDirectory() as folder:
        pairs = list({"adults": adults, "infants": infants, "liver": liver}[options.people](side, Path(folder)))
        for pair in pairs[:: max(1, len(pairs) // options.limit)][: options.limit] if options.limit else pairs:
            for name, method in chosen(options.only):
                with tempfile.TemporaryDirectory() as work:
                    results[name][pair.name] = outcome = method(pair, Path(work))
                values = ", ".join(f"{key} {value:.3f}" for key, value in outcome.scores.items())
                print(f"{pair.name}  {name}: {values}, {outcome.seconds:.1f} s", flush=True)
    print(f"{len(next(iter(results.values())))} pairs, {side}\n{summary(results)}")


if __name__ == "__main__":
    main()
