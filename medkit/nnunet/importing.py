"""`medkit bundle import nnunet`: from a trained model of nnU-Net v2 to a bundle among the user's.

Nothing of the model is run: plans are data, weights are read as tensors, and medkit writes the configs.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medkit.bundles import store
from medkit.bundles.archive import copy, is_junk, open_zip, problems, zip_entries
from medkit.errors import BundleError, UsageError, listed, size_text
from medkit.nnunet.bundle_files import Model, write_bundle
from medkit.nnunet.plans import Configuration, Plans, mirrored_axes
from medkit.nnunet.texts import plain_text
from medkit.nnunet.weights import Checkpoint, fill, read_checkpoint

FINAL = "checkpoint_final.pth"
_DEPTH = 3
"""Folders below the given one, or in a zip, where models are looked for."""
_USUAL = ("3d_fullres", "3d_lowres", "2d")
"""Configurations, the one that a bundle runs by default first."""
_KNOWN_TRAINER = re.compile(
    r"nnUNetTrainer(V2)?(_?(\d+epochs?|no_?mirroring|da5\w*|da\w*ord0|noda|nodummy2dda|celoss|dice\w*|topk\w*|cosanneal"
    r"|warmup\w*|nodeepsupervision|adam\w*|adan\w*|vanilla\w*|probabilisticoversampling\w*|benchmark\w*))*",
    re.IGNORECASE,
)
"""nnU-Net's own trainers that change neither the network nor how images are prepared."""
_MAX_JSON = 256 << 20


@dataclass(frozen=True)
class Choices:
    """What the user chose."""

    name: str | None = None
    folds: tuple[str, ...] = ()
    """Numbers of folds, or `all`; empty: those that there are."""
    checkpoint: str = FINAL
    configurations: tuple[str, ...] = ()
    """Names of configurations; empty: all that medkit can run."""
    orientation: str | None = None
    """Directions that images are turned to first; None: as the model's reader does."""
    overwrite: bool = False


@dataclass(frozen=True)
class Imported:
    """Result of `import_model`."""

    installed: store.Installed
    notes: tuple[str, ...]
    """What the user should know about it, a sentence each."""


def import_model(source: Path, choices: Choices, taken: Sequence[str] = ()) -> Imported:
    """Make a bundle of a model's folder or zip, install it, and trust it: medkit has written all that can run.

    `taken` are the names of plugins' bundles. Raises BundleError, with the reason, for a model that medkit cannot run
    as nnU-Net does, InputError for a file that is not a zip, UsageError for choices that do not fit, and OutputError if
    another bundle has the name.
    """
    with _unpacked(source, choices.checkpoint) as folder, tempfile.TemporaryDirectory(prefix="medkit-nnunet-") as part:
        models, notes = _models(folder, source, choices)
        names = {model.plans.name for model in models}
        if len(names) > 1:
            raise UsageError(f"{source}: holds models of {listed(sorted(names))}; name the folder of one")
        root = Path(part) / (re.sub(r"[^A-Za-z0-9_.-]+", "_", names.pop()).strip("_.-") or "nnunet")
        write_bundle(root, models, choices.orientation)
        done = store.install(
            root, name=choices.name, overwrite=choices.overwrite, trust=True, taken=taken, origin=source
        )
    return Imported(done, (*map(_summary, models), *notes))


def _summary(model: Model) -> str:
    own = model.configuration
    spacing = " x ".join(f"{mm:g}" for mm in own.spacing)
    folds = f"{len(model.folds)} folds" if len(model.folds) > 1 else f"fold {model.folds[0]}"
    return (
        f"{own.name}: {folds}, windows of {size_text(own.patch_size)} voxels of {spacing} mm, "
        f"{len(model.plans.heads().labels)} labels"
    )


# ---- where models are


@contextlib.contextmanager
def _unpacked(source: Path, checkpoint: str) -> Iterator[Path]:
    """Yield a folder as it is, or what is needed of a zip, in a folder for the block."""
    if source.is_dir():
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="medkit-nnunet-") as name:
        with open_zip(source) as archive:
            entries = list(zip_entries(archive))
            if found := list(problems(entries, source.stat().st_size)):
                raise BundleError(f"{source}: {'; '.join(found[:5])}")
            for entry in entries:
                last = entry.name.rpartition("/")[2]
                if last in ("plans.json", "dataset.json", checkpoint) and not is_junk(entry.name):
                    copy(entry, Path(name) / entry.name, source)
        yield Path(name)


def _folders(folder: Path) -> list[Path]:
    """Return the folders of models in a folder: those with plans."""
    for depth in range(_DEPTH + 1):
        if found := sorted(path.parent for path in folder.glob("/".join(["*"] * depth + ["plans.json"]))):
            return found
    return []


