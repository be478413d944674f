"""What a training writes into the new bundle: weights, figures in the metadata, model card and learning curve."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit import __version__
from medkit.bundles.bundle import WEIGHTS, Bundle
from medkit.bundles.requirements import with_versions_here
from medkit.pipe.atomic import whole, write_atomically
from medkit.training.checkpoint import save_whole
from medkit.training.parts.samples import Samples, UnpairedSamples
from medkit.training.plan import TrainingPlan
from medkit.training.report.curve import draw_curve
from medkit.training.report.history import HistoryRow
from medkit.training.report.overlay import with_meta
from medkit.training.weights import copied

if TYPE_CHECKING:
    import numpy as np
    import torch

    from medkit.training.config import TrainingParts

CARD, LICENCE = "README.md", "data_license.txt"
"""Texts of a bundle in its folder `docs`."""
BASE_ = "base_"
"""Start of the names of the base's texts in a new bundle."""
_STATED = (
    *("name", "task", "description", "authors", "copyright", "intended_use", "data_source", "data_type"),
    *("image_classes", "label_classes", "pred_classes", "eval_metrics", "references", "changelog"),
)
"""Keys of the metadata that are about the base's weights, its data and its authors."""
_MEASURED = ("training", "calibration", "expected_dice", "trust", "next_step", "use", "own_classes", "base")
"""Keys of medkit's part of the metadata that are: what was measured on the base, its purpose, and its advice."""
BEGIN, END = "<!-- medkit train: begin -->", "<!-- medkit train: end -->"
"""Marks around the part of the model card that a training writes; the rest belongs to the authors."""
CURVE = "docs/learning_curve.png"
SAMPLES = "docs/samples.png"
SHOWN = 12
"""Number of samples in the picture."""


@dataclass(frozen=True)
class Best:
    """The validation that chose the weights."""

    step: int
    value: float
    per_class: tuple[float, ...] = ()
    """Metric of every class, if the config's metric keeps them (`save_details`)."""


@dataclass(frozen=True)
class Figures:
    """Figures of a training, for metadata and model card."""

    step: int
    seconds: float
    items: int
    validation_items: int
    parameters: int
    trained_parameters: int
    device: str
    precision: str
    metric_name: str | None
    best: Best | None
    ranks: int = 1
    """Number of processes that trained together."""
    skipped_steps: int = 0
    """Steps without an update, because the loss or a gradient was not finite."""
    subjects: tuple[int, int] = (0, 0)
    """Number of subjects that train and that validate."""
    early: str = ""
    """Why the training ended early; empty if it did not."""


def write_weights(folder: Path, weights: Mapping[str, torch.Tensor], dtype: str) -> None:
    """Write the state dict that the bundle's inference loads; floating-point numbers as `dtype`."""
    import torch

    save_whole(folder / WEIGHTS, copied(weights, getattr(torch, dtype)))


