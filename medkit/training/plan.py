"""What a training is asked to do, how it ended, and how one training is distinguished from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medkit.bundles.bundle import Bundle
from medkit.pipe.records import sha256_of
from medkit.training.data import is_file
from medkit.training.splits import DataList, Split
from medkit.training.world import World

NOT_IDENTITY = {"steps", "device"}
"""Ids whose `--set` does not make it another training."""


@dataclass(frozen=True)
class TrainingPlan:
    """Everything a training depends on."""

    task: str
    bundle: Bundle
    """The bundle that is trained; its code is trusted."""
    output: Path
    """The new bundle's folder, absolute."""
    config: str = "train"
    """Names of configs, separated by commas; the ids of a later one replace those of earlier ones."""
    data: Path | None = None
    """A datalist's JSON or a folder; None: the data that the config names."""
    labels: Path | None = None
    """A table with the class of each image in the folder `data`."""
    more_data: tuple[Path, ...] = ()
    """Further folders, for a config that trains on unpaired images."""
    init_from: Path | None = None
    """A file with the initial parameters."""
    freeze: tuple[str, ...] = ()
    """Prefixes of the names of parameters that are not trained."""
    steps: int | None = None
    """Optimizer steps in all, earlier parts included; None: the config's, unless `hours` is given."""
    hours: float | None = None
    """Hours of training in all, earlier parts included."""
    patience: int | None = None
    """Validations in a row without gain after which the training ends; None: it goes on to the end."""
    folds: int | None = None
    """Number of parts of the subjects in a cross-validation."""
    fold: int | None = None
    """The part that validates, from 1."""
    test_fraction: float | None = None
    """Share of the subjects that is held out for a test."""
    check: bool = True
    """Whether the data are checked before the first step."""
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    precision: Literal["auto", "bf16", "fp16", "float32"] = "auto"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Config id -> value."""
    resume: bool | None = None
    """True: a checkpoint must exist; False: none may exist; None: continue from one if it exists."""
    overwrite: bool = False
    """Whether an earlier training in `output` may be replaced."""
    checkpoint_minutes: float = 3.0
    command: str = ""
    """The command line, for the model card."""
    world: World = field(default_factory=World)
    """This process among those that train together."""

    @property
    def split(self) -> Split:
        """Who validates and who is held out. Raises UsageError for a fold that does not exist."""
        return Split(self.folds, self.fold, self.test_fraction, self.seed)


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended."""

    bundle: Path
    outcome: Literal["finished", "stopped", "was finished"]
    """`stopped`: by a signal, with a checkpoint from which it can continue."""
    step: int
    seconds: float
    metric_name: str | None = None
    best_metric: float | None = None
    best_step: int | None = None
    data: DataList | None = None
    """The items of the training."""


def training_identity(plan: TrainingPlan, training: Sequence[Any], validation: Sequence[Any]) -> dict[str, Any]:
    """Return the values that identify a training, so that it continues only from its own checkpoint.

    Steps, hours, device, threads and precision are not among them: a training may continue longer or elsewhere.
    """
    configs = sorted(p for p in (plan.bundle.root / "configs").iterdir() if p.is_file() and p.name != "metadata.json")
    return {
        "task": plan.task,
        "bundle": plan.bundle.name,
        "configs": value_digest([[p.name, sha256_of(p)] for p in configs]),
        "config": plan.config,
        "set": {k: v for k, v in sorted(plan.overrides.items()) if k not in NOT_IDENTITY},
        "data": value_digest([_portable(items, _roots(plan)) for items in (training, validation)]),
        "init-from": sha256_of(plan.init_from) if plan.init_from else None,
        "freeze": sorted(plan.freeze),
        "seed": plan.seed,
        "fold": plan.split.text or None,
        "test-fraction": plan.test_fraction,
        "ranks": plan.world.size,
    }


def value_digest(value: Any) -> str:
    """Return the sha256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return the differences between two identities, in words."""
    names = {"configs": "the bundle's configs", "data": "the data's list of files or their sizes"}
    out = []
    for key in sorted({*found, *wanted} - {"ranks"}):
        if found.get(key) != wanted.get(key):
            short = key in names or "init" in key
            out.append(names.get(key, key) if short else f"{key} ({found.get(key)!r} there, {wanted.get(key)!r} here)")
    return out


def _roots(plan: TrainingPlan) -> list[Path]:
    """Return the folders that the data lie in."""
    given = (*([plan.data] if plan.data else []), *plan.more_data)
    return [path if path.is_dir() else path.parent for path in given]


def _portable(items: Iterable[Any], roots: Sequence[Path]) -> Any:
    """Return items with relative paths and file sizes, so that the data may be moved as a whole."""

    def convert(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(k): convert(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [convert(v) for v in value]
        if isinstance(value, str | Path) and is_file(Path(value)):
            path = Path(value)
            root = next((r for r in roots if path.is_relative_to(r)), None)
            return [str(path.relative_to(root) if root else path), path.stat().st_size]
        return value

    return [convert(item) for item in items]
