"""What the new bundle's configs and metadata have of the training: other configs, values of `--set`, its classes.

`medkit train --config train,NAME` may train another network than the bundle's inference builds. If the bundle has a
config `NAME_inference`, its ids replace those of the new bundle's inference, and its `_meta_` is merged into the
metadata. The new bundle has all this in its configs `train` and `inference`, and no longer has a config `NAME`.

Both configs also get the names of the classes, and the values of `--set` that the inference has too, such as a size:
without them, the inference would build another network than the one that was trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medkit.bundles.bundle import INFERENCE, Bundle
from medkit.bundles.config import read_config
from medkit.bundles.layers import has_id, put_value
from medkit.pipe.atomic import write_atomically
from medkit.training.config import CLASS_NAMES
from medkit.training.plan import TrainingPlan

META = "_meta_"
"""MONAI's id of the metadata in a config."""


def names(plan: TrainingPlan) -> list[str]:
    """Return the configs of a plan that come with another inference."""
    return [name for name in plan.config.split(",")[1:] if plan.bundle.has_config(f"{name}_inference")]


_OF_A_RUN = ("bundle_root", "dataset_dir", "output_dir", "datalist", "device")
"""Ids that say where a bundle runs, not what it is."""


def apply(plan: TrainingPlan, folder: Path, class_names: Sequence[str] = ()) -> None:
    """Rewrite the configs of a new bundle, a copy of the plan's, as the training was: see the module."""
    _merge(plan, folder)
    values = {name: value for name, value in plan.overrides.items() if name not in _OF_A_RUN}
    values |= {CLASS_NAMES: list(class_names)} if class_names else {}
    if not values or not plan.bundle.has_config(INFERENCE):
        return
    files = [folder / "configs" / plan.bundle.config(name).name for name in (plan.config.split(",")[0], INFERENCE)]
    contents = [read_config(file) for file in files]
    shared = {name: value for name, value in values.items() if all(has_id(content, name) for content in contents)}
    for file, content in zip(files, contents, strict=True):
        for name, value in shared.items():
            put_value(content, name, value)
        if shared:
            write_atomically(file, json.dumps(content, indent=4) + "\n")


def _merge(plan: TrainingPlan, folder: Path) -> None:
    """Lay the plan's further configs over the first one, and over the inference, if they bring another inference."""
    if not (found := names(plan)):
        return
    merged = {
        "inference": ["inference", *(f"{name}_inference" for name in found)],
        plan.config.split(",")[0]: plan.config.split(","),
    }
    for name, parts in merged.items():
        target = folder / "configs" / plan.bundle.config(name).name
        write_atomically(target, json.dumps(_merged(plan.bundle, parts), indent=4) + "\n")
    for name in (*found, *(f"{name}_inference" for name in found)):
        (folder / "configs" / plan.bundle.config(name).name).unlink()


def _merged(bundle: Bundle, parts: list[str]) -> dict[str, Any]:
    """Return configs of a bundle, merged as MONAI does, without metadata."""
    from monai.bundle import ConfigParser

    content = ConfigParser.load_config_files([str(bundle.config(part)) for part in parts])
    return {key: value for key, value in content.items() if key != META}


def with_meta(metadata: dict[str, Any], plan: TrainingPlan) -> dict[str, Any]:
    """Return metadata with the changes of the plan's configs."""
    for name in names(plan):
        metadata = _united(metadata, read_config(plan.bundle.config(f"{name}_inference")).get(META) or {})
    return metadata


def _united(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested mappings merged, where values of `above` win."""
    out = dict(below)
    for key, value in above.items():
        old = out.get(key)
        out[key] = _united(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out
