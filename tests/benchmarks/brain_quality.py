"""Results of `brain_mri_quality_classification` for real scans and degraded ones, from files to the table.

    python tests/benchmarks/brain_quality.py DATA [--bundle FOLDER] [--drawn FOLDER] [--count N]

The scans: eight skull-stripped T1, three T1 heads, one of proton density, one contrast-enhanced (T1) and three T1
templates, none of which was used for training. Each is measured unchanged and degraded: noise of 10 and 20 % of the
range, ghosts of 25 and 50 % (`medkit.robustness.corruptions`), k-space lines of a head that was turned and shifted, and
a field of view that cuts off 15 and 30 % of the bright voxels. It prints the share of right contrasts, the AUC with
which the probability of `usable` separates scans from degraded ones, the answers for each kind, the share of strange
volumes without an answer (noise, photographs in slices, parts of CT scans), and with `--drawn`, the folder that the
bundle's `drawing` wrote, accuracy and calibration error on its validation scans.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from classification import Set as Strange
from classification import photographs
from medkit_classify.calibrate import calibration_error
from scipy import ndimage

from medkit.evaluation.classes.metrics import roc_auc
from medkit.images.image import Image, read_image
from medkit.robustness.corruptions import CORRUPTIONS, corrupted
from medkit.space import Grid

BUNDLE = Path(__file__).parents[2] / "bundles" / "brain_mri_quality_classification"
SCANS = {
    **{f"brain_t1_manual/oasis_{n}_t1.nii.gz": "T1" for n in (1000, 1001, 1002, 1003, 1014, 1015, 1017, 1023)},
    **{f"brain_heads/{name}_t1.nii.gz": "T1" for name in ("brainchop", "eun", "chris")},
    "brain_heads/chris_pd.nii.gz": "PD",
    "brain_heads/mr_gd.nii.gz": "T1",
    **{f"templates/{name}.nii.gz": "T1" for name in ("mni152_sym09a_t1_1mm", "colin27_t1_1mm", "spm152_t1_0.74mm")},
}
CTS = ("abdomen_ct", "lung_ct")
"""Folders whose scans strange volumes are cut from."""
ASPECTS = {"contrast": ("T1", "T2", "PD", "FLAIR", "other"), "usability": ("usable", "motion", "noise", "cropped")}


# ---- degraded scans


def shifted(name: str, strength: float) -> Callable[[Image, int], Image]:
    """A corruption of `medkit evaluate --robustness`."""
    return lambda image, seed: image.with_data(
        corrupted(CORRUPTIONS[name], strength, image.data.astype(np.float32), image.grid.spacing, seed)
    )


def turned(image: Image, seed: int) -> Image:
    """A head that was turned and shifted while a third of the lines of k-space was measured."""
    rng = np.random.default_rng(seed)
    data = image.data[0].astype(np.float32)
    axis = int(rng.integers(3))
    plane = [a for a in range(3) if a != axis]
    other = ndimage.rotate(data, rng.uniform(3, 7) * rng.choice([-1, 1]), (plane[0], axis), reshape=False, order=1)
    other = ndimage.shift(other, rng.uniform(2, 5, 3) / image.grid.spacing, order=1)
    space, elsewhere = np.fft.fft(data, axis=axis), np.fft.fft(other, axis=axis)
    lines = np.argsort(np.fft.fftfreq(data.shape[axis]))
    begin = int(rng.uniform(0.1, 0.55) * len(lines))
    moved = lines[begin : begin + len(lines) // 3]
    moved = moved[moved != 0]
    index = tuple(moved if a == axis else slice(None) for a in range(3))
    space[index] = elsewhere[index]
    return image.with_data(np.abs(np.fft.ifft(space, axis=axis)).astype(np.float32)[None])


def cropped(share: float) -> Callable[[Image, int], Image]:
    """Return a scan with a field of view that cuts off a share of the bright voxels."""

    def crop(image: Image, seed: int) -> Image:
        rng = np.random.default_rng(seed)
        data = image.data[0].astype(np.float32)
        axis, side = int(rng.integers(2)), int(rng.integers(2))  # below a head there is a neck, which may go
        bright = (data > 0.3 * np.percentile(data, 99)).sum(tuple(a for a in range(3) if a != axis))
        along = bright if side == 0 else bright[::-1]
        gone = int((np.cumsum(along) < share * along.sum()).sum())
        first = gone if side == 0 else 0
        kept = np.take(data, range(first, first + data.shape[axis] - gone), axis)
        affine = image.grid.affine.copy()
        affine[:3, 3] += affine[:3, axis] * first
        return Image(kept[None], Grid(kept.shape, affine))

    return crop


DEGRADED: Mapping[str, tuple[str, Callable[[Image, int], Image]]] = {
    "noise10": ("noise", shifted("noise", 0.1)),
    "noise20": ("noise", shifted("noise", 0.2)),
    "ghosts25": ("motion", shifted("motion", 0.25)),
    "ghosts50": ("motion", shifted("motion", 0.5)),
    "turned": ("motion", turned),
    "cropped15": ("cropped", cropped(0.15)),
    "cropped30": ("cropped", cropped(0.30)),
}
"""Name -> the class it is, and how."""


# ---- strange volumes


def strangers(data: Path, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """`count` volumes of each kind."""
    rng = np.random.default_rng(0)
    pictures = photographs(rng, Strange("", "", "", 128))
    for _ in range(count):
        values = rng.normal(size=(96, 96, 96)) if rng.random() < 0.5 else rng.uniform(size=(96, 96, 96))
        values = ndimage.gaussian_filter(values, rng.uniform(0.5, 3)) if rng.random() < 0.5 else values
        yield "noise", (values - values.min()) * 100
        yield "photograph", np.repeat(next(pictures)[..., None].astype(np.float32), 96, -1)
    paths = sorted(p for folder in CTS for p in (data / folder).glob("*.nii.gz") if "label" not in p.name)
    scans = [scan for p in paths if min((scan := read_image(p).data[0]).shape) > 16 and scan.min() < -500]
    for _ in range(count):
        scan = scans[rng.integers(len(scans))]
        sizes = [min(n, int(rng.integers(48, 160))) for n in scan.shape]
        low = [int(rng.integers(0, n - size + 1)) for n, size in zip(scan.shape, sizes, strict=True)]
        part = scan[tuple(slice(a, a + n) for a, n in zip(low, sizes, strict=True))].astype(np.float32)
        yield "CT", part - part.min()


# ---- runs


def classified(bundle: Path, lines: Sequence[Path | str], table: Path) -> dict[str, dict[str, dict[str, str]]]:
    """A file's name -> aspect -> row of the table, for paths and records."""
    names = table.with_suffix(".txt")
    names.write_text("".join(f"{line}\n" for line in lines))
    command = [sys.executable, "-m", "medkit", "run", "classify", "--bundle", str(bundle), "--trust"]
    subprocess.run([*command, "--list", str(names), "--table", str(table), "-q"], check=True, stdout=subprocess.DEVNULL)
    found: dict[str, dict[str, dict[str, str]]] = {}
    with open(table, newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            found.setdefault(Path(row["image"]).name, {})[row["candidate"]] = row
    return found


def likeliest(row: Mapping[str, str], aspect: str) -> str:
    """Return the most probable class."""
    return max(ASPECTS[aspect], key=lambda name: float(row[f"probability_{name}"]))


def real(bundle: Path, data: Path, folder: Path, table: Path) -> None:
    """Print the answers for the real scans."""
    truth: dict[str, tuple[str, str]] = {}
    for number, (name, contrast) in enumerate(SCANS.items()):
        image = read_image(data / name)
        stem = Path(name).name.removesuffix(".nii.gz")
        made = {"asis": ("usable", image)}
        made |= {key: (kind, how(image, number)) for key, (kind, how) in DEGRADED.items()}
        for key, (kind, scan) in made.items():
            truth[f"{stem}_{key}.nii.gz"] = contrast, kind
            scan.write(folder / f"{stem}_{key}.nii.gz")
    rows = classified(bundle, [folder / name for name in truth], table)
    right = {name: likeliest(rows[name]["contrast"], "contrast") == contrast for name, (contrast, _) in truth.items()}
    score = np.array([1 - float(rows[name]["usability"]["probability_usable"]) for name in truth])
    bad = np.array([kind != "usable" for _, kind in truth.values()])
    abstained = {name: rows[name]["contrast"]["abstained"] == "yes" for name in truth}
    print(f"{len(truth)} scans: contrast right {np.mean(list(right.values())):.1%}")
    print(f"AUC of degraded: {float(roc_auc(score, bad, np.ones((1, len(bad))))[0]):.4f}")
    print(f"AUC of abstaining or not usable: {_with_abstained(score, bad, list(abstained.values())):.4f}")
    for key in ("asis", *DEGRADED):
        of = [name for name in truth if name.endswith(f"_{key}.nii.gz")]
        said = Counter(likeliest(rows[name]["usability"], "usability") for name in of)
        contrasts = Counter(likeliest(rows[name]["contrast"], "contrast") for name in of)
        doubt = sum(abstained[name] for name in of)
        print(f"  {key}: {dict(said)}; {dict(contrasts)}; {doubt} of {len(of)} not answered about")
    wrong = [name for name, good in right.items() if not good]
    print("  contrast wrong:", ", ".join(f"{n} {likeliest(rows[n]['contrast'], 'contrast')}" for n in wrong) or "none")


def _with_abstained(score: np.ndarray, bad: np.ndarray, abstained: Sequence[bool]) -> float:
    return float(roc_auc(score + np.array(abstained), bad, np.ones((1, len(bad))))[0])


def strange(bundle: Path, data: Path, folder: Path, count: int) -> None:
    """Print how many strange volumes get no answer."""
    kinds: dict[str, list[str]] = {}
    for number, (kind, values) in enumerate(strangers(data, count)):
        name = f"{kind}_{number:03}.nii.gz"
        Image(values.astype(np.float32)[None], Grid(values.shape, np.diag([2.0, 2.0, 2.0, 1.0]))).write(folder / name)
        kinds.setdefault(kind, []).append(name)
    rows = classified(bundle, [folder / n for names in kinds.values() for n in names], folder / "strange.tsv")
    for kind, names in kinds.items():
        print(f"  {kind}: {np.mean([rows[n]['contrast']['abstained'] == 'yes' for n in names]):.0%} not answered about")


def drawn(bundle: Path, source: Path, folder: Path) -> None:
    """Prints accuracy and calibration error on drawn scans of the validation heads, every second with labels."""
    items = json.loads((source / "images.json").read_text())["validation"]
    lines = [
        json.dumps({"path": str(source / item["image"]), "inputs": {"labels": str(source / item["labels"])}})
        if "labels" in item
        else source / item["image"]
        for item in items
    ]
    rows = classified(bundle, lines, folder / "drawn.tsv")
    doubt = np.array([rows[item["image"]]["contrast"]["abstained"] == "yes" for item in items])
    print(f"{len(items)} drawn scans, {doubt.mean():.1%} not answered about")
    for n, (aspect, names) in enumerate(ASPECTS.items()):
        said = [likeliest(rows[item["image"]][aspect], aspect) for item in items]
        truth = [names[item["label"][n]] for item in items]
        right = np.array([a == b for a, b in zip(said, truth, strict=True)])
        sure = [rows[item["image"]][aspect]["confidence"] for item in items]
        two = np.array([[float(s), 0.0] for s in sure if s != "n/a"])
        chosen = np.array([rows[item["image"]][aspect]["class"] == t for item, t in zip(items, truth, strict=True)])
        print(f"  {aspect}: accuracy {right.mean():.4f}", end="")
        if len(two):
            answered = ~doubt
            print(f", calibration error {calibration_error(two, np.where(chosen[answered], 0, 1)):.4f}", end="")
        print()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--drawn", type=Path)
    parser.add_argument("--count", type=int, default=100, help="Strange volumes of each kind; 0: none.")
    parser.add_argument("--keep", type=Path, metavar="TABLE", help="Where the table of the real scans goes.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        real(given.bundle.resolve(), given.data, folder, given.keep or folder / "results.tsv")
        if given.count:
            strange(given.bundle.resolve(), given.data, folder, given.count)
        if given.drawn:
            drawn(given.bundle.resolve(), given.drawn.resolve(), folder)


if __name__ == "__main__":
    main()
