"""Registration of different contrasts with a known truth: TRE inside the head, folding, seconds.

    python tests/benchmarks/registration_ct_mr.py [--pair FIXED-MOVING]... [--method NAME]... [--data FOLDER]
                                                  [SUBJECT ...]

Scans are drawn from real heads' label maps: a CT (Hounsfield units per label, blur, noise), a T1- and a T2-like MR
(intensity per label, blur, bias field, Rician noise). The moving scan shows the fixed one's head turned by ten
degrees, shifted by 15 mm and bent by up to 9 mm, smoothly, on a grid of its own. `medkit run register` is started as
a process; points on a 4 mm lattice go through the transform that it writes. TRE is their distance in mm from the
true place: `head` counts all points with a label (skin, muscle, bone and all), `skull` those within the skull.
Folded is the share of labelled voxels where the Jacobian determinant of the written field is 0 or less. Seconds are
those of the whole process, all files written; CPU counts the seconds of all cores, which a busy machine changes less.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "brain_labelmaps"
SUBJECTS = ("18", "19", "20")
PAIRS = ("t1-ct", "t1-t2")
TURN, SHIFT, BEND = 10.0, 15.0, 9.0
"""Degrees, mm, and mm at most."""
WAVELENGTHS = (60.0, 140.0)
"""mm, of the waves that bend."""
PAD = 16
"""Voxels around the label map on the moving scan's grid."""
STEP = 4
"""mm between points."""
OUTSIDE = (502, 506, 507, 508, 509, 511, 512, 514, 515, 516, 530)
"""Labels of what is not within the skull; eyes, muscle, skin, bone, vessels and so on."""

TISSUES = {
    # CT, T1, T2 of the labels (left and right alike)
    (0,): (-1000, 2, 2),
    (2, 41): (28, 160, 80),  # white matter
    (3, 42): (37, 96, 120),  # cortex
    (7, 46): (29, 136, 85),  # cerebellum, white
    (8, 47): (38, 88, 115),
    (4, 5, 14, 15, 24, 43, 44, 72): (8, 44, 250),  # fluid
    (136, 137, 163, 164): (14, 60, 220),
    (10, 49): (34, 130, 95),  # thalamus
    (11, 26, 50, 58): (37, 100, 110),  # caudate, accumbens
    (12, 51): (37, 124, 100),  # putamen
    (13, 52): (35, 150, 75),  # pallidum
    (16, 28, 60, 512): (31, 135, 88),  # brain stem, ventral diencephalon, cord
    (17, 18, 53, 54): (36, 96, 120),  # hippocampus, amygdala
    (25, 57): (22, 110, 150),  # lesions
    (30, 62, 502, 514): (52, 70, 45),  # vessels
    (85, 530): (34, 140, 90),  # optic chiasm and nerves
    (506,): (8, 20, 240),  # eyes
    (507, 508): (45, 85, 60),  # muscle
    (509,): (30, 70, 150),  # mucosa
    (511,): (-30, 150, 110),  # skin and the fat under it
    (515,): (1000, 15, 10),  # compact bone
    (516,): (350, 95, 70),  # spongy bone
}
CONTRASTS = ("ct", "t1", "t2")


@dataclass(frozen=True)
class Truth:
    """Moving points to fixed points: turned, shifted and bent."""

    middle: np.ndarray
    """(3,) RAS+ mm, about which it turns."""
    turn: np.ndarray
    """(3, 3) rotation."""
    shift: np.ndarray
    """(3,) mm."""
    waves: np.ndarray
    """(W, 3) radians per mm."""
    phases: np.ndarray
    """(W,) radians."""
    heights: np.ndarray
    """(W, 3) mm."""

    @classmethod
    def draw(cls, middle: np.ndarray, seed: int) -> Truth:
        """A random one; the same for the same seed."""
        draw = np.random.default_rng(seed)
        axis, way, waves = draw.normal(size=3), draw.normal(size=3), draw.normal(size=(12, 3))
        rates = 2 * np.pi / draw.uniform(*WAVELENGTHS, (12, 1))
        truth = cls(
            middle,
            rotation(axis / np.linalg.norm(axis), np.deg2rad(TURN)),
            way * (SHIFT / np.linalg.norm(way)),
            waves * (rates / np.linalg.norm(waves, axis=1, keepdims=True)),
            draw.uniform(0, 2 * np.pi, 12),
            draw.normal(size=(12, 3)),
        )
        around = middle + draw.uniform(-90, 90, (4000, 3))
        truth.heights[:] *= BEND / np.linalg.norm(truth.bend(around), axis=1).max()
        return truth

    def bend(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) mm by which points (N, 3) are bent away."""
        along = ((points - self.middle) @ self.waves.T + self.phases).astype(np.float32)
        return np.sin(along) @ self.heights.astype(np.float32)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Moving points (N, 3) RAS+ mm to fixed points."""
        return (points - self.middle) @ self.turn.T + self.middle + self.shift + self.bend(points)


def rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    """(3, 3) about a unit axis (3,), by radians (Rodrigues)."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


@dataclass(frozen=True)
class Head:
    """A head twice: as it is, and moved."""

    fixed: np.ndarray
    """(I, J, K) labels."""
    fixed_affine: np.ndarray
    """(4, 4) RAS+ mm."""
    moving: np.ndarray
    """(I, J, K) labels."""
    moving_affine: np.ndarray
    """(4, 4) RAS+ mm."""
    fixed_points: np.ndarray
    """(N, 3) RAS+ mm, inside the head."""
    moving_points: np.ndarray
    """(N, 3) the same in the moving scan."""
    inside: np.ndarray
    """(N,) which of them are within the skull."""


def make_head(path: Path, seed: int) -> Head:
    """Labels of both scans, and points."""
    import nibabel

    image = nibabel.load(path)
    labels, affine = np.asarray(image.dataobj).astype(np.int16), np.asarray(image.affine)
    truth = Truth.draw(placed(affine, (np.array(labels.shape) - 1) / 2), seed)
    shape = tuple(n + 2 * PAD for n in labels.shape)
    moving_affine = affine.copy()
    moving_affine[:3, 3] = placed(affine, np.full(3, -PAD))
    moving = np.empty(shape, np.int16)
    here, there, kept = [], [], []
    for k in range(shape[2]):
        grid = np.stack(np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), [k], indexing="ij"), -1).reshape(-1, 3)
        there.append(placed(moving_affine, grid))
        here.append(truth(there[-1]))
        index = np.rint(placed(np.linalg.inv(affine), here[-1])).astype(int)
        low, high = (index >= 0).all(1), (index < labels.shape).all(1)
        i, j, z = np.clip(index, 0, np.array(labels.shape) - 1).T  # the neck goes on below the map
        values = labels[i, j, z]
        moving[:, :, k] = values.reshape(shape[:2])
        chosen = low & high & (values > 0) & (grid % STEP == 0).all(1)
        here[-1], there[-1] = here[-1][chosen], there[-1][chosen]
        kept.append(values[chosen])
    inside = ~np.isin(np.concatenate(kept), OUTSIDE)
    return Head(labels, affine, moving, moving_affine, np.concatenate(here), np.concatenate(there), inside)


def placed(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(..., 3) points (..., 3) through an affine (4, 4)."""
    return points @ affine[:3, :3].T + affine[:3, 3]


