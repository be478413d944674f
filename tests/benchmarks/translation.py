"""Unpaired translation from low to high field: draws the scans of the training, and measures its result.

    python tests/benchmarks/translation.py draw DATA/brain_labelmaps scans
    medkit train enhance --config cyclegan --data scans/low scans/high -o trained
    python tests/benchmarks/translation.py score trained scans --picture translation.png

Scans are drawn from label maps with T1-like intensities: of subjects 1 to 9 at low field only, of 10 to 18 at high
field only, so that the training has no pairs; of 19 and 20 both, only for the score. The score is over the head, for
images divided by their intensity scale as networks are given them; `fitted`: after the linear function of the image
that is nearest to the truth, since the kinds differ in contrast. It is compared with the scan itself and with the
results of the classical methods of `medkit run enhance`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.bundle import ConfigParser

from medkit.evaluation.measures.images import compare_images
from medkit.figures.mosaic import sample_sheet, write_png
from medkit.scanner.intensity import intensity_scale
from medkit.synthesis.degradation import Faults, LowField, lowered, with_noise
from medkit.synthesis.draw import Synthesis
from medkit.synthesis.labels import LabelTable
from medkit.synthesis.ranges import Random, Ranges

SHAPE = (160, 208, 224)
CLEAN = Ranges(
    prior=1.0, flip=0.5, stripped=0.0, dark=1.0, cut=0.0, shift=4.0, texture=(0.1, 0.2), thick=0.0, coarse=0.0,
    blur=(0.4, 0.5), bias=0.0, noise=0.0, gamma=0.0, ghosting=0.0, salt_and_pepper=0.0,
)  # fmt: skip
"""Heads as a T1-weighted scan of high field shows them, without artifacts."""
HIGH = Faults(noise=(0.008, 0.015), none=0.0, rician=1.0, varying=0.0, correlated=0.0, emptied=0.0)
LOW_SUBJECTS, HIGH_SUBJECTS, TEST_SUBJECTS = range(1, 10), range(10, 19), range(19, 21)


def draw(maps: Path, out: Path, draws: int) -> None:
    """Writes `low`, `high`, `test/low` and `test/high` (of equal names) into `out`."""
    table = LabelTable.read(maps / "labels.tsv", priors=maps / "t1_priors.tsv")
    heads = Synthesis(table, SHAPE, 1.0, CLEAN, outside=(0, 24, *range(500, 600)), fluid=(24,))
    wanted = [(s, n, ("low",)) for s in LOW_SUBJECTS for n in range(draws)]
    wanted += [(s, n, ("high",)) for s in HIGH_SUBJECTS for n in range(draws)]
    wanted += [(s, n, ("test/low", "test/high")) for s in TEST_SUBJECTS for n in range(2)]
    for subject, number, kinds in wanted:
        image = nibabel.load(maps / f"labelmap_{subject:02}.nii.gz")
        labels = torch.from_numpy(table.encode(np.asarray(image.dataobj)[None], str(subject)))
        seed = 1000 * subject + number
        clean = heads(labels[None], image.header.get_zooms()[:3], seed).image[0]
        for kind in kinds:
            random = Random(seed + 500_000 * kind.endswith("low"), clean.device)
            low = kind.endswith("low")
            made = lowered(clean, 1.0, random, LowField()) if low else with_noise(clean, 1.0, random, HIGH)
            path = out / kind / f"sub-{subject:02}_run-{number + 1}_T1w.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image((1000 * made[0]).round().numpy().astype(np.int16), np.eye(4)), path)
            print(path, flush=True)


def score(bundle: Path, scans: Path, picture: Path | None) -> None:
    """Prints PSNR and SSIM against the truth, and the error of going there and back, of every test scan."""
    names = sorted(p.name for p in (scans / "test" / "low").glob("*.nii.gz"))
    rows: dict[str, list[dict[str, float]]] = {}
    shown = []
    with tempfile.TemporaryDirectory() as folder:
        inputs = [scans / "test" / "low" / name for name in names]
        made = {
            "scan as it is": dict(zip(names, inputs, strict=True)),
            "nlm, then n4": enhanced(inputs, Path(folder) / "classical", "--method", "nlm", then="n4"),
            "network": enhanced(inputs, Path(folder) / "network", "--bundle", str(bundle), "--trust"),
        }
        for name in names:
            truth = voxels(scans / "test" / "high" / name)
            for method, files in made.items():
                rows.setdefault(method, []).append(compared(voxels(files[name]), truth))
            shown += [middle(voxels(files[name])) for files in made.values()] + [middle(truth)]
    print("| | PSNR dB | SSIM | PSNR fitted | SSIM fitted |\n|---|---|---|---|---|")
    for method, found in rows.items():
        means = [statistics.mean(f[key] for f in found) for key in ("psnr", "ssim", "psnr_fitted", "ssim_fitted")]
        print(f"| {method} | {means[0]:.2f} | {means[1]:.4f} | {means[2]:.2f} | {means[3]:.4f} |")
    for name, error in cycle_errors(bundle, scans, names):
        print(f"there and back, {name}: mean absolute error {error:.4f} of the 99th percentile")
    if picture:
        with open(picture, "wb") as file:
            write_png(sample_sheet([(tile, None) for tile in shown], columns=len(made) + 1), file)


def enhanced(inputs: list[Path], out: Path, *arguments: str, then: str | None = None) -> dict[str, Path]:
    """Name of the scan -> the result of `medkit run enhance`, and of `--method` `then` on that."""
    command = [sys.executable, "-m", "medkit", "run", "enhance", *map(str, inputs), *arguments, "--json"]
    found = subprocess.run([*command, "-o", str(out)], capture_output=True, text=True, check=True)
    records = [json.loads(line) for line in found.stdout.splitlines()]
    paths = [Path(record["path"]) for record in records]
    if then:
        paths = list(enhanced(paths, out / "then", "--method", then).values())
    return dict(zip([p.name for p in inputs], paths, strict=True))


def voxels(path: Path) -> np.ndarray:
    """Return the voxels (I, J, K) float32, divided by their intensity scale."""
    values = torch.from_numpy(np.asarray(nibabel.load(path).dataobj, np.float32))
    return (values / intensity_scale(values)).numpy()


def compared(image: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """PSNR and SSIM in the head, as it is and after the linear function that fits best."""
    head = truth > 0.05
    slope, shift = np.polyfit(image[head].astype(np.float64), truth[head], 1)  # float32 is too short for a million
    out = {}
    for suffix, values in (("", image), ("_fitted", slope * image + shift)):
        found = compare_images(np.where(head, values, 0), np.where(head, truth, 0))
        out |= {f"psnr{suffix}": float(found["psnr_db"]), f"ssim{suffix}": float(found["ssim"])}
    return out


def middle(values: np.ndarray) -> np.ndarray:
    """(I, K) of the coronal plane in the middle, which shows how slices fit together."""
    return values[:, values.shape[1] // 2]


def cycle_errors(bundle: Path, scans: Path, names: list[str]) -> Iterator[tuple[str, float]]:
    """Return the change from going to the other kind and back, by the first kind; needs a training's folder."""
    checkpoint = bundle / "training" / "checkpoint.pt"
    if not checkpoint.is_file():
        return
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "cyclegan.json"))
    there, back = (parser.get_parsed_content(name).eval() for name in ("network_def", "back_def"))
    there.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    back.load_state_dict(torch.load(checkpoint, weights_only=True)["further"]["back"])
    for kind, first, second in (("low", there, back), ("high", back, there)):
        errors = []
        for name in names:
            image = torch.from_numpy(voxels(scans / "test" / kind / name))[None, None]
            with torch.no_grad():
                errors.append(float((second(first(image)) - image).abs()[image > 0.05].mean()))
        yield kind, statistics.mean(errors)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    drawing = verbs.add_parser("draw")
    drawing.add_argument("maps", type=Path)
    drawing.add_argument("out", type=Path)
    drawing.add_argument("--draws", type=int, default=2, help="scans of each subject")
    scoring = verbs.add_parser("score")
    scoring.add_argument("bundle", type=Path)
    scoring.add_argument("scans", type=Path)
    scoring.add_argument("--picture", type=Path)
    given = parser.parse_args()
    if given.verb == "draw":
        draw(given.maps, given.out, given.draws)
    else:
        score(given.bundle.absolute(), given.scans, given.picture)


if __name__ == "__main__":
    main()
