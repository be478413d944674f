"""Measure the confidence of a bundle's classifier, and the distribution of its training images' features.

    python -m medkit_classify.calibrate BUNDLE DATALIST [--write]

BUNDLE is a folder, DATALIST the file that `medkit train` was given. The temperature maximizes the likelihood of the
validation images' classes (Guo et al. 2017). If that is not enough, an offset is added for each class. No class is
given beyond the distance that a share of `--quantile` of the validation images does not exceed (Lee et al. 2018, here
one Gaussian on the statistics of several layers). `--write` writes both to the bundle: `medkit.calibration` in its
metadata, and `models/calibration.pt`. With `--unlike`, images that should get no class, a logistic regression on the
same statistics tells them from the training images too. Test images are not used. `medkit train` does the same at its
end.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from medkit_classify.choices import ClassifyChoices
from medkit_classify.facts import Given, described, facts_of, given_of
from medkit_classify.runner import BATCH_SIZE, ClassifyRunner
from medkit_classify.shifts import mildly_changed, strongly_changed

if TYPE_CHECKING:
    from medkit.inference import InferenceParts
    from medkit.training import DataList

log = logging.getLogger("medkit.training")

FILE = "models/calibration.pt"
"""File of the feature distance, in a bundle."""
QUANTILE = 0.96
"""Share of the validation images that are given a class."""
OTHER_SIZE_QUANTILE = 0.85
"""Share of the validation images, and of mild changes of them, that the odds' limit for other sizes lets pass."""
GOOD = 0.05
"""Largest calibration error on the validation images for which the temperature is enough."""
OFFSET_PENALTY = 1.0
"""Weight of the squared offsets, as a number of images; it keeps offsets small if there are few images."""
FEW = 100
"""Number of validation images below which a calibration is rough."""
BINS = 15
"""Number of bins of the expected calibration error."""


def load(
    bundle: Bundle, layers: Sequence[str], known: Mapping[Path, Given] | None = None
) -> tuple[ClassifyRunner, Runtime]:
    """Return the bundle's runner, which records the layers, on the CPU.

    layers: names of modules; empty: `default_layers`.
    known: path of an image -> its features and text.
    """
    import torch

    from medkit.inference import InferenceConfig, LoadedBundle, choose_precision

    runtime = Runtime("cpu", granted_threads(), 0)
    runtime.limit_torch()
    device = torch.device("cpu")
    parts = InferenceConfig(bundle, device).open()
    calibration = Calibration(layers=tuple(layers) or default_layers(parts))
    precision = choose_precision("auto", device)
    choices = ClassifyChoices(known=known or {})
    loaded = LoadedBundle(bundle, parts, device, precision)
    return ClassifyRunner(loaded, choices=choices, calibration=calibration), runtime


def default_layers(parts: InferenceParts) -> tuple[str, ...]:
    """Return the names of the parts of the network's `encoder`, or of the whole network if it has no such module."""
    children = dict(parts.network.named_children())
    names = tuple(children)[:-1]
    if encoder := children.get("encoder"):
        names = tuple(f"encoder.{name}" for name, _ in encoder.named_children()) or ("encoder",)
    return names[::2] if len(names) > 4 else names  # neighbours hold similar features


@dataclass(frozen=True, eq=False)
class Answers:
    """What the network makes of N images."""

    logits: np.ndarray
    """(N, C)."""
    statistics: np.ndarray
    """(N, S), see `ActivationRecorder.statistics`."""
    images: np.ndarray
    """(N, I, J[, K]) first channel of the network's input."""
    sides: tuple[int, ...]
    """Shorter side of each image as it was read, in pixels."""


