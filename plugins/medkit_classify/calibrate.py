"""Measures how sure a bundle's classifier may be, and where the features of its training images lie.

    python -m medkit_classify.calibrate BUNDLE DATALIST [--write]

BUNDLE is a folder, DATALIST what `medkit train` was given. The temperature is the one with which the classes of the
validation images are most probable (Guo et al. 2017), with an offset for each class where that is not enough; the
distance beyond which no class is given is the one that a share of `--quantile` of them does not reach (Lee et al. 2018,
here one Gaussian on the statistics of several layers). `--write` puts both into the bundle (`medkit.calibration` in its
metadata, `models/calibration.pt`); test images are never looked at.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import InputError, MedkitError
from medkit.inference import Bundle
from medkit.options import RunOptions
from medkit.task import (
    Case,
    CasePlan,
    Record,
    Runtime,
    Targets,
    Task,
    absolute,
    granted_threads,
    sha256_of,
    whole,
    write_atomically,
)
from medkit_classify.calibration import Calibration, FeatureDistance
from medkit_classify.facts import Given, described, facts_of, given_of
from medkit_classify.question import Question
from medkit_classify.task import ClassifyChoices, ClassifyRunner

if TYPE_CHECKING:
    from medkit.inference import InferenceParts

FILE = "models/calibration.pt"
QUANTILE = 0.96
"""Share of the validation images that are answered about."""
GOOD = 0.05
"""Calibration error on the validation images above which a temperature alone is not enough."""
PULL = 1.0
"""Weight of the squared offsets, in images: few images change them little."""
BINS = 15
"""Of the expected calibration error."""


def load(
    bundle: Bundle, layers: Sequence[str], known: Mapping[Path, Given] | None = None
) -> tuple[ClassifyRunner, Runtime]:
    """The bundle's runner, which watches the layers, on the CPU; `known` is what is known of images beside them."""
    import torch

    from medkit.inference import InferenceConfig, choose_precision

    runtime = Runtime("cpu", granted_threads(), 0)
    runtime.limit_torch()
    device = torch.device("cpu")
    parts = InferenceConfig(bundle, device).open()
    judge = Calibration(layers=tuple(layers) or default_layers(parts))
    precision = choose_precision("auto", device)
    return ClassifyRunner(
        bundle, parts, device, precision, None, wishes=ClassifyChoices(known=known or {}), judge=judge
    ), runtime


def default_layers(parts: InferenceParts) -> tuple[str, ...]:
    """The parts of the network's `encoder`, or all of the network where nothing is called so."""
    own = dict(parts.network.named_children())
    names = tuple(own)[:-1]
    if encoder := own.get("encoder"):
        names = tuple(f"encoder.{name}" for name, _ in encoder.named_children()) or ("encoder",)
    return names[::2] if len(names) > 4 else names  # neighbours say much the same


