"""The files that a bundle's configs take in: MONAI's macro `%file::id` puts a part of another file in its place."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from medkit.errors import BundleError

_SUFFIXES = (".json", ".yaml", ".yml")
_FILE = re.compile(r"(.*\.(?:json|yaml|yml))(?=::|$)", re.IGNORECASE)
"""What MONAI takes for a file's name in a macro (monai.bundle.ConfigParser.split_path_id)."""


def taken_in(root: Path, names: Iterable[str]) -> list[str]:
    """Return the files of a bundle that its configs take in, directly or through each other, besides `names`.

    `names` are files below `root`; those with a config's suffix are looked through. MONAI finds a relative name from
    the working directory. Raises BundleError for a file outside the bundle, and for a config that is nested too deeply.
    """
    known = set(names)
    found: list[str] = []
    waiting = sorted(known)
    while waiting:
        config = waiting.pop()
        for file in _macros(root / config):
            name = _below(root, file)
            if name is None:
                raise BundleError(
                    f"{root / config}: takes in {file} (%file::id), which is not a file of the bundle; "
                    f"a bundle is trusted by its content, so it must contain it"
                )
            if name not in known and (root / name).is_file():
                known.add(name)
                found.append(name)
                waiting.append(name)
    return found


def _macros(config: Path) -> list[str]:
    """Return the names of the files in the macros of a config; none if MONAI cannot read it either."""
    if config.suffix.lower() not in _SUFFIXES:
        return []
    try:
        content = _data(config.read_bytes(), config.name)
    except Exception:  # yaml's errors share no base class with json's
        return []
    matches = (_FILE.search(text[1:].replace("#", "::")) for text in _texts(content) if text.startswith("%"))
    return [match[1] for match in matches if match]


def _data(content: bytes, name: str) -> Any:
    if name.lower().endswith(".json"):
        return json.loads(content)
    import yaml

    return yaml.safe_load(content)


def _texts(content: Any) -> Iterator[str]:
    """Yield all texts of a config but its keys; an alias of YAML is looked at once."""
    waiting, visited = [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list) and id(value) not in visited:
            visited.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value


def _below(root: Path, file: str) -> str | None:
    """Return a file's name below the bundle's folder, None if it lies elsewhere."""
    path, here = Path(os.path.abspath(file)), Path(os.path.abspath(root))  # noqa: PTH100 - the name, not the target
    if path.is_relative_to(here):
        return path.relative_to(here).as_posix()
    path, here = path.resolve(), here.resolve()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else None