def _models(folder: Path, source: Path, choices: Choices) -> tuple[list[Model], list[str]]:
    """Read the models in a folder, the default one first; and what was left out, and why."""
    found: dict[str, Model] = {}
    notes: list[str] = []
    refused: list[BundleError] = []
    for path in _folders(folder):
        shown = f"{source}/{path.relative_to(folder).as_posix()}" if path != folder else str(source)
        try:
            model = _model(path, shown, choices)
        except BundleError as error:
            refused.append(error)
            continue
        if model is None:
            continue
        name = model.configuration.name
        if name in found:
            raise UsageError(f"{source}: holds several models of {name}; name the folder of one")
        found[name] = model
        if not _KNOWN_TRAINER.fullmatch(model.trainer):
            notes.append(
                f"{name}: its trainer {plain_text(model.trainer)} is none of nnU-Net's own: if it prepares images "
                f"otherwise, or has another network with the same weights, labels will differ"
            )
    if not found:
        if refused:
            raise refused[0]
        what = f" of {listed(choices.configurations)}" if choices.configurations else ""
        raise BundleError(
            f"{source}: no model of nnU-Net v2{what}: expected plans.json, dataset.json and fold_0/{FINAL}"
        )
    notes += [f"left out: {error}" for error in refused]
    order = sorted(found, key=lambda name: (_USUAL.index(name) if name in _USUAL else len(_USUAL), name))
    return [found[name] for name in order], notes


def _model(folder: Path, shown: str, choices: Choices) -> Model | None:
    """Read the model in a folder; None for a configuration that the user did not ask for. Raises BundleError."""
    plans = Plans(shown, _json(folder / "plans.json", shown), _json(folder / "dataset.json", shown))
    checkpoints = _checkpoints(folder, shown, choices)
    first: Checkpoint | None = None
    configuration: Configuration | None = None
    networks = []
    for fold, path in checkpoints.items():
        name = f"{shown}/fold_{fold}/{path.name}"
        read = read_checkpoint(path, name)
        if first is None or configuration is None:
            if choices.configurations and read.configuration not in choices.configurations:
                return None
            first, configuration = read, plans.configuration(read.configuration)
        elif (read.configuration, read.trainer) != (first.configuration, first.trainer):
            raise BundleError(f"{name}: is of {read.trainer} {read.configuration}, unlike the other folds")
        network = _built(configuration, name)
        fill(network, read.weights, name)
        networks.append(network)
    assert first is not None and configuration is not None  # noqa: PT018  there is a checkpoint
    from medkit.nnunet.networks import FoldEnsemble

    try:
        axes = mirrored_axes(first.mirror_axes, len(configuration.patch_size))
    except (TypeError, ValueError) as error:
        raise plans.fault(str(error)) from None
    return Model(plans, configuration, tuple(checkpoints), first.trainer, axes, FoldEnsemble(networks))


def _checkpoints(folder: Path, shown: str, choices: Choices) -> dict[str, Path]:
    """Return fold -> checkpoint; by default of all numbered folds, as nnU-Net takes them, else of `fold_all`."""
    there = {
        path.parent.name.removeprefix("fold_"): path for path in sorted(folder.glob(f"fold_*/{choices.checkpoint}"))
    }
    if not there:
        others = sorted({path.name for path in folder.glob("fold_*/*.pth")})
        hint = f"; there is {listed(others)} (--checkpoint)" if others else ""
        raise BundleError(f"{shown}: no fold_*/{choices.checkpoint}{hint}")
    if missing := [fold for fold in choices.folds if fold not in there]:
        raise UsageError(f"--folds {missing[0]}: {shown} has {listed(list(there))}")
    numbered = [fold for fold in there if fold != "all"]
    return {fold: there[fold] for fold in choices.folds or numbered or there}


def _json(path: Path, shown: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ValueError(f"{path.stat().st_size} bytes")
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{shown}: {path.name} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise BundleError(f"{shown}: {path.name}: expected a JSON object")
    return found


def _built(configuration: Configuration, shown: str) -> Any:
    """Build a configuration's network as its config describes it."""
    from importlib.util import find_spec

    from monai.bundle import ConfigParser

    if configuration.package and find_spec(configuration.package.replace("-", "_")) is None:
        raise BundleError(
            f"{shown}: its network is built by {configuration.package}, which is not installed; "
            f"pip install 'medkit[nnunet]'"
        )
    parser = ConfigParser({"imports": ["$import torch"], "network": dict(configuration.network)})
    try:
        return parser.get_parsed_content("network")
    except Exception as error:
        cause = error.__cause__ or error
        raise BundleError(f"{shown}: the network of its plans cannot be built: {cause}") from None