def answers(runner: ClassifyRunner, runtime: Runtime, items: Sequence[Mapping[str, Any]]) -> Answers:
    """Return what the network makes of items, which name the files that the bundle reads."""
    task = Task("calibrate", ())
    inputs = [{key: Path(item[key]) for key in runner.contract.keys if key in item} for item in items]
    logits, statistics, images, sides = [], [], [], []
    for first in range(0, len(items), BATCH_SIZE):
        cases = [
            Case(CasePlan(Record(files["image"]), files, Targets({})), task, RunOptions(), runtime)
            for files in inputs[first : first + BATCH_SIZE]
        ]
        answered = runner.together(cases, [runner.prepare(case) for case in cases])
        for question in (question for questions in answered for question in questions):
            assert question.prepared is not None
            if question.statistics is None:
                raise InputError(f"bundle {runner.bundle.name}: expected a network with layers, got a TorchScript one")
            logits.append(question.prepared.item["pred"].float().numpy().reshape(-1))
            statistics.append(question.statistics)
            images.append(np.asarray(question.prepared.item["image"][0], np.float32))
            sides.append(question.side)
    return Answers(np.array(logits, np.float64), np.array(statistics, np.float64), np.array(images), tuple(sides))


def log_likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """Return the mean logarithm of the probabilities of (N,) labels, from (N, C) logits.

    A label counts as right with (N + 1) / (N + 2) only (Platt 1999): without that, images that are all classified
    rightly would make the network as sure as it can be, however few they are.
    """
    from scipy.special import log_softmax

    logs = np.maximum(log_softmax(logits / temperature, axis=1), -30)
    own = logs[np.arange(len(labels)), labels]
    others = (logs.sum(axis=1) - own) / max(1, logs.shape[1] - 1)
    wrong = 1 / (len(labels) + 2)
    return float(((1 - wrong) * own + wrong * others).mean())


def best_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature with which (N,) labels are most probable, from (N, C) logits."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda t: -log_likelihood(logits, labels, float(np.exp(t))), bounds=(-3, 3), method="bounded"
    )
    return float(np.exp(found.x))


def best_scaling(logits: np.ndarray, labels: np.ndarray) -> tuple[float, tuple[float, ...]]:
    """Return the temperature and the classes' offsets with which labels are most probable; the offsets sum to 0."""
    from scipy.optimize import minimize

    def cost(values: np.ndarray) -> float:
        temperature, offsets = float(np.exp(values[0])), np.append(values[1:], -values[1:].sum())
        penalty = OFFSET_PENALTY / len(labels) * float((offsets**2).sum())
        return penalty - log_likelihood(logits + temperature * offsets, labels, temperature)

    found = minimize(cost, np.zeros(logits.shape[1]), method="Nelder-Mead")
    return float(np.exp(found.x[0])), (*map(float, found.x[1:]), -float(found.x[1:].sum()))


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error of (N, C) probabilities, over bins of confidence of equal width."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    return sum(abs(float((confidence - right)[place == b].sum())) for b in range(bins)) / len(labels)


def calibrated(
    bundle: Bundle,
    datalist: Path,
    layers: Sequence[str],
    quantile: float,
    features: str | None = None,
    text: str | None = None,
    unlike: Sequence[Path] = (),
) -> tuple[dict[str, Any], FeatureDistance]:
    """Return the block for the metadata, and the distance from the training images. Raises InputError.

    features, text: what a bundle that reads more than images was trained with, as for `medkit run classify`.
    unlike: folders of images that should get no class.
    """
    from medkit.training import find_items

    items = find_items(datalist, ["image", "label"])
    return calibrated_on(bundle, items, datalist, layers, quantile, features, text, unlike)


