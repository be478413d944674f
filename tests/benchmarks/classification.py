"""Figures of the classification bundles, from files to the table that `medkit run classify --table` writes.

    python tests/benchmarks/classification.py DATA [--only chest_xray] [--count 100] [--others FOLDER ...]

For each bundle it prints AUC, accuracy, sensitivity, specificity and calibration error (15 bins) on the official test
set, and the share of images without an answer; the same share of brain slices, CT slices, noise and photographs, 100
each, which were not used for training, and of the images in the folders of --others. Then 1,000 patches go through one
pipe: images per second once the program and the network are loaded, by wall and by processor time.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from medkit_classify.calibrate import calibration_error
from scipy import ndimage

from medkit.evaluation.classes.metrics import roc_auc
from medkit.training.class_data import read_part, write_image

ROOT = Path(__file__).parents[2]
PHOTOGRAPHS = ("astronaut", "camera", "coffee", "chelsea", "rocket", "coins", "moon", "brick", "grass", "gravel")
"""Those of skimage.data; they that its wheel does not bring are left out."""


SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")
"""Images in the folders of --others."""


@dataclass(frozen=True)
class Set:
    """A test set and the bundle that is for it."""

    bundle: str
    source: str
    """Below the data folder."""
    positive: str
    size: int
    """Pixels along each side of strange pictures; of a shape's volume, voxels."""
    volumes: bool = False


SETS = {
    "chest_xray": Set("chest_xray_classification", "chest_xray/pneumonia_a_pneumoniamnist.npz", "pneumonia", 256),
    "lung_nodule": Set("lung_nodule_ct_classification", "lung_nodule_patches", "nodule", 256),
    "lung_nodule_50": Set("lung_nodule_ct_classification", "lung_nodule_patches", "nodule", 50),
    "adrenal": Set("adrenal_shape_classification", "adrenal_shapes/adrenal_adrenalmnist3d_64.npz", "mass", 64, True),
}


# ---- images


def write_test_set(found: Set, data: Path, folder: Path) -> dict[str, int]:
    """Writes the images of the official test part; name -> class."""
    folder.mkdir(parents=True)
    samples = enumerate(read_part(data / found.source, "test"))
    return {write_image(sample.image, folder, f"{number:05}"): sample.label for number, sample in samples}


def write_strangers(found: Set, data: Path, folder: Path, count: int) -> dict[str, list[str]]:
    """Writes `count` brain slices (volumes for shapes), images of noise and photographs; kind -> names."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    made: dict[str, Iterator[np.ndarray]] = {
        "brain": brains(data, rng, found),
        **({} if found.volumes else {"CT": ct_slices(data, rng, found)}),
        "noise": noises(rng, found),
        "photograph": photographs(rng, found),
    }
    return {
        kind: [write_image(next(images), folder, f"{kind}_{number:03}") for number in range(count)]
        for kind, images in made.items()
    }


def brains(data: Path, rng: np.random.Generator, found: Set) -> Iterator[np.ndarray]:
    """Slices of real T1 scans in all directions; for shapes the voxels brighter than the mean in parts of heads."""
    import nibabel

    paths = sorted((data / "brain_t1_manual").glob("*.nii.gz"))
    scans = [p for p in paths if "seg" not in p.name and "label" not in p.name and "glm" not in p.name][:4]
    volumes = [np.asarray(nibabel.load(p).dataobj, np.float32) for p in scans]
    while True:
        volume = volumes[rng.integers(len(volumes))]
        if found.volumes:
            low = [rng.integers(0, max(1, n - 96)) for n in volume.shape]
            part = volume[tuple(slice(a, a + 96) for a in low)]
            yield _resized(part > volume[volume > 0].mean(), found.size, 3)
            continue
        axis = int(rng.integers(3))
        plane = np.take(volume, int(volume.shape[axis] * rng.uniform(0.35, 0.65)), axis)
        plane = np.rot90(plane, int(rng.integers(4)))
        yield _bytes(_resized(plane, found.size, 2))


def ct_slices(data: Path, rng: np.random.Generator, found: Set) -> Iterator[np.ndarray]:
    """Slices of chest CT in all directions, -1000 to 400 HU."""
    import nibabel

    paths = [p for p in sorted((data / "chest_ct").glob("*.nii.gz")) if "mask" not in p.name and "lesion" not in p.name]
    volumes = [np.asarray(nibabel.load(p).dataobj, np.float32).clip(-1000, 400) for p in paths[:4]]
    while True:
        volume = volumes[rng.integers(len(volumes))]
        axis = int(rng.integers(3))
        plane = np.take(volume, int(volume.shape[axis] * rng.uniform(0.35, 0.65)), axis)
        yield _bytes(_resized(np.rot90(plane, int(rng.integers(4))), found.size, 2))


def noises(rng: np.random.Generator, found: Set) -> Iterator[np.ndarray]:
    """Gaussian, uniform and smoothed noise."""
    shape = (found.size,) * (3 if found.volumes else 2)
    for number in range(10**6):
        values = rng.normal(size=shape) if number % 2 else rng.uniform(size=shape)
        if number % 3 == 2:
            values = ndimage.gaussian_filter(values, rng.uniform(0.5, 2))
        yield (values > np.quantile(values, rng.uniform(0.5, 0.98))) if found.volumes else _bytes(values)


def photographs(rng: np.random.Generator, found: Set) -> Iterator[np.ndarray]:
    """Parts of photographs, half of their side at least; of shapes the brighter half, through all slices."""
    pictures = list(_pictures())
    while True:
        picture = pictures[rng.integers(len(pictures))]
        side = int(min(picture.shape) * rng.uniform(0.5, 1))
        row, column = (rng.integers(0, n - side + 1) for n in picture.shape)
        part = _resized(picture[row : row + side, column : column + side], found.size, 2)
        yield np.repeat((part > np.median(part))[..., None], found.size, -1) if found.volumes else _bytes(part)


def _pictures() -> Iterator[np.ndarray]:
    import skimage.data

    for name in PHOTOGRAPHS:
        try:
            picture = np.asarray(getattr(skimage.data, name)(), np.float32)
        except Exception:  # not in the wheel, and nothing is downloaded
            continue
        yield picture[..., :3].mean(-1) if picture.ndim == 3 else picture


def _resized(values: np.ndarray, size: int, dims: int) -> np.ndarray:
    from skimage.transform import resize

    out: np.ndarray = resize(values.astype(np.float32), (size,) * dims, anti_aliasing=True)
    return out > 0.5 if values.dtype == bool else out


def _bytes(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return np.rint((values - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)


# ---- runs


def classified(found: Set, folder: Path, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Name -> row of the table."""
    table = folder / "results.tsv"
    (folder / "list.txt").write_text("".join(f"{folder / name}\n" for name in names))
    command = [sys.executable, "-m", "medkit", "run", "classify", "--bundle", str(ROOT / "bundles" / found.bundle)]
    given = ["--trust", "--list", str(folder / "list.txt"), "--table", str(table), "-q"]
    subprocess.run([*command, *given], check=True, stdout=subprocess.DEVNULL)
    with open(table, newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file, delimiter="\t")}


