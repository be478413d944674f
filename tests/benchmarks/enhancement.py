"""Enhancement of real scans, compared with other methods: noise and bias fields are added, so they are known.

    python tests/benchmarks/enhancement.py [SCAN ...] [--data FOLDER] [--size N] [--noise 3 6 9] [--bias 20 40 60]

Noise: Rician, its standard deviation in percent of the scan's 99.9th percentile, which is also the peak of PSNR; PSNR
and SSIM are those inside the head. The other methods know the true standard deviation: BM4D (`pip install bm4d`), with
and without removal of the floor of the Rice distribution, and scikit-image's NLM. medkit does not know it. Seconds are
those of a case without start and loading; those of medkit are from its record, reading and writing included.

Bias: a smooth field whose ends differ by this many percent from its middle; the coefficient of variation in white
matter of the manual labels, and the joint one of white matter and cortex (their standard deviations over the distance
of their means: it grows if anatomy is evened out), of the original, with the field, and after N4 and the network.

`--size` cuts a cube out of the middle of every scan: BM4D takes minutes for a whole one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
from medkit_enhance.denoise import by_nlm

from medkit.bundles.bundle import WEIGHTS
from medkit.evaluation.measures.metrics import psnr, ssim
from medkit.images.image import read_image
from medkit.scanner.noise import Noise, without_floor

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "mri_enhancement"
SCANS = (
    "brain_heads/brainchop_t1.nii.gz",
    "brain_heads/eun_t1.nii.gz",
    "brain_t1_manual/oasis_1000_t1.nii.gz",
    "brain_t1_manual/oasis_1002_t1.nii.gz",
    "brain_t1_manual/oasis_1017_t1.nii.gz",
)
APART = "templates/colin27_t1_1mm.nii.gz"
"""An average, on which weights were trained as well: reported apart."""
WHITE_MATTER, CORTEX = (2, 41), (3, 42)
MEDKIT = "medkit "


@dataclass(frozen=True)
class Scan:
    """A real scan, its brightness 1 at the 99.9th percentile."""

    name: str
    image: np.ndarray
    """(I, J, K) float32."""
    head: np.ndarray
    """(I, J, K) bool: what is not background, holes filled."""
    white: np.ndarray | None
    """(I, J, K) bool where there are labels."""
    cortex: np.ndarray | None
    """As `white`."""


@dataclass(frozen=True)
class Row:
    """One method on one scan."""

    values: tuple[float, ...]
    seconds: float


def load(path: Path, size: int | None) -> Scan:
    """Reads a scan and finds its head."""
    from scipy.ndimage import binary_closing, binary_fill_holes

    image = read_image(path).data[0].astype(np.float32)
    image = np.maximum(image, 0) / np.percentile(image, 99.9)
    white = cortex = None
    labels = path.with_name(path.name.replace("_t1", "_labels"))
    if "manual" in str(path) and labels.exists():
        table = np.loadtxt(path.parent / "neuromorphometrics_to_freesurfer.tsv", str, delimiter="\t", skiprows=1)
        numbers = {int(row[0]): int(row[1]) for row in table if row[1].isdigit()}
        found = read_image(labels, labels=True).data[0]
        white = np.isin(found, [n for n, meant in numbers.items() if meant in WHITE_MATTER])
        cortex = np.isin(found, [n for n, meant in numbers.items() if meant in CORTEX or 1000 < meant < 3000])
    head = binary_fill_holes(binary_closing(image > 0.08, iterations=3))
    if size:
        part = tuple(slice(max(0, (n - size) // 2), (n + size) // 2) for n in image.shape)
        image, head = image[part], head[part]
        white, cortex = (None if mask is None else mask[part] for mask in (white, cortex))
    return Scan(path.name.split(".")[0], image, head, white, cortex)


def rician(image: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    """The image with Rician noise, float32."""
    rng = np.random.default_rng(seed)
    return np.hypot(image + rng.normal(0, sigma, image.shape), rng.normal(0, sigma, image.shape)).astype(np.float32)


def likeness(found: np.ndarray, scan: Scan) -> tuple[float, float]:
    """PSNR in dB and SSIM inside the head, peak 1."""
    a, b, head = (torch.from_numpy(np.ascontiguousarray(x)) for x in (found.astype(np.float32), scan.image, scan.head))
    return psnr(a, b, head, data_range=1.0), ssim(a, b, head, data_range=1.0)


def variation(found: np.ndarray, scan: Scan) -> tuple[float, float]:
    """Coefficient of variation in white matter, and the joint one of white matter and cortex."""
    assert scan.white is not None
    assert scan.cortex is not None
    white, cortex = found[scan.white], found[scan.cortex]
    joint = (white.std() + cortex.std()) / abs(white.mean() - cortex.mean())
    return float(white.std() / white.mean()), float(joint)


Score = Callable[[np.ndarray, Scan], tuple[float, ...]]


def by_medkit(images: list[np.ndarray], scans: list[Scan], what: str, method: str, score: Score) -> list[Row]:
    """`medkit run enhance` over all images at once: loaded once, as a user has it."""
    with tempfile.TemporaryDirectory() as work:
        paths = [Path(work) / f"{n}.nii.gz" for n in range(len(images))]
        for image, path in zip(images, paths, strict=True):
            nibabel.save(nibabel.Nifti1Image(1000 * image, np.eye(4)), path)
        command = [sys.executable, "-m", "medkit", "run", "enhance", "--what", what, "--method", method, "--json"]
        done = subprocess.run([*command, *map(str, paths)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"medkit failed: {done.stderr.strip()}")
        rows = []
        for line, scan in zip(done.stdout.splitlines(), scans, strict=True):
            record = json.loads(line)
            found = read_image(Path(record["path"])).data[0] / 1000
            rows.append(Row(score(found, scan), record["medkit"]["seconds"]))
        return rows


def by_peer(method: Callable[[np.ndarray], np.ndarray], images: list[np.ndarray], scans: list[Scan]) -> list[Row]:
    """Apply a function to each image in turn."""
    rows = []
    for image, scan in zip(images, scans, strict=True):
        start = time.perf_counter()
        found = method(image)
        seconds = time.perf_counter() - start
        rows.append(Row(likeness(found, scan), seconds))
    return rows


def denoised(scans: list[Scan], sigma: float) -> dict[str, list[Row]]:
    """All methods on all scans with noise of one strength."""
    noisy = [rician(scan.image, sigma) for scan in scans]
    plain, floor = Noise(sigma, sigma, "gaussian"), Noise(sigma, sigma, "rician")
    out = {"noisy": by_peer(lambda image: image, noisy, scans)}
    for method in ("network", "nlm"):
        if method != "network" or (BUNDLE / WEIGHTS).is_file():
            out[MEDKIT + method] = by_medkit(noisy, scans, "denoise", method, likeness)
    out["NLM, true sigma"] = by_peer(lambda image: by_nlm(image, plain), noisy, scans)
    if importlib.util.find_spec("bm4d"):
        from bm4d import bm4d  # type: ignore[import-not-found]

        start = time.perf_counter()
        found = [bm4d(image, sigma).astype(np.float32) for image in noisy]
        seconds = (time.perf_counter() - start) / len(found)
        out["BM4D, true sigma"] = [Row(likeness(f, s), seconds) for f, s in zip(found, scans, strict=True)]
        lowered = (without_floor(image, floor) for image in found)
        out["BM4D, floor taken away"] = [Row(likeness(f, s), seconds) for f, s in zip(lowered, scans, strict=True)]
    else:
        print("BM4D: bm4d is not installed, left out", file=sys.stderr)
    return out


def field(shape: tuple[int, ...], percent: float, seed: int = 0) -> np.ndarray:
    """A smooth positive factor (I, J, K), from 1 - percent / 100 to 1 + percent / 100: a random quadratic surface."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij", sparse=True)
    terms = [*axes, *(a * b for n, a in enumerate(axes) for b in axes[n:])]
    surface = sum(float(weight) * term for weight, term in zip(rng.normal(size=len(terms)), terms, strict=True))
    surface = np.broadcast_to(surface, shape)
    return (1 + percent / 100 * (2 * (surface - surface.min()) / np.ptp(surface) - 1)).astype(np.float32)


