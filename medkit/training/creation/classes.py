"""Another number of classes for the configs and the metadata of a bundle's copy."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medkit.bundles.bundle import CONFIG_SUFFIXES, tensors
from medkit.bundles.config import read_config, walk
from medkit.bundles.layers import put_value
from medkit.errors import BundleError, listed
from medkit.training.config import CLASS_NAMES, CLASSES
from medkit.training.report.card import name_classes

_COUNTS = ("out_channels", "num_classes", "n_classes", "out_chns", "to_onehot", CLASSES)
"""Arguments that hold the number of classes."""
_LABELS = "label_values"
"""Id of the labels of the classes, in the order of the channels."""
_KEPT = ("task", "kinds", "modality")
"""Keys of medkit's part of the metadata that do not depend on the classes."""
_FEW = 4
"""Lists of up to so many numbers may as well be sizes as one number for each class."""


def with_classes(folder: Path, metadata: dict[str, Any], block: dict[str, Any], names: Sequence[str]) -> list[str]:
    """Change configs in a folder, and metadata and medkit's part of them, to other classes; return what else changed.

    names: of the classes. In a segmentation the background comes first and is not among them. Raises BundleError if the
    configs do not say where their classes are.
    """
    files = [path for path in sorted((folder / "configs").glob("*")) if path.suffix in CONFIG_SUFFIXES]
    contents = {path: read_config(path) for path in files if path.stem != "metadata"}
    if any(CLASS_NAMES in content for content in contents.values()):
        for content in contents.values():
            if CLASS_NAMES in content:
                content[CLASS_NAMES] = list(names)
        name_classes(metadata, block, names)
        _write(contents)
        return []
    old = next((t.get("num_channels") for _, t in tensors(metadata, "outputs")), None)
    if not isinstance(old, int) or old < 2:
        raise BundleError(f"{folder.name}: the base does not state how many classes its network has")
    count, notes, changed = len(names) + 1, list[str](), set[Path]()
    for path, content in contents.items():
        for place in list(_places(content, old)):
            put_value(content, place, count)
            changed.add(path)
        notes += [f"{path.name}: {text}" for text in _other_lists(content, old, count)]
    if not changed:
        wanted = listed(_COUNTS, "or")
        raise BundleError(f"{folder.name}: no config of the base states its {old} classes as a number ({wanted})")
    _write(contents)
    made = (metadata.get("network_data_format") or {}).get("outputs") or {}
    for tensor in made.values():
        tensor |= {"num_channels": count, "channel_def": {str(n): t for n, t in enumerate(["background", *names])}}
    kept = {key: block[key] for key in _KEPT if key in block}
    block.clear()
    block |= kept | {"labels": {str(number): name for number, name in enumerate(names, start=1)}}
    return notes


def _write(contents: dict[Path, Any]) -> None:
    for path, content in contents.items():
        if path.suffix != ".json":
            path.unlink()
        path.with_suffix(".json").write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def _places(content: Any, old: int) -> Iterator[str]:
    """Yield the ids of arguments that hold the number of classes."""
    for place, value in walk(content):
        if place and place[-1] in _COUNTS and type(value) is int and value == old:
            yield "::".join(place)


def _other_lists(content: dict[str, Any], old: int, count: int) -> Iterator[str]:
    """Change lists with a number for each class, and yield a sentence about each."""
    if _LABELS in content:
        content[_LABELS] = list(range(count))
        yield f"{_LABELS} is now 0 to {count - 1}"
    for name, value in content.items():
        if name == _LABELS or not isinstance(value, list) or len(value) != old or old <= _FEW:
            continue
        if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in value):
            continue
        order = sorted(value) == list(range(old))
        content[name] = list(range(count)) if order else [0.0] * count
        yield f"{name}, a number for each class, is now {'0, 1, 2 and so on' if order else '0 for each'}"
