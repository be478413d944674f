"""Affine registration from random starts on real scans: the share that ends at the right result.

    python tests/benchmarks/affine_starts.py [--starts 100] [--type affine|rigid] [--seed 0] [--first N] [--data FOLDER]

Every try takes the next pair of real T1 scans (brains, whole heads, and one with the other), rotates the moving one by
up to 45 degrees about any axis, shifts it by up to 100 mm, stores it in any of the 48 orders and directions of axes,
and, in two of three, cuts a third off the moving or the fixed scan at one side. The right result is the same
registration without rotation and shift, started where that of the whole scans ends, and then composed with both. A try
is right within 2 mm (mean over the fixed object, what was cut off included) and 2 degrees. `corner` is the largest
distance at the corners of the fixed object's box. Seconds are those of one thread: the moving scan's pyramid and the
registration; the fixed scan's pyramid is kept if it is whole, as in a run of many moving scans.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
BRAINS = {name: f"brain_t1_manual/oasis_{name}_t1.nii.gz" for name in ("1000", "1001", "1002", "1014", "1015", "1017")}
HEADS = {name: f"brain_heads/{name}.nii.gz" for name in ("brainchop_t1", "eun_t1", "chris_t1")}
SCANS = BRAINS | HEADS
PAIRS = (
    ("1000", "1001"),
    ("brainchop_t1", "eun_t1"),
    ("1000", "eun_t1"),
    ("brainchop_t1", "1001"),
    ("1002", "1014"),
    ("chris_t1", "brainchop_t1"),
    ("1015", "brainchop_t1"),
    ("eun_t1", "1017"),
)
CUTS = ("whole", "moving cut", "fixed cut")
ANGLE, SHIFT = 45.0, 100.0
NEAR_MM, NEAR_DEGREES = 2.0, 2.0

Kind = Literal["rigid", "affine"]


@dataclass(frozen=True, eq=False)
class Try:
    """One start."""

    number: int
    fixed: str
    moving: str
    cut: str
    """One of CUTS."""
    axis: int
    """Along which a third is cut off, closest-RAS."""
    upper: bool
    """At its upper end."""
    motion: np.ndarray
    """(4, 4) RAS+ mm, by which the moving scan is displaced."""
    order: tuple[int, ...]
    """The moving scan's axes as they are stored."""
    flips: tuple[bool, ...]
    """Which of these run the other way."""


@dataclass(frozen=True)
class Row:
    """How a try ended."""

    mean: float
    """mm, over the fixed object."""
    corner: float
    """mm, the largest at the corners of its box."""
    degrees: float
    seconds: float
    apart: float
    """mm between the registrations of the cut and of the whole scans, mean over the fixed object."""

    @property
    def right(self) -> bool:
        """Within the limits."""
        return self.mean <= NEAR_MM and self.degrees <= NEAR_DEGREES