def unbiased(scans: list[Scan], percent: float) -> dict[str, list[Row]]:
    """All methods on all scans with a field of one strength."""
    shaded = [scan.image * field(scan.image.shape, percent) for scan in scans]
    out = {
        "scan": [Row(variation(scan.image, scan), 0.0) for scan in scans],
        "with field": [Row(variation(image, scan), 0.0) for image, scan in zip(shaded, scans, strict=True)],
    }
    for method in ("network", "n4"):
        if method != "network" or (BUNDLE / WEIGHTS).is_file():
            out[MEDKIT + method] = by_medkit(shaded, scans, "bias", method, variation)
    return out


def table(title: str, names: list[str], results: dict[str, list[Row]]) -> str:
    """A row per method: its values for each scan, their means, median seconds."""
    lines = [[title, *names, "mean", "median s"], ["---"] * (len(names) + 3)]
    for method, rows in results.items():
        means = [statistics.fmean(values) for values in zip(*(row.values for row in rows), strict=True)]
        seconds = statistics.median(row.seconds for row in rows)
        lines.append([method, *(_cell(row.values) for row in rows), _cell(means), f"{seconds:.1f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _cell(values: tuple[float, ...] | list[float]) -> str:
    return ", ".join(f"{v:.2f}" if v > 2 else f"{v:.4f}" for v in values if math.isfinite(v))


def main() -> None:
    """Runs and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="*", default=[*SCANS, APART], metavar="SCAN")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--size", type=int)
    parser.add_argument("--noise", type=float, nargs="*", default=[3, 6, 9], metavar="PERCENT")
    parser.add_argument("--bias", type=float, nargs="*", default=[20, 40, 60], metavar="PERCENT")
    options = parser.parse_intermixed_args()
    if not options.data.is_dir():
        raise SystemExit(f"real scans are not at {options.data}; give --data FOLDER")
    scans = [load(options.data / name, options.size) for name in options.scans]
    for percent in options.noise:
        print(table(f"noise {percent:g} %: PSNR dB, SSIM", [s.name for s in scans], denoised(scans, percent / 100)))
    labelled = [scan for scan in scans if scan.white is not None and scan.white.any()]
    for percent in options.bias if labelled else ():
        names = [s.name for s in labelled]
        print(table(f"field {percent:g} %: variation in white matter, joint", names, unbiased(labelled, percent)))


if __name__ == "__main__":
    main()