def write_samples(folder: Path, parts: TrainingParts) -> None:
    """Draw samples from the start to the end of the training, as the network will see them, if they are images."""
    from medkit.figures.mosaic import sample_sheet, write_png

    loader = parts.trainer.data_loader
    if not isinstance(dataset := getattr(loader, "dataset", None), Samples | UnpairedSamples):
        return  # samples of other datasets depend on earlier ones, so drawing them here would change the training
    pairs: list[tuple[np.ndarray, np.ndarray | None]] = []
    for number in range(SHOWN):
        sample = dataset[number * parts.steps * (loader.batch_size or 1) // SHOWN]
        if isinstance(sample, list) and sample:  # of a transform that takes several patches of an image
            sample = sample[0]
        if isinstance(dataset, UnpairedSamples):
            shown = [_first_channel(sample, key) for key in sample]
            pairs += [(image, None) for image in shown if image is not None]
            continue
        image, labels = (_first_channel(sample, key) for key in ("image", "label"))
        if image is None:
            return
        pairs.append((image, labels if labels is not None and labels.shape == image.shape else None))
    with whole(folder / SAMPLES) as file:
        write_png(sample_sheet(pairs), file)


def _first_channel(sample: Any, key: str) -> np.ndarray | None:
    """Return the first channel of a sample's image (C, I, J, K) or (C, I, J); None if it has no such image."""
    import numpy as np

    if not isinstance(sample, Mapping) or key not in sample:
        return None
    value = sample[key]
    array = np.asarray(value.cpu() if hasattr(value, "cpu") else value)
    return array[0] if array.ndim in (3, 4) else None


def start_texts(plan: TrainingPlan, folder: Path) -> None:
    """Set the texts of the base aside in a new bundle, a copy of it: they are about other weights and other data."""
    docs = folder / "docs"
    for name in (CARD, *([LICENCE] if plan.data is not None else [])):  # else the data are those that a config names
        if (docs / name).is_file():
            os.replace(docs / name, docs / f"{BASE_}{name}")
    write_atomically(docs / CARD, _new_card(plan, folder.name, there=(docs / f"{BASE_}{CARD}").is_file()))


def _new_card(plan: TrainingPlan, name: str, *, there: bool) -> str:
    base = f"{plan.bundle.name} {plan.bundle.version}"
    link = f"its card is [{BASE_}{CARD}]({BASE_}{CARD})" if there else "it has no card"
    return f"""# {name}

A bundle for `{plan.task}`, which `medkit train` made from {base}, the base. The weights are others: what the base's
authors state about purpose, data, figures and limits does not hold here ({link}). What is known of these weights is
below, and in `eval_metrics` of the metadata.
"""


def write_texts(
    folder: Path, plan: TrainingPlan, figures: Figures, rows: Sequence[HistoryRow], class_names: Sequence[str] = ()
) -> None:
    """Write metadata, model card, note on the data's licence and learning curve, each completely or not at all.

    class_names: the names of the classes that were learnt, if the config learns classes.
    """
    write_atomically(folder / CURVE, draw_curve(rows, figures.metric_name, f"{folder.name}: training"))
    metadata = new_metadata(plan, figures, folder.name, class_names)
    write_atomically(folder / "configs" / "metadata.json", json.dumps(metadata, indent=4) + "\n")
    card = folder / "docs" / CARD
    pictures = {"learning curve": CURVE, "samples, from the first steps to the last": SAMPLES}
    pictures = {title: name for title, name in pictures.items() if (folder / name).is_file()}
    text = card.read_text(encoding="utf-8") if card.is_file() else f"# {folder.name}\n"
    names = _class_names(metadata, figures)
    write_atomically(card, with_section(text, _section(plan, figures, names, pictures, class_names)))
    path = folder / "docs" / LICENCE
    if plan.data is not None and not path.is_file():
        write_atomically(path, _DATA_NOTE)


_DATA_NOTE = f"""The weights in models/model.pt were trained by `medkit train` on data of its user (see README.md),
under the terms of those data. The weights of the base and their data: {BASE_}{LICENCE}, if the base states them.
"""


def new_metadata(
    plan: TrainingPlan, figures: Figures, name: str = "", class_names: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the metadata of the new bundle called `name`.

    What the base's network takes and returns stays. What its authors state about their weights, data and purpose is
    not true of the new ones: it stands under `medkit.base` only, and figures are those of this training.
    """
    metadata, block, stated_base = without_claims(plan.bundle)
    metadata = with_versions_here(metadata)  # those it is made with
    base = {"name": plan.bundle.name, "version": plan.bundle.version}
    version = bumped(plan.bundle.version)
    best = figures.best
    line = f"trained by medkit train from {plan.bundle.name} {plan.bundle.version}: {figures.step} steps, "
    line += f"{figures.items} items" + (f", validation {figures.metric_name} {best.value:.4g}" if best else "")
    metadata |= {
        "version": version,
        "changelog": {version: line},
        "name": name or plan.output.name,
        "task": f"{plan.task}: {', '.join(class_names)}" if class_names else plan.task,
        "description": f"Made by medkit train from {plan.bundle.name} {plan.bundle.version}, with other weights.",
        "authors": "not stated",
        "copyright": "not stated; that of the base's configs and code is in LICENSE",
        "intended_use": "Not stated. Research only, not a medical device.",
        "data_source": "data of the user of medkit train",
        "eval_metrics": {f"validation_{_slug(str(figures.metric_name))}": round(best.value, 6)} if best else {},
    }
    if class_names:
        name_classes(metadata, block, class_names)
    metadata["medkit"] = block | {
        "task": plan.task,
        "base": stated_base,
        "training": {
            "base": base,
            "medkit_version": __version__,
            "config": plan.config,
            "steps": figures.step,
            "hours": round(figures.seconds / 3600, 4),
            "items": figures.items,
            "validation_items": figures.validation_items,
            "subjects": figures.subjects[0],
            "validation_subjects": figures.subjects[1],
            "parameters": figures.parameters,
            "trained_parameters": figures.trained_parameters,
            "seed": plan.seed,
            "device": figures.device,
            "precision": figures.precision,
            "metric": figures.metric_name,
            "best": best.value if best else None,
            "best_step": best.step if best else None,
            **({"ranks": figures.ranks} if figures.ranks > 1 else {}),
            **({"folds": plan.folds, "fold": plan.fold} if plan.folds else {}),
            **({"patience": plan.patience, "stopped_early": bool(figures.early)} if plan.patience is not None else {}),
        },
    }
    return with_meta(dict(metadata), plan)


def without_claims(bundle: Bundle) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return what stays true of a bundle's metadata for other weights, medkit's part of them, and a note on the base.

    The note is what the base's authors state about their weights, data and purpose.
    """
    metadata = json.loads(json.dumps(bundle.metadata))
    stated = {key: metadata.pop(key) for key in _STATED if key in metadata}
    block = metadata.pop("medkit", None)
    kept = {k: v for k, v in block.items() if k not in _MEASURED} if isinstance(block, dict) else {}
    return metadata, kept, {"name": bundle.name, "version": bundle.version, "stated": stated}


def _slug(name: str) -> str:
    return re.sub(r"\W+", "_", name.lower()).strip("_")


def name_classes(metadata: dict[str, Any], block: dict[str, Any], names: Sequence[str]) -> None:
    """Put the names of the classes into the description of the output, and leave out what is about others."""
    formats = metadata.get("network_data_format", {})
    outputs = formats.get("outputs", {})
    made: dict[str, Any] = outputs.get("pred") or next(iter(outputs.values()), {})
    known = list(made.get("channel_def", {}).values())
    count = len(names)
    made |= {"num_channels": count, "spatial_shape": [1, count]}
    made["channel_def"] = {str(number): name for number, name in enumerate(names)}
    if sorted(known) == sorted(names):
        return
    # other classes are other images: of what kind they are, the data do not say
    block.pop("modality", None)
    for tensor in formats.get("inputs", {}).values():
        tensor.pop("modality", None)
    if isinstance(codes := block.get("codes"), Mapping):
        block["codes"] = {name: code for name, code in codes.items() if name in names}
    if isinstance(flagged := block.get("flagged"), list):
        block["flagged"] = [name for name in flagged if name in names]


def bumped(version: str) -> str:
    """Return the next version.

    >>> bumped("0.1.9"), bumped("2024")
    ('0.1.10', '2024.1')
    """
    head, _, last = version.rpartition(".")
    return f"{head}.{int(last) + 1}" if head and last.isdigit() else f"{version}.1"


def with_section(text: str, section: str, begin: str = BEGIN, end: str = END) -> str:
    """Return a model card with the part between two marks replaced, or added at its end; the rest of the text stays."""
    block = f"{begin}\n{section.strip()}\n{end}"
    if begin in text and end in text:
        return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: block, text, count=1, flags=re.DOTALL)
    return f"{text.rstrip()}\n\n{block}\n"


def _section(
    plan: TrainingPlan,
    figures: Figures,
    names: Sequence[str],
    pictures: Mapping[str, str],
    class_names: Sequence[str] = (),
) -> str:
    best = figures.best
    ranks = f"{figures.ranks} ranks, " if figures.ranks > 1 else ""
    rows = [
        ("started from", f"{plan.bundle.name} {plan.bundle.version}, config `{plan.config}`"
         + (f", parameters of `{plan.init_from.name}`" if plan.init_from else ", random parameters")),
        *([("classes", ", ".join(class_names))] if class_names else []),
        ("data", f"{figures.items} items for training, {figures.validation_items} for validation"),
        ("subjects", f"{figures.subjects[0]} for training, {figures.subjects[1]} for validation"
         + (f"; {plan.split.text}" if plan.folds else "")),
        ("steps", f"{figures.step} in {figures.seconds / 3600:.2f} h"
         + (f"; {figures.skipped_steps} without an update" if figures.skipped_steps else "")
         + (f"; stopped early: {figures.early}" if figures.early else "")),
        ("computed on", f"{figures.device}, {ranks}{figures.precision}, seed {plan.seed}, medkit {__version__}"),
        ("parameters", f"{figures.parameters:,}, {figures.trained_parameters:,} of them trained"),
        ("weights", f"chosen by validation: {figures.metric_name} {best.value:.4f} at step {best.step}"
         if best else "those after the last step; nothing validated them"),
    ]  # fmt: skip
    lines = ["## Training", "", "| | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows), ""]
    if plan.command:
        lines += ["```sh", plan.command, "```", ""]
    lines += [line for title, name in pictures.items() for line in (f"![{title}]({Path(name).name})", "")]
    if best and best.per_class:
        lines += [f"| class | {figures.metric_name} |", "|---|---|"]
        lines += [f"| {name} | {value:.4f} |" for name, value in zip(names, best.per_class, strict=True)]
    return "\n".join(lines)


def _class_names(metadata: Mapping[str, Any], figures: Figures) -> list[str]:
    """Return the names of the metric's classes: those of the output's channels if the numbers match, else 1, 2, ..."""
    count = len(figures.best.per_class) if figures.best else 0
    outputs = metadata.get("network_data_format", {}).get("outputs", {})
    for tensor in outputs.values():
        channels = list(tensor.get("channel_def", {}).values())
        if len(channels) in (count, count + 1):  # one more, since metrics often leave out the background
            return [str(c) for c in channels[len(channels) - count :]]
    return [str(n) for n in range(1, count + 1)]
