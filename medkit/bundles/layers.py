"""A bundle's configs as one: each laid over those before it, with the parts of other files in their places.

This is what MONAI makes of the files, without importing it and without executing anything.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medkit.bundles.bundle import Bundle
from medkit.bundles.config import MAX_DEPTH, read_config
from medkit.bundles.safety.macros import located, split_macro
from medkit.errors import BundleError

_REFERENCE = re.compile(r"@((?:#|::)*)([\w:#]+)")
"""A value that is another id, and nothing else; each sign before the id stands for a level further up."""


def read_configs(bundle: Bundle) -> dict[str, Any]:
    """Return the bundle's configs (`Bundle.configs`) laid over each other, as plain data. Raises BundleError."""
    content: dict[str, Any] = {}
    for name in bundle.configs:
        path = bundle.config(name)
        layer = _expanded(read_config(path), bundle.root, path, 0)
        if not isinstance(layer, dict):
            raise BundleError(f"{path}: expected an object with ids, got {type(layer).__name__}")
        for key, value in layer.items():
            try:
                _lay_over(content, str(key), value)
            except (KeyError, IndexError, ValueError, TypeError):
                raise BundleError(f"{path}: {key}: there is nothing that it could be added to or put into") from None
    return content


def _expanded(value: Any, root: Path, config: Path, depth: int) -> Any:
    """Return a value of a config with each macro `%file::id` replaced by what the file holds, which is expanded too."""
    if depth > MAX_DEPTH:
        raise BundleError(f"{config}: nested too deeply, or takes in itself (%file::id)")
    if isinstance(value, dict):
        return {key: _expanded(part, root, config, depth + 1) for key, part in value.items()}
    if isinstance(value, list):
        return [_expanded(part, root, config, depth + 1) for part in value]
    if not isinstance(value, str) or (macro := split_macro(value)) is None:
        return value
    file = root / located(root, config, macro[0])
    try:
        taken = value_at(read_config(file), macro[1])
    except KeyError:
        raise BundleError(f"{config}: takes in {value}, but {file} has no such id") from None
    return _expanded(copy.deepcopy(taken), root, file, depth + 1)


def _lay_over(content: dict[str, Any], key: str, value: Any) -> None:
    """Put a value under an id as monai.bundle.utils.merge_kv does: `+id` adds to a dictionary or a list."""
    place = _parts(key.removeprefix("+"))
    parent = value_at(content, "::".join(place[:-1]))
    last = int(place[-1]) if isinstance(parent, list) else place[-1]
    there = isinstance(parent, list) or last in parent
    if not key.startswith("+") or not there:
        parent[last] = value
    elif isinstance(parent[last], dict) and isinstance(value, dict):
        parent[last].update(value)
    elif isinstance(parent[last], list) and isinstance(value, list):
        parent[last].extend(value)
    else:
        raise ValueError(key)


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"::|#", name) if part]


def value_at(content: Any, name: str) -> Any:
    """Return what a config holds under an id such as `train::trainer`. Raises KeyError if it has no such id."""
    for part in _parts(name):
        if isinstance(content, Mapping) and part in content:
            content = content[part]
        elif isinstance(content, list) and part.isdigit() and int(part) < len(content):
            content = content[int(part)]
        else:
            raise KeyError(name)
    return content


def put_value(content: Any, name: str, value: Any) -> None:
    """Set what a config holds under an id. Raises KeyError if it has no id above it."""
    *above, last = _parts(name)
    parent = value_at(content, "::".join(above))
    parent[int(last) if isinstance(parent, list) else last] = value


def has_id(content: Any, name: str) -> bool:
    """Return whether a config has an id."""
    try:
        value_at(content, name)
    except KeyError:
        return False
    return True


def followed(content: Any, name: str) -> str | None:
    """Return the id that an id leads to by references (`@other`), itself if it is none; None if it leads nowhere."""
    for _ in range(MAX_DEPTH):
        try:
            value = value_at(content, name)
        except KeyError:
            return None
        match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            return name
        levels = len(match[1].replace("::", "#"))
        above = _parts(name)[:-levels] if levels else []
        name = "::".join([*above, *_parts(match[2])])
    return None