def tries(count: int, seed: int) -> Iterator[Try]:
    """The starts, the same for every run of one seed."""
    for number in range(count):
        draw = np.random.default_rng([seed, number])
        fixed, moving = PAIRS[number % len(PAIRS)]
        axis, shift = draw.normal(size=3), draw.normal(size=3)
        motion = np.eye(4)
        motion[:3, :3] = turn(axis / np.linalg.norm(axis), draw.uniform(0, ANGLE))
        motion[:3, 3] = draw.uniform(0, SHIFT) * shift / np.linalg.norm(shift)
        order = tuple(int(a) for a in draw.permutation(3))
        flips = tuple(bool(f) for f in draw.integers(0, 2, 3))
        cut = CUTS[number // len(PAIRS) % len(CUTS)]
        yield Try(number, fixed, moving, cut, int(draw.integers(3)), bool(draw.integers(2)), motion, order, flips)


def turn(axis: np.ndarray, degrees: float) -> np.ndarray:
    """(3, 3) rotation about a unit vector (3,)."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_rotvec(np.deg2rad(degrees) * axis).as_matrix()


@dataclass(frozen=True)
class Scans:
    """Scans by name, and what is known of their pairs."""

    data: Path
    kind: Kind

    @functools.cache  # noqa: B019 - one instance, which lives as long as the program
    def volume(self, name: str) -> Any:
        """The scan in closest-RAS order."""
        import torch
        from medkit_register.pyramid import ScanVolume, canonical

        from medkit.images.image import read_image

        image = read_image(self.data / SCANS[name])
        data, affine, _ = canonical(ScanVolume(torch.from_numpy(image.data[0].astype(np.float32)), image.grid.affine))
        return ScanVolume(data, affine)

    @functools.cache  # noqa: B019
    def pyramid(self, name: str) -> Any:
        """Of the whole scan."""
        from medkit_register.pyramid import Pyramid

        return Pyramid(self.volume(name))

    @functools.cache  # noqa: B019
    def reference(self, fixed: str, moving: str) -> np.ndarray:
        """(4, 4) RAS+ mm, of the whole scans as they are."""
        return self.register(self.pyramid(fixed), self.pyramid(moving), "auto")

    @functools.cache  # noqa: B019
    def object_points(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3) points of the object and (8, 3) corners of its box, RAS+ mm."""
        pyramid = self.pyramid(name)
        level = pyramid.level(8.0)
        index = (level.image > pyramid.threshold).nonzero().numpy()
        corners = np.array(list(itertools.product(*zip(index.min(0), index.max(0), strict=True))))
        return moved(level.affine, index), moved(level.affine, corners)

    def register(self, fixed: Any, moving: Any, init: Any) -> np.ndarray:
        """(4, 4) RAS+ mm, fixed points to moving points."""
        from medkit_register.affine import AffineSettings, register_affine

        return register_affine(fixed, moving, AffineSettings(self.kind, init=init)).matrix

    def run(self, start: Try) -> Row:
        """One try."""
        from medkit_register.pyramid import Pyramid, ScanVolume

        whole = self.reference(start.fixed, start.moving)
        fixed, moving = self.pyramid(start.fixed), self.volume(start.moving)
        if start.cut == "fixed cut":
            fixed = Pyramid(cut(self.volume(start.fixed), start.axis, upper=start.upper))
        if start.cut == "moving cut":
            moving = cut(moving, start.axis, upper=start.upper)
        reference = whole
        if start.cut != "whole":
            reference = self.register(fixed, Pyramid(moving), whole)
        data = moving.data.permute(*start.order)
        affine = moving.affine @ np.eye(4)[:, [*start.order, 3]]
        flipped = [axis for axis, flip in enumerate(start.flips) if flip]
        for axis in flipped:
            affine[:3, 3] += affine[:3, axis] * (data.shape[axis] - 1)
            affine[:3, axis] *= -1
        displaced = ScanVolume(data.flip(flipped).contiguous(), start.motion @ affine)
        clock = time.perf_counter()
        found = self.register(fixed, displaced, "auto")
        seconds = time.perf_counter() - clock
        points, corners = self.object_points(start.fixed)
        wanted = start.motion @ reference
        off = found @ np.linalg.inv(wanted)
        return Row(
            float(distances(found, wanted, points).mean()),
            float(distances(found, wanted, corners).max()),
            angle(off[:3, :3]),
            seconds,
            float(distances(reference, whole, points).mean()),
        )


def cut(volume: Any, axis: int, *, upper: bool) -> Any:
    """A scan (closest-RAS) without a third of the extent of its object at one end of an axis."""
    from medkit_register.pyramid import Pyramid, ScanVolume

    pyramid = Pyramid(volume)
    level = pyramid.level(8.0)
    index = (level.image > pyramid.threshold).nonzero().numpy()
    ends = [moved(np.linalg.inv(volume.affine) @ level.affine, x[None])[0][axis] for x in (index.min(0), index.max(0))]
    third = (ends[1] - ends[0]) / 3
    size = volume.data.shape[axis]
    low, high = (0, int(ends[1] - third)) if upper else (int(ends[0] + third), size)
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, axis] * low
    return ScanVolume(volume.data.narrow(axis, low, high - low).contiguous(), affine)


def moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(N, 3) points (N, 3) after a (4, 4) map."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def distances(a: np.ndarray, b: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(N,) mm between where two (4, 4) maps bring points (N, 3)."""
    return np.linalg.norm(moved(a, points) - moved(b, points), axis=1)


def angle(linear: np.ndarray) -> float:
    """Degrees of the rotation nearest to a (3, 3) map."""
    u, _, vt = np.linalg.svd(linear)
    return float(np.rad2deg(np.arccos(np.clip((np.trace(u @ vt) - 1) / 2, -1, 1))))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description="Affine registration from random starts on real scans.")
    parser.add_argument("--starts", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="Leave out those before this one.")
    parser.add_argument("--type", choices=["affine", "rigid"], default="affine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    if not options.data.is_dir():
        raise SystemExit(f"real scans are not at {options.data}; give --data FOLDER")
    scans, rows, wrong = Scans(options.data, options.type), [], Counter[str]()
    for start in list(tries(options.starts, options.seed))[options.first :]:
        row = scans.run(start)
        rows.append(row)
        if not row.right:
            wrong[f"{start.fixed}:{start.moving}, {start.cut}"] += 1
            side = f"{'RAS'[start.axis]}{'+' if start.upper else '-'}" if start.cut != "whole" else ""
            print(
                f"{start.number:3d} {start.fixed}:{start.moving} {start.cut} {side}: {row.mean:.1f} mm, "
                f"corner {row.corner:.1f} mm, {row.degrees:.1f} degrees (cut and whole {row.apart:.1f} mm apart)",
                flush=True,
            )
    right = [row for row in rows if row.right]
    print(f"{len(right)} of {len(rows)} right; wrong: {dict(wrong)}")
    for what in ("mean", "corner", "degrees", "seconds", "apart"):
        values = [getattr(row, what) for row in (rows if what == "seconds" else right)]
        print(f"{what}: median {statistics.median(values):.3f}, largest {max(values):.3f}")


if __name__ == "__main__":
    main()