def painted(labels: np.ndarray, contrast: str, seed: int) -> np.ndarray:
    """(I, J, K) float32 image of labels (I, J, K)."""
    draw = np.random.default_rng([seed, CONTRASTS.index(contrast)])
    table = np.zeros(int(labels.max()) + 1, np.float32)
    for numbers, values in TISSUES.items():
        for number in numbers:
            if number < len(table):
                table[number] = values[CONTRASTS.index(contrast)]
    image = ndimage.gaussian_filter(table[labels], 0.6)
    if contrast == "ct":
        return image + draw.normal(0, 7, labels.shape).astype(np.float32)
    coarse = draw.normal(size=[-(-n // 50) + 3 for n in labels.shape])
    zoom = [n / c for n, c in zip(labels.shape, coarse.shape, strict=True)]
    image *= np.exp(0.15 * ndimage.zoom(coarse, zoom, order=3)).astype(np.float32)
    noise = draw.normal(0, 4, (2, *labels.shape)).astype(np.float32)
    return np.hypot(image + noise[0], noise[1])


METHODS = {
    "before": None,
    "affine": ("--type", "affine"),
    "mi": ("--metric", "mi"),
    "mind": ("--metric", "mind"),
    "mind, fast": ("--metric", "mind", "--quality", "fast"),
}
"""Name -> options; None: nothing is run."""
DEFAULTS = ("before", "affine", "mi", "mind")


@dataclass(frozen=True)
class Row:
    """One method on one pair of scans."""

    errors: np.ndarray
    """(N,) mm."""
    folded: float | None = None
    """Share of labelled voxels; None for affine maps."""
    wall: float = 0.0
    """Seconds."""
    cpu: float = 0.0
    """Seconds of all cores."""


def run(head: Head, fixed: Path, moving: Path, options: tuple[str, ...], work: Path) -> Row:
    """`medkit run register` as a user calls it."""
    from medkit.transforms.files import read_transform
    from medkit.transforms.transform import DisplacementField

    command = [sys.executable, "-m", "medkit", "run", "register", *options, "--fixed", str(fixed), str(moving)]
    began, before = time.perf_counter(), os.times()
    done = subprocess.run([*command, "--json", "-o", str(work)], capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - began, os.times()
    if done.returncode:
        raise SystemExit(f"medkit failed: {done.stderr.strip()}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    record = json.loads(done.stdout.strip().splitlines()[-1])["medkit"]
    transform = read_transform(Path(record["outputs"]["transform"]["path"]))
    errors = np.linalg.norm(transform.map_points(head.fixed_points) - head.moving_points, axis=1)
    folded = folded_share(transform, head.fixed) if isinstance(transform, DisplacementField) else None
    return Row(errors, folded, wall, cpu)


def folded_share(field: Any, labels: np.ndarray) -> float:
    """Share of the labelled voxels (I, J, K) where a displacement field folds."""
    back = np.linalg.inv(field.grid.affine[:3, :3]).T.astype(np.float32)
    slopes = np.stack(np.gradient(field.field @ back, axis=(0, 1, 2)), axis=-1)
    return float((np.linalg.det(slopes[labels > 0] + np.eye(3)) <= 0).mean())


def line(subject: str, pair: str, name: str, row: Row, inside: np.ndarray) -> str:
    """A row of the table."""
    cells = [subject, pair, name]
    for errors in (row.errors, row.errors[inside]):
        cells += [f"{errors.mean():.2f}", f"{np.median(errors):.2f}", f"{np.percentile(errors, 95):.2f}"]
    cells += ["-" if row.folded is None else f"{100 * row.folded:.4f}", f"{row.wall:.1f}", f"{row.cpu:.1f}"]
    return "| " + " | ".join(cells) + " |"


def write(path: Path, image: np.ndarray, affine: np.ndarray) -> Path:
    """An image (I, J, K) as a file of whole numbers."""
    import nibabel

    nibabel.save(nibabel.Nifti1Image(np.rint(image).astype(np.int16), affine), path)
    return path


def main() -> None:
    """Run and print the table, row by row."""
    parser = argparse.ArgumentParser(description="Registration of unlike contrasts with a known truth.")
    choices = [f"{a}-{b}" for a, b in itertools.product(CONTRASTS, repeat=2)]
    parser.add_argument("--pair", action="append", choices=choices, metavar="FIXED-MOVING", help="Contrasts.")
    parser.add_argument("--method", action="append", choices=list(METHODS))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("subjects", nargs="*", default=SUBJECTS, metavar="SUBJECT")
    options = parser.parse_args()
    if not options.data.is_dir():
        raise SystemExit(f"label maps are not at {options.data}; give --data FOLDER")
    head = [
        "subject",
        "fixed-moving",
        "method",
        "head: mean TRE",
        "median",
        "95 %",
        "skull: mean TRE",
        "median",
        "95 %",
    ]
    head += ["folded %", "wall s", "CPU s"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    for subject in options.subjects:
        drawn = make_head(options.data / f"labelmap_{subject}.nii.gz", int(subject))
        for pair in options.pair or PAIRS:
            a, b = pair.split("-")
            with tempfile.TemporaryDirectory() as work:
                folder = Path(work)
                fixed = write(folder / "fixed.nii.gz", painted(drawn.fixed, a, int(subject)), drawn.fixed_affine)
                image = painted(drawn.moving, b, int(subject) + 100)
                moving = write(folder / "moving.nii.gz", image, drawn.moving_affine)
                for name in options.method or DEFAULTS:
                    row = Row(np.linalg.norm(drawn.fixed_points - drawn.moving_points, axis=1))
                    if METHODS[name] is not None:
                        row = run(drawn, fixed, moving, METHODS[name], folder / name)
                    print(line(subject, pair, name, row, drawn.inside), flush=True)


if __name__ == "__main__":
    main()