def figures(rows: Mapping[str, Mapping[str, str]], labels: Mapping[str, int], positive: str) -> dict[str, float]:
    """Return the figures of a test set: all images by the network's probabilities, answered ones by their class."""
    score = np.array([float(rows[name][f"probability_{positive}"]) for name in labels])
    truth = np.array(list(labels.values()))
    said = (score > 0.5).astype(int)
    answered = np.array([rows[name]["abstained"] == "no" for name in labels])
    given = np.array([rows[name]["class"] == positive for name in labels]).astype(int)
    sure = np.array([float(rows[name]["confidence"].replace("n/a", "nan")) for name in labels])
    two = np.where(given[:, None] == np.arange(2), sure[:, None], 1 - sure[:, None])
    return {
        "AUC": float(roc_auc(score, truth == 1, np.ones((1, len(truth))))[0]),
        "accuracy": float((said == truth).mean()),
        "not answered": float(1 - answered.mean()),
        "answered: accuracy": float((given == truth)[answered].mean()),
        "sensitivity": float(given[answered & (truth == 1)].mean()),
        "specificity": float(1 - given[answered & (truth == 0)].mean()),
        "calibration error": calibration_error(two[answered], truth[answered]),
    }


def throughput(found: Set, data: Path, folder: Path, count: int = 1000) -> dict[str, float]:
    """Return patches per second: the time of a run of all minus that of a run of 8, which is mostly start-up."""
    folder.mkdir(parents=True)
    samples = list(read_part(data / found.source, "test"))[:count]
    names = [write_image(sample.image, folder, f"{number:05}") for number, sample in enumerate(samples)]
    spent = {}
    for number in (8, len(names)):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        classified(found, folder, names[:number])
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        spent[number] = wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        for path in folder.glob("results.*"):
            path.unlink()
    wall, cpu = (b - a for a, b in zip(spent[8], spent[len(names)], strict=True))
    return {"a second": (len(names) - 8) / wall, "a second of a processor": (len(names) - 8) / cpu}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", choices=[*SETS, "throughput"])
    parser.add_argument("--count", type=int, default=100, help="Strange images of each kind.")
    parser.add_argument("--others", type=Path, nargs="*", default=(), help="Folders of pictures that are unlike, too.")
    given = parser.parse_args()
    os.environ["MEDKIT_PROGRESS"] = "0"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for key, found in SETS.items():
            if given.only not in (key, None):
                continue
            if key.endswith("_50"):
                print("strange pictures that were made patches of 50 x 50 pixels")
            else:
                labels = write_test_set(found, given.data, folder / key)
                rows = classified(found, folder / key, list(labels))
                line = ", ".join(f"{k} {v:.4f}" for k, v in figures(rows, labels, found.positive).items())
                print(f"{key}, {len(labels)} test images: {line}", flush=True)
            kinds = write_strangers(found, given.data, folder / f"{key}_strange", given.count)
            rows = classified(found, folder / f"{key}_strange", [n for names in kinds.values() for n in names])
            for kind, names in kinds.items():
                share = np.mean([rows[n]["abstained"] == "yes" for n in names])
                print(f"  {kind}: {share:.0%} of {len(names)} not answered about", flush=True)
            for other in given.others:
                pictures = [
                    path for path in sorted(other.rglob("*")) if path.suffix.lower() in (".png", ".jpg", ".jpeg")
                ]
                (folder / f"{key}_{other.name}").mkdir()
                rows = classified(found, folder / f"{key}_{other.name}", [str(path.absolute()) for path in pictures])
                share = np.mean([row["abstained"] == "yes" for row in rows.values()])
                print(f"  {other}: {share:.1%} of {len(rows)} not answered about", flush=True)
        if given.only in ("throughput", None):
            for what, value in throughput(SETS["lung_nodule"], given.data, folder / "pipe").items():
                print(f"1,000 patches, {what}: {value:.0f}", flush=True)


if __name__ == "__main__":
    main()