def calibrated_on(
    bundle: Bundle,
    items: DataList,
    source: Path,
    layers: Sequence[str] = (),
    quantile: float = QUANTILE,
    features: str | None = None,
    text: str | None = None,
    unlike: Sequence[Path] = (),
) -> tuple[dict[str, Any], FeatureDistance]:
    """Return the same from the items of a training, which `source` stands for in errors. Raises InputError."""
    known = facts_of_items(bundle, (*items.training, *items.validation), source, features, text)
    runner, runtime = load(bundle, layers, known)
    training = answers(runner, runtime, items.training)
    validation = answers(runner, runtime, items.validation)
    logits = validation.logits
    labels = np.array([item["label"] for item in items.validation], int).reshape(len(logits), -1)
    aspects = runner.contract.aspects or {"": tuple(range(logits.shape[1]))}
    if labels.shape[1] != len(aspects):
        raise InputError(f"{source}: expected {len(aspects)} classes of each image, got {labels.shape[1]}")
    scalings = {name: scaling(logits[:, own], labels[:, n]) for n, (name, own) in enumerate(aspects.items())}
    feature_distance = FeatureDistance.fitted(training.statistics)
    odds: dict[str, Any] = {}
    if unlike:
        others = answers(runner, runtime, _images_in(unlike))
        feature_distance, odds = _with_odds(runner, feature_distance, training, validation, others, quantile)
        quantile = _half_the_rest(quantile)
    distances = feature_distance.distances(validation.statistics)
    return {
        **(scalings.get("") or {"aspects": scalings}),
        "threshold": round(float(np.quantile(distances, quantile)), 4),
        **odds,
        "sides": [min(training.sides), max(training.sides)],
        "layers": list(runner.calibration.layers),
        "file": FILE,
        "weights_sha256": sha256_of(bundle.weights),
        "quantile": quantile,
        "validation_images": len(labels),
    }, feature_distance


def _half_the_rest(quantile: float) -> float:
    """Return the share of images that each of two limits lets pass, so that both together let pass about `quantile`."""
    return 1 - (1 - quantile) / 2


def _images_in(folders: Sequence[Path]) -> list[dict[str, Any]]:
    from medkit.training import find_items

    found = [find_items(folder, ["image"]) for folder in folders]
    return [item for items in found for item in (*items.training, *items.validation)]


def _with_odds(
    runner: ClassifyRunner,
    distance: FeatureDistance,
    training: Answers,
    validation: Answers,
    others: Answers,
    quantile: float,
) -> tuple[FeatureDistance, dict[str, Any]]:
    """Return the distance with weights that tell images like the training's from others, and the limits of the odds.

    Like are the training images, and mild changes of them; unlike are `others`, mild changes of them, and strong ones
    of training images. Mild changes keep the weights from learning how the images were reduced to the network's size.
    Raises InputError for a bundle of volumes.
    """
    if training.images.ndim != 3:
        raise InputError(f"bundle {runner.bundle.name}: --unlike is for bundles of planes")
    rng = np.random.default_rng(0)
    changed = [runner.statistics_of(mildly_changed(part.images, rng)) for part in (training, validation, others)]
    strange = runner.statistics_of(strongly_changed(training.images[: len(others.images)], rng))
    like = np.concatenate([training.statistics, changed[0]])
    weighed = distance.with_weights(like, np.concatenate([others.statistics, changed[2], strange]))
    own = weighed.odds(validation.statistics)
    every = np.concatenate([own, weighed.odds(changed[1])])
    limits = {
        "same_size": round(float(np.quantile(own, _half_the_rest(quantile))), 4),
        "other_size": round(float(np.quantile(every, OTHER_SIZE_QUANTILE)), 4),
        "spread": round(float(own.std()), 4),
    }
    return weighed, {"odds": limits, "unlike_images": len(others.images)}


def facts_of_items(
    bundle: Bundle, items: Sequence[Mapping[str, Any]], datalist: Path, features: str | None, text: str | None
) -> dict[Path, Given]:
    """Return path of an image -> its facts; empty if the bundle reads only images. Raises InputError."""
    if (facts := facts_of(bundle)) is None:
        return {}
    known = {Path(item["image"]): given_of(item) for item in described(items, features, text)}
    texts = [given.text for given in known.values() if given.text is not None]
    everything = {name: value for given in known.values() for name, value in given.features.items()}
    facts.require(Given(everything, texts[0] if texts else None), datalist)
    return known


