"""Does pretraining without labels help with few labels?

    python tests/benchmarks/few_labels.py [--data FOLDER] [--set pneumonia|adrenal] [--share 0.05] [--seeds 5]
        [--pretrain-steps 1000] [--steps 300]

For each seed the bundle's encoder is pretrained on all training images of a set, without their labels
(`medkit train classify --config train,pretrain`); then a share of the training and of the validation images of each
class is drawn, and the bundle is trained on only these, the same steps each time: from random parameters, from the
pretrained encoder (`--init-from`), and with that encoder frozen (`--freeze encoder`). It prints AUC and accuracy on
the official test set, their means and spreads, and the differences from random parameters seed by seed.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from medkit_classify.calibrate import answers, load
from scipy.stats import rankdata

from medkit.bundles.bundle import Bundle
from medkit.training.class_data import unpack
from medkit.training.engine import train
from medkit.training.plan import TrainingPlan

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
WAYS = ("random", "pretrained", "frozen")


@dataclass(frozen=True)
class Set:
    """Images with labels, and the bundle for them."""

    sources: tuple[str, ...]
    """Below the folder of the data; the first one's validation and test images count."""
    bundle: str


SETS = {
    "pneumonia": Set(
        ("chest_xray/pneumonia_a_pneumoniamnist.npz", "chest_xray/pneumonia_b_pneumoniamnist.npz"),
        "chest_xray_classification",
    ),
    "adrenal": Set(("adrenal_shapes/adrenal_adrenalmnist3d_64.npz",), "adrenal_shape_classification"),
}


def drawn(items: Sequence[Mapping[str, Any]], share: float, seed: int) -> list[Mapping[str, Any]]:
    """A share of the items of each class, two at least."""
    rng = np.random.default_rng(seed)
    out = []
    for label in sorted({item["label"] for item in items}):
        own = [item for item in items if item["label"] == label]
        out += [own[n] for n in rng.choice(len(own), max(2, round(share * len(own))), replace=False)]
    return out


def written(folder: Path, name: str, training: Sequence[Any], validation: Sequence[Any]) -> Path:
    """Write a datalist next to the images."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"training": list(training), "validation": list(validation)}))
    return path


def trained(
    bundle: Bundle, data: Path, out: Path, options: argparse.Namespace, seed: int, steps: int, **more: Any
) -> Bundle:
    """A new bundle."""
    plan = TrainingPlan(
        "classify",
        bundle,
        out,
        data=data,
        seed=seed,
        steps=steps,
        device=options.device,
        threads=options.threads,
        **more,
    )
    return Bundle(train(plan).bundle, bundle.name, "classify")


def scores(bundle: Bundle, folder: Path, items: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """AUC and accuracy on test images."""
    runner, runtime = load(bundle, ())
    logits, _ = answers(runner, runtime, [{"image": folder / item["image"]} for item in items])
    margin, positive = logits[:, 1] - logits[:, 0], np.array([item["label"] for item in items]) == 1
    count = int(positive.sum())
    auc = (rankdata(margin)[positive].sum() - count * (count + 1) / 2) / (count * (len(margin) - count))
    return float(auc), float(((margin > 0) == positive).mean())


def of_seed(
    chosen: Set, folder: Path, options: argparse.Namespace, seed: int
) -> tuple[int, dict[str, tuple[float, float]]]:
    """The labels used, and for each way AUC and accuracy."""
    listed = json.loads((folder / "dataset.json").read_text())
    bundle = Bundle(BUNDLES / chosen.bundle, chosen.bundle, "classify")
    parts = [[{"image": item["image"]} for item in listed[part]] for part in ("training", "validation")]
    with tempfile.TemporaryDirectory(prefix="few-labels-") as name:
        work = Path(name)
        unlabelled = written(folder, "unlabelled", *parts)
        first = trained(
            bundle, unlabelled, work / "pre", options, seed, options.pretrain_steps, config="train,pretrain"
        )
        few = [drawn(listed[part], options.share, seed) for part in ("training", "validation")]
        data = written(folder, "few", *few)
        ways: dict[str, dict[str, Any]] = {
            "random": {},
            "pretrained": {"init_from": first.weights},
            "frozen": {"init_from": first.weights, "freeze": ("encoder",)},
        }
        found = {}
        for way in WAYS:
            made = trained(bundle, data, work / way, options, seed, options.steps, **ways[way])
            found[way] = scores(made, folder, listed["test"])
    return sum(map(len, few)), found


def main() -> None:
    """Runs and prints a row per seed and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--set", choices=SETS, default="pneumonia")
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pretrain-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    chosen = SETS[options.set]
    if absent := [name for name in chosen.sources if not (options.data / name).is_file()]:
        raise SystemExit(f"{options.data / absent[0]} is not there; give --data FOLDER")
    logging.getLogger("medkit.training").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="few-labels-") as name:
        unpack([options.data / source for source in chosen.sources], Path(name))
        columns = [f"{what} {way}" for what in ("AUC", "accuracy") for way in WAYS]
        print(f"| seed | labels | {' | '.join(columns)} | s |")
        print("|" + "---|" * (2 * len(WAYS) + 3))
        rows = []
        for seed in range(options.seeds):
            start = time.perf_counter()
            labels, found = of_seed(chosen, Path(name), options, seed)
            rows.append(found)
            cells = [found[way][n] for n in (0, 1) for way in WAYS]
            seconds = time.perf_counter() - start
            print(f"| {seed} | {labels} | {' | '.join(f'{c:.4f}' for c in cells)} | {seconds:.0f} |", flush=True)
    for n, what in enumerate(("AUC", "accuracy")):
        for way in WAYS:
            gains = [row[way][n] - row["random"][n] for row in rows]
            more = "" if way == "random" else f", difference {_spread(gains)}"
            print(f"{what}, {way}: {_spread([row[way][n] for row in rows])}{more}")


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.4f} (sd {statistics.stdev(values) if len(values) > 1 else 0:.4f})"


if __name__ == "__main__":
    main()
