"""What a config that is laid over another changes in the new bundle: `NAME_inference` beside the config `NAME`.

`medkit train --config train,NAME` may make another network than the bundle's inference builds. Where the bundle has a
config `NAME_inference`, its ids replace those of the new bundle's inference, and what it says under `_meta_` goes into
the metadata. The new bundle has all this in `train` and `inference` themselves, and no config `NAME` any more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medkit.bundles.bundle import Bundle
from medkit.bundles.config import read_config
from medkit.pipe.atomic import write_atomically
from medkit.training.plan import TrainingPlan

META = "_meta_"
"""MONAI's id of the metadata in a config."""


def names(plan: TrainingPlan) -> list[str]:
    """The configs of a plan that come with another inference."""
    return [name for name in plan.config.split(",")[1:] if plan.bundle.has_config(f"{name}_inference")]


def apply(plan: TrainingPlan, folder: Path) -> None:
    """Rewrites the configs of a new bundle, a copy of the plan's, where the plan's bring another inference."""
    if not (found := names(plan)):
        return
    laid = {
        "inference": ["inference", *(f"{name}_inference" for name in found)],
        plan.config.split(",")[0]: plan.config.split(","),
    }
    for name, parts in laid.items():
        target = folder / "configs" / plan.bundle.config(name).name
        write_atomically(target, json.dumps(_merged(plan.bundle, parts), indent=4) + "\n")
    for name in (*found, *(f"{name}_inference" for name in found)):
        (folder / "configs" / plan.bundle.config(name).name).unlink()


def _merged(bundle: Bundle, parts: list[str]) -> dict[str, Any]:
    from monai.bundle import ConfigParser

    content = ConfigParser.load_config_files([str(bundle.config(part)) for part in parts])
    return {key: value for key, value in content.items() if key != META}


def with_meta(metadata: dict[str, Any], plan: TrainingPlan) -> dict[str, Any]:
    """Metadata with what the plan's configs change in it."""
    for name in names(plan):
        metadata = _united(metadata, read_config(plan.bundle.config(f"{name}_inference")).get(META) or {})
    return metadata


def _united(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(below)
    for key, value in above.items():
        old = out.get(key)
        out[key] = _united(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out
