"""Super-resolution of real scans, compared with cubic B-splines; scans are coarsened, so that the truth is known.

    python tests/benchmarks/super_resolution.py [SCAN ...] [--data FOLDER] [--size N] [--noise 2] [--segment] [--views]

A scan is smoothed by a Gaussian whose full width at half maximum is the coarse voxel along each axis, sampled, and gets
Rician noise (in percent of its 99.9th percentile, which is also the peak of PSNR); PSNR and SSIM are those inside the
head. scipy does this (`gaussian_filter1d`, `map_coordinates` of order 3), not medkit.

The other method is cubic B-splines, `scipy.ndimage.map_coordinates(order=3)`. medkit knows only the spacing. Seconds
are those of a case without start and loading; those of medkit are from its record, reading and writing included.

`--segment`: mean Dice of `medkit run segment` on a result with its answer on the scan itself, for scans of whole heads
or brains. `--views`: three orthogonal scans of 4 mm fused, and a scan of 4 mm guided by another contrast, made from the
grey values of the scan itself. `--planes`: eight slices of each CT, and X-rays, coarsened by 2 and 4, and a slice that
moves from frame to frame.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
import torch
from scipy import ndimage

from medkit.bundles.bundle import WEIGHTS
from medkit.evaluation.measures.metrics import dice, psnr, ssim
from medkit.images.image import read_image

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
SCANS = (
    "brain_heads/brainchop_t1.nii.gz",
    "brain_heads/eun_t1.nii.gz",
    "brain_t1_manual/oasis_1000_t1.nii.gz",
    "brain_t1_manual/oasis_1002_t1.nii.gz",
    "brain_t1_manual/oasis_1017_t1.nii.gz",
)
PLANES = ("lung_ct/elastix_lung_result.mha", "lung_ct/cip_ct-64.nrrd")
WAYS = {"x2 isotropic": (2, 2, 2), "4 mm slices": (1, 1, 4)}
WIDTH = 2.3548
"""Full width at half maximum of a Gaussian over its standard deviation."""


@dataclass(frozen=True)
class Scan:
    """A real scan in RAS+, its brightness 1 at the 99.9th percentile, its sizes multiples of 12."""

    name: str
    image: np.ndarray
    """(I, J, K) float32."""
    head: np.ndarray
    """(I, J, K) bool: what is not background, holes filled."""


@dataclass(frozen=True)
class Row:
    """One method on one scan."""

    psnr: float
    ssim: float
    seconds: float
    dice: float | None = None


def load(path: Path, size: int | None) -> Scan:
    """Reads a scan and finds its head."""
    image = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata(dtype=np.float32).squeeze()
    image = np.maximum(image, 0) / np.percentile(image, 99.9)
    sizes = [min(n, size or n) // 12 * 12 for n in image.shape]
    image = image[tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(image.shape, sizes, strict=True))]
    head = ndimage.binary_fill_holes(ndimage.binary_closing(image > 0.08, iterations=3))
    return Scan(path.name.split(".")[0], image, head)


def coarse(image: np.ndarray, steps: tuple[int, ...], noise: float, seed: int = 0) -> np.ndarray:
    """A scan of an image with thicker voxels; their middles lie between fine ones where the step is even."""
    for axis, step in enumerate(steps):
        if step > 1:
            smooth = ndimage.gaussian_filter1d(image, step / WIDTH, axis=axis, mode="nearest", truncate=6)
            where = (np.arange(image.shape[axis] // step) + 0.5) * step - 0.5
            image = along(smooth, axis, where, order=1) if step % 2 else _halfway(smooth, axis, where)
    rng = np.random.default_rng(seed)
    return np.hypot(image + rng.normal(0, noise, image.shape), rng.normal(0, noise, image.shape)).astype(np.float32)


def _halfway(smooth: np.ndarray, axis: int, where: np.ndarray) -> np.ndarray:
    return along(smooth, axis, where, order=3)


def along(image: np.ndarray, axis: int, where: np.ndarray, order: int) -> np.ndarray:
    """The image at other places along one axis."""
    eye = np.eye(image.shape[axis])
    operator = np.stack([ndimage.map_coordinates(row, [where], order=order, mode="reflect") for row in eye], 1)
    return np.moveaxis(np.tensordot(operator, image, (1, axis)), 0, axis).astype(np.float32)


def by_scipy(scan: np.ndarray, steps: tuple[int, ...]) -> np.ndarray:
    """The cubic B-spline, axis by axis, on voxels whose edges are those of the coarse ones."""
    for axis, step in enumerate(steps):
        if step > 1:
            where = (np.arange(scan.shape[axis] * step) + 0.5) / step - 0.5
            scan = along(scan, axis, where, order=3)
    return scan


def run(task: str, *arguments: object) -> list[dict]:
    """`medkit run`: its records."""
    command = [sys.executable, "-m", "medkit", "run", task, "--json", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"medkit failed: {done.stderr.strip()}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def saved(path: Path, image: np.ndarray, steps: tuple[int, ...] = (1, 1, 1)) -> Path:
    """As NIfTI, the edge of the first voxel at the origin."""
    affine = np.diag([*map(float, steps), 1.0])
    affine[:3, 3] = (np.array(steps) - 1) / 2
    nibabel.save(nibabel.Nifti1Image(1000 * image, affine), path)
    return path


def likeness(found: np.ndarray, scan: Scan, seconds: float = 0.0) -> Row:
    """PSNR in dB and SSIM inside the head, peak 1."""
    a, b, head = (torch.from_numpy(np.ascontiguousarray(x)) for x in (found.astype(np.float32), scan.image, scan.head))
    return Row(psnr(a, b, head, data_range=1.0), ssim(a, b, head, data_range=1.0), seconds)


def refined(scans: list[Scan], steps: tuple[int, ...], noise: float, *, segment: bool) -> dict[str, list[Row]]:
    """Run all methods on all scans, coarsened in one way."""
    images = [coarse(scan.image, steps, noise) for scan in scans]
    out: dict[str, list[Row]] = {}
    results: dict[str, list[np.ndarray]] = {}
    start = time.perf_counter()
    results["cubic B-spline (scipy)"] = [by_scipy(image, steps) for image in images]
    seconds = (time.perf_counter() - start) / len(images)
    out["cubic B-spline (scipy)"] = [
        likeness(r, s, seconds) for r, s in zip(results["cubic B-spline (scipy)"], scans, strict=True)
    ]
    with tempfile.TemporaryDirectory() as work:
        paths = [saved(Path(work) / f"{n}.nii.gz", image, steps) for n, image in enumerate(images)]
        for method in methods(len(steps)):
            style = ["--style", "sharp"] if method == "sharp" else []
            given = "network" if method == "sharp" else method
            found = run("sr", *paths, "--spacing", 1, "--method", given, *style, "-o", Path(work) / method)
            made = [read_image(Path(record["path"])).data[0] / 1000 for record in found]
            results[f"medkit {method}"] = made
            out[f"medkit {method}"] = [
                likeness(image, scan, record["medkit"]["seconds"])
                for image, scan, record in zip(made, scans, found, strict=True)
            ]
        if segment:
            wanted = labels([scan.image for scan in scans], Path(work) / "truth")
            for name, made in results.items():
                answers = labels(made, Path(work) / name.replace(" ", "_"))
                agreement = [agree(*pair) for pair in zip(answers, wanted, strict=True)]
                out[name] = [replace(row, dice=value) for row, value in zip(out[name], agreement, strict=True)]
    return out


def methods(dims: int) -> list[str]:
    """Those of medkit whose weights are there."""
    models = BUNDLES / ("mri_super_resolution" if dims == 3 else "ct_xray_super_resolution") / "models"
    own = ["network"] if (models / Path(WEIGHTS).name).is_file() else []
    return ["backprojection", *own, *(["sharp"] if (models / "sharp.pt").is_file() else [])]


def labels(images: list[np.ndarray], folder: Path) -> list[np.ndarray]:
    """Return the labels of `medkit run segment`."""
    folder.mkdir()
    paths = [saved(folder / f"{n}.nii.gz", image) for n, image in enumerate(images)]
    return [read_image(Path(r["path"]), labels=True).data[0] for r in run("segment", *paths, "-o", folder / "out")]


def agree(found: np.ndarray, wanted: np.ndarray) -> float:
    """Mean Dice over the structures of the scan itself."""
    values = dice(torch.from_numpy(found.astype(np.int64)), torch.from_numpy(wanted.astype(np.int64)))
    return statistics.fmean(values.get(int(n), 0.0) for n in np.unique(wanted) if n)


# ---- several scans


def views(scans: list[Scan], noise: float) -> dict[str, list[Row]]:
    """Run one scan of 4 mm by itself, three fused, and one with a guide."""
    out: dict[str, list[Row]] = {name: [] for name in ("one scan of 4 mm", "three fused", "one and a guide")}
    for scan in scans:
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work)
            paths = []
            for axis in (2, 1, 0):
                steps = tuple(4 if a == axis else 1 for a in range(3))
                paths.append(saved(folder / f"{axis}.nii.gz", coarse(scan.image, steps, noise, seed=axis), steps))
            other = coarse(another_contrast(scan.image), (1, 1, 1), noise, seed=7)
            guide = saved(folder / "guide.nii.gz", other)
            given = {
                "one scan of 4 mm": [paths[0], "--spacing", 1],
                "three fused": [*paths, "--fuse"],
                "one and a guide": [paths[0], "--spacing", 1, "--guide", guide],
            }
            for number, (name, arguments) in enumerate(given.items()):
                (record,) = run("sr", *arguments, "-o", folder / str(number))
                made = read_image(Path(record["path"])).data[0] / 1000
                out[name].append(likeness(made, scan, record["medkit"]["seconds"]))
    return out


def another_contrast(image: np.ndarray) -> np.ndarray:
    """The same anatomy as T2 weighting shows it, roughly: what was bright is dark, background apart."""
    return np.where(image > 0.08, np.clip(1.15 - image, 0, None) ** 1.5, 0).astype(np.float32)


# ---- planes


def planes(data: Path, noise: float) -> dict[str, dict[str, list[Row]]]:
    """Run CT slices and X-rays, coarsened 2 and 4 times, and slices with the adjacent ones as a sequence."""
    stacks = {}
    for name in PLANES:
        volume = read_image(data / name).data[0].astype(np.float32)
        middle = slice(volume.shape[2] // 2 - 4, volume.shape[2] // 2 + 4)
        volume = (volume[: volume.shape[0] // 4 * 4, : volume.shape[1] // 4 * 4, middle] + 1024).clip(0)
        stacks[Path(name).stem] = volume / np.percentile(volume, 99.9)
    xray = np.load(data / "chest_xray" / "pneumonia_a_pneumoniamnist.npz")["test_images"].transpose(2, 1, 0)
    stacks["X-ray 28 x 28"] = xray[..., ::13].astype(np.float32) / 255
    out: dict[str, dict[str, list[Row]]] = {}
    for step in (2, 4):
        rows: dict[str, list[Row]] = {}
        for name, stack in stacks.items():
            scan = Scan(name, stack, np.ones(stack.shape, bool))
            steps = (step, step, 1)
            seen = coarse(stack, steps, noise)
            rows.setdefault("cubic B-spline (scipy)", []).append(likeness(by_scipy(seen, steps), scan))
            with tempfile.TemporaryDirectory() as work:
                path = saved(Path(work) / "a.nii.gz", seen, steps)
                singles = [
                    saved(Path(work) / f"p{n}.nii.gz", seen[..., n : n + 1], steps) for n in range(seen.shape[2])
                ]
                for method in methods(2):
                    records = run("sr", *singles, "--scale", step, "--method", method, "-o", Path(work) / method)
                    made = np.concatenate([read_image(Path(r["path"])).data[0] for r in records], 2) / 1000
                    rows.setdefault(f"medkit {method}", []).append(
                        likeness(made, scan, statistics.fmean(r["medkit"]["seconds"] for r in records))
                    )
                if not name.startswith("X-ray"):
                    (record,) = run("sr", path, "--scale", step, "--sequence", "-o", Path(work) / "sequence")
                    made = read_image(Path(record["path"])).data[0] / 1000
                    rows.setdefault("medkit --sequence", []).append(likeness(made, scan, record["medkit"]["seconds"]))
        out[f"planes x{step}"] = rows
    return out


def moving(data: Path, noise: float, step: int = 2) -> dict[str, list[Row]]:
    """A plane that moves from frame to frame: each frame alone, and as a sequence."""
    volume = read_image(data / PLANES[0]).data[0].astype(np.float32)
    plane = (volume[..., volume.shape[2] // 2] + 1024).clip(0)
    plane = plane[: plane.shape[0] // 4 * 4, : plane.shape[1] // 4 * 4] / np.percentile(plane, 99.9)
    rng = np.random.default_rng(0)
    frames = [ndimage.shift(plane, rng.normal(0, 1.2, 2), order=3, mode="nearest") for _ in range(8)]
    stack = np.stack(frames, -1).astype(np.float32)
    scan, steps = Scan("moving CT slice", stack, np.ones(stack.shape, bool)), (step, step, 1)
    seen = coarse(stack, steps, noise)
    out = {"cubic B-spline (scipy)": [likeness(by_scipy(seen, steps), scan)]}
    with tempfile.TemporaryDirectory() as work:
        singles = [saved(Path(work) / f"p{n}.nii.gz", seen[..., n : n + 1], steps) for n in range(seen.shape[2])]
        records = run("sr", *singles, "--scale", step, "-o", Path(work) / "alone")
        made = np.concatenate([read_image(Path(r["path"])).data[0] for r in records], 2) / 1000
        out["medkit, each frame alone"] = [
            likeness(made, scan, statistics.fmean(r["medkit"]["seconds"] for r in records))
        ]
        path = saved(Path(work) / "a.nii.gz", seen, steps)
        (record,) = run("sr", path, "--scale", step, "--sequence", "-o", Path(work) / "sequence")
        made = read_image(Path(record["path"])).data[0] / 1000
        out["medkit --sequence"] = [likeness(made, scan, record["medkit"]["seconds"])]
    return out


# ---- tables


def table(title: str, names: list[str], results: dict[str, list[Row]]) -> str:
    """A row per method: PSNR and SSIM for each scan, their means, the gain over the first row, median seconds."""
    lines = [[title, *names, "mean", "gain dB", "median s"], ["---"] * (len(names) + 4)]
    first = next(iter(results.values()))
    for method, rows in results.items():
        cells = [
            f"{row.psnr:.2f}, {row.ssim:.3f}" + (f", {row.dice:.3f}" if row.dice is not None else "") for row in rows
        ]
        known = [row.dice for row in rows if row.dice is not None]
        mean = f"{statistics.fmean(r.psnr for r in rows):.2f}, {statistics.fmean(r.ssim for r in rows):.3f}"
        mean += f", {statistics.fmean(known):.3f}" if known else ""
        gain = statistics.fmean(a.psnr - b.psnr for a, b in zip(rows, first, strict=False))
        cells += [""] * (len(names) - len(cells))
        lines.append([method, *cells, mean, f"{gain:+.2f}", f"{statistics.median(r.seconds for r in rows):.1f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    """Runs and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="*", default=[*SCANS], metavar="SCAN")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--size", type=int)
    parser.add_argument("--noise", type=float, default=2.0, metavar="PERCENT")
    parser.add_argument("--segment", action="store_true")
    parser.add_argument("--views", action="store_true")
    parser.add_argument("--planes", action="store_true")
    options = parser.parse_intermixed_args()
    if not options.data.is_dir():
        raise SystemExit(f"real scans are not at {options.data}; give --data FOLDER")
    noise = options.noise / 100
    if options.planes:
        for title, rows in planes(options.data, noise).items():
            print(table(f"{title}: PSNR dB, SSIM", [Path(n).stem for n in PLANES] + ["X-ray"], rows), flush=True)
        print(table("moving plane x2: PSNR dB, SSIM", ["CT"], moving(options.data, noise)), flush=True)
        return
    scans = [load(options.data / name, options.size) for name in options.scans]
    names = [scan.name for scan in scans]
    if options.views:
        print(table("views: PSNR dB, SSIM", names, views(scans, noise)), flush=True)
        return
    what = "PSNR dB, SSIM" + (", Dice of segment" if options.segment else "")
    for title, steps in WAYS.items():
        print(table(f"{title}: {what}", names, refined(scans, steps, noise, segment=options.segment)), flush=True)


if __name__ == "__main__":
    main()