def scaling(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return how (N, C) logits become the confidence, and the calibration error on the (N,) labels before and after."""
    from scipy.special import softmax

    temperature, offsets = best_temperature(logits, labels), (0.0,) * logits.shape[1]
    if calibration_error(softmax(logits / temperature, axis=1), labels) > GOOD:
        temperature, offsets = best_scaling(logits, labels)
    return {
        "temperature": round(temperature, 4),
        "offsets": [round(value, 4) for value in offsets],
        "calibration_error": {
            "before": round(calibration_error(softmax(logits, axis=1), labels), 4),
            "after": round(calibration_error(softmax(logits / temperature + offsets, axis=1), labels), 4),
        },
    }


def write(bundle: Bundle, block: dict[str, Any], feature_distance: FeatureDistance) -> None:
    """Write both to the bundle."""
    import torch

    with whole(bundle.root / FILE) as file:
        torch.save(feature_distance.state(), file)
    metadata = json.loads(json.dumps(bundle.metadata))
    metadata.setdefault("medkit", {})["calibration"] = block
    write_atomically(bundle.root / "configs" / "metadata.json", json.dumps(metadata, indent=4) + "\n")


def after_training(root: Path, items: DataList, settings: Mapping[str, Any]) -> None:
    """Calibrate the bundle that `medkit train` has made in the folder `root`, and say how well it is.

    items: those of the training, with the numbers of their classes. settings: the values of `--set`. A training without
    classes, such as one that learns an encoder, is left as it is. Raises MedkitError.
    """
    every = (*items.training, *items.validation)
    if not items.validation or not all("image" in item and _is_class(item.get("label")) for item in every):
        return
    bundle = Bundle(root, root.name, "classify")
    if bundle.block.get("calibration", {}).get("weights_sha256") == sha256_of(bundle.weights):
        return
    facts = {key: str(settings[key]) if settings.get(key) else None for key in ("features", "text")}
    block, feature_distance = calibrated_on(bundle, items, root, (), QUANTILE, facts["features"], facts["text"])
    write(bundle, block, feature_distance)
    error = block.get("calibration_error") or next(iter(block["aspects"].values()))["calibration_error"]
    log.info(
        "calibrated on %d validation images: calibration error %.3f, before %.3f; %.0f %% of them are given a class",
        block["validation_images"], error["after"], error["before"], 100 * QUANTILE,
    )  # fmt: skip
    if block["validation_images"] < FEW:
        log.warning(
            "%d validation images are few: how sure a class is, and which images get none, is known roughly only",
            block["validation_images"],
        )


def _is_class(label: Any) -> bool:
    """Return whether an item's label is the number of a class, or a list of them for several aspects."""
    numbers = label if isinstance(label, list | tuple) and label else [label]
    return all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)


def main() -> None:
    """Calibrate the bundle that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=absolute, metavar="BUNDLE")
    parser.add_argument("datalist", type=absolute, metavar="DATALIST")
    parser.add_argument("--layers", nargs="*", default=(), help="Names of modules.  [default: the parts of `encoder`]")
    parser.add_argument("--quantile", type=float, default=QUANTILE)
    parser.add_argument(
        "--features", metavar="TABLE", help="For a bundle that reads them, as in `medkit run classify`."
    )
    parser.add_argument(
        "--text", metavar="FILE|FOLDER|COLUMN", help="As for `medkit run classify`, for a bundle that reads texts."
    )
    parser.add_argument(
        "--unlike",
        type=absolute,
        nargs="*",
        default=(),
        metavar="FOLDER",
        help="Images that should get no class, of another population or device; for bundles of planes.",
    )
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    try:
        bundle = Bundle(given.bundle, given.bundle.name, "classify")
        block, feature_distance = calibrated(
            bundle, given.datalist, given.layers, given.quantile, given.features, given.text, given.unlike
        )
        if given.write:
            write(bundle, block, feature_distance)
    except MedkitError as error:
        sys.exit(f"calibrate: {error}")
    print(json.dumps(block, indent=1))


if __name__ == "__main__":
    main()
