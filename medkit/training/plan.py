"""What a training is asked for, what it came to, and how one run is told from another."""

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

NOT_IDENTITY = {"steps", "device"}
"""Ids whose `--set` does not make it another run."""


@dataclass(frozen=True)
class TrainingPlan:
    """Everything a training depends on."""

    task: str
    bundle: Bundle
    """The bundle whose config trains; its code is trusted."""
    output: Path
    """The new bundle's folder, absolute."""
    config: str = "train"
    """Names of configs, with commas; the ids of a later one replace those of the ones before it."""
    data: Path | None = None
    """A datalist's JSON or a folder; None: what the config names."""
    more_data: tuple[Path, ...] = ()
    """Further folders, for a config that learns from things that do not belong together."""
    init_from: Path | None = None
    """A file with parameters to begin with."""
    freeze: tuple[str, ...] = ()
    """Beginnings of the names of parameters that stay as they are."""
    steps: int | None = None
    """Optimiser steps in all, earlier parts included; None: the config's, unless `hours` limits."""
    hours: float | None = None
    """Hours of training in all, earlier parts included."""
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    precision: Literal["auto", "bf16", "fp16", "float32"] = "auto"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Config id -> value."""
    resume: bool | None = None
    """True: there must be a checkpoint; False: there must be none; None: go on where there is one."""
    overwrite: bool = False
    """Whether an earlier training in `output` may be replaced."""
    checkpoint_minutes: float = 3.0
    command: str = ""
    """The command line, for the model card."""


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended."""

    bundle: Path
    outcome: Literal["finished", "stopped", "was finished"]
    """`stopped`: by a signal, with a checkpoint to go on from."""
    step: int
    seconds: float
    metric_name: str | None = None
    best_metric: float | None = None
    best_step: int | None = None


def training_identity(plan: TrainingPlan, training: Sequence[Any], validation: Sequence[Any]) -> dict[str, Any]:
    """What makes a run this run: values by which a checkpoint is known as its own.

    Steps, hours, device, threads and precision are not among them: a run may go on longer or elsewhere.
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
    }


def value_digest(value: Any) -> str:
    """The sha256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """In what two identities differ, in words."""
    names = {"configs": "the bundle's configs", "data": "the data's list of files or their sizes"}
    out = []
    for key in sorted({*found, *wanted}):
        if found.get(key) != wanted.get(key):
            short = key in names or "init" in key
            out.append(names.get(key, key) if short else f"{key} ({found.get(key)!r} there, {wanted.get(key)!r} here)")
    return out


def _roots(plan: TrainingPlan) -> list[Path]:
    """The folders that the data lie in."""
    given = (*([plan.data] if plan.data else []), *plan.more_data)
    return [path if path.is_dir() else path.parent for path in given]


def _portable(items: Iterable[Any], roots: Sequence[Path]) -> Any:
    """Items with paths relative to the data's folders and the files' sizes, so that data may be moved as a whole."""

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