def answers(
    runner: ClassifyRunner, runtime: Runtime, items: Sequence[Mapping[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """The logits (N, C) and layers' statistics (N, L) of items, which name the files that the bundle reads."""
    task = Task("calibrate", ())
    inputs = [{key: Path(item[key]) for key in runner.contract.keys if key in item} for item in items]
    logits, levels = [], []
    for first in range(0, len(items), 64):
        cases = [
            Case(CasePlan(Record(given["image"]), given, Targets({})), task, RunOptions(), runtime)
            for given in inputs[first : first + 64]
        ]
        asked: list[Question] = [
            q for found in runner.together(cases, [runner.prepare(c) for c in cases]) for q in found
        ]
        for question in asked:
            assert question.prepared is not None
            if question.levels is None:
                raise InputError(f"bundle {runner.bundle.name}: its network shows nothing of its layers")
            logits.append(question.prepared.item["pred"].float().numpy().reshape(-1))
            levels.append(question.levels)
    return np.array(logits, np.float64), np.array(levels, np.float64)


def log_likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """The mean logarithm of the probabilities (N, C) logits give to (N,) labels."""
    return float(np.log(softmax(logits / temperature)[np.arange(len(labels)), labels].clip(min=1e-12)).mean())


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, C) probabilities."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    out: np.ndarray = powers / powers.sum(1, keepdims=True)
    return out


def best_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with which labels are most probable."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda t: -log_likelihood(logits, labels, float(np.exp(t))), bounds=(-3, 3), method="bounded"
    )
    return float(np.exp(found.x))


def best_scaling(logits: np.ndarray, labels: np.ndarray) -> tuple[float, tuple[float, ...]]:
    """The temperature and the offsets of the classes, which add up to 0, with which labels are most probable."""
    from scipy.optimize import minimize

    def cost(values: np.ndarray) -> float:
        temperature, offsets = float(np.exp(values[0])), np.append(values[1:], -values[1:].sum())
        pull = PULL / len(labels) * float((offsets**2).sum())
        return pull - log_likelihood(logits + temperature * offsets, labels, temperature)

    found = minimize(cost, np.zeros(logits.shape[1]), method="Nelder-Mead")
    return float(np.exp(found.x[0])), (*map(float, found.x[1:]), -float(found.x[1:].sum()))


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """The expected calibration error of (N, C) probabilities: confidence minus accuracy, over bins of equal width."""
    sure, right = probabilities.max(1), probabilities.argmax(1) == labels
    place = np.minimum((sure * bins).astype(int), bins - 1)
    return sum(abs(float((sure - right)[place == b].sum())) for b in range(bins)) / len(labels)


def calibrated(
    bundle: Bundle,
    datalist: Path,
    layers: Sequence[str],
    quantile: float,
    features: str | None = None,
    text: str | None = None,
) -> tuple[dict[str, Any], FeatureDistance]:
    """The block for the metadata, and where the features of the training images lie. Raises InputError.

    `features` and `text` are what a bundle that reads more than images was trained with.
    """
    from medkit.training import find_items

    items = find_items(datalist, ["image", "label"])
    known = {}
    if facts := facts_of(bundle):
        found = described((*items.training, *items.validation), features, text)
        known = {Path(item["image"]): given_of(item) for item in found}
        texts = [given.text for given in known.values() if given.text is not None]
        everything = {name: value for given in known.values() for name, value in given.features.items()}
        facts.want(Given(everything, texts[0] if texts else None), datalist)
    runner, runtime = load(bundle, layers, known)
    _, seen = answers(runner, runtime, items.training)
    logits, levels = answers(runner, runtime, items.validation)
    labels = np.array([item["label"] for item in items.validation], int).reshape(len(logits), -1)
    aspects = runner.contract.aspects or {"": tuple(range(logits.shape[1]))}
    if labels.shape[1] != len(aspects):
        raise InputError(f"{datalist}: expected {len(aspects)} classes of each image, got {labels.shape[1]}")
    scalings = {
        aspect: scaling(logits[:, numbers], labels[:, n]) for n, (aspect, numbers) in enumerate(aspects.items())
    }
    familiarity = FeatureDistance.fitted(seen)
    distances = familiarity.distances(levels)
    return {
        **(scalings.get("") or {"aspects": scalings}),
        "threshold": round(float(np.quantile(distances, quantile)), 4),
        "layers": list(runner.judge.layers),
        "file": FILE,
        "weights_sha256": sha256_of(bundle.weights),
        "quantile": quantile,
        "validation_images": len(labels),
    }, familiarity


def scaling(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """How (N, C) logits become the confidence, and the calibration error on the (N,) labels before and after."""
    temperature, offsets = best_temperature(logits, labels), (0.0,) * logits.shape[1]
    if calibration_error(softmax(logits / temperature), labels) > GOOD:
        temperature, offsets = best_scaling(logits, labels)
    return {
        "temperature": round(temperature, 4),
        "offsets": [round(value, 4) for value in offsets],
        "calibration_error": {
            "before": round(calibration_error(softmax(logits), labels), 4),
            "after": round(calibration_error(softmax(logits / temperature + offsets), labels), 4),
        },
    }


def write(bundle: Bundle, block: dict[str, Any], familiarity: FeatureDistance) -> None:
    """Puts both into the bundle."""
    import torch

    with whole(bundle.root / FILE) as file:
        torch.save(familiarity.state(), file)
    metadata = json.loads(json.dumps(bundle.metadata))
    metadata.setdefault("medkit", {})["calibration"] = block
    write_atomically(bundle.root / "configs" / "metadata.json", json.dumps(metadata, indent=4) + "\n")


def main() -> None:
    """Calibrate what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=absolute, metavar="BUNDLE")
    parser.add_argument("datalist", type=absolute, metavar="DATALIST")
    parser.add_argument("--layers", nargs="*", default=(), help="Names of modules.  [default: the parts of `encoder`]")
    parser.add_argument("--quantile", type=float, default=QUANTILE)
    parser.add_argument("--features", metavar="TABLE", help="As in `medkit run classify`, where a bundle reads them.")
    parser.add_argument("--text", metavar="FILE|FOLDER|COLUMN", help="The same.")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    try:
        bundle = Bundle(given.bundle, given.bundle.name, "classify")
        block, familiarity = calibrated(
            bundle, given.datalist, given.layers, given.quantile, given.features, given.text
        )
        if given.write:
            write(bundle, block, familiarity)
    except MedkitError as error:
        sys.exit(f"calibrate: {error}")
    print(json.dumps(block, indent=1))


if __name__ == "__main__":
    main()
