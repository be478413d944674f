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

    `names` are files below `root`; those with a config's suffix are looked through. Raises BundleError for a file
    outside the bundle, and for a config that is nested too deeply.
    """
    known = set(names)
    found: list[str] = []
    waiting = sorted(known)
    while waiting:
        config = waiting.pop()
        for text in _macros(root / config):
            name = located(root, root / config, text)
            if name not in known and (root / name).is_file():
                known.add(name)
                found.append(name)
                waiting.append(name)
    return found


def split_macro(text: str) -> tuple[str, str] | None:
    """Return the file and the id that a macro of another file names; None for any other text.

    >>> split_macro("%net.json::network_def::channels"), split_macro("%network_def")
    (('net.json', 'network_def::channels'), None)
    """
    match = _FILE.search(text[1:].replace("#", "::")) if text.startswith("%") else None
    return (match[1], text[1:].replace("#", "::")[match.end() :].removeprefix("::")) if match else None


def located(root: Path, config: Path, file: str) -> str:
    """Return the name below the bundle's folder `root` of the file that a macro in `config` names.

    A relative name is one below the bundle's folder, or next to the config. MONAI finds it from the working directory,
    which usually is one of the two; any other working directory is not looked at, since what lies there is not part
    of the bundle. Raises BundleError for a file outside the bundle, and for a name that fits two unlike files.
    """
    places = [Path(file)] if Path(file).is_absolute() else [root / file, config.parent / file]
    names = {name: None for path in places if (name := _below(root, path)) is not None}
    there = [name for name in names if (root / name).is_file()]
    if len(there) > 1 and (root / there[0]).read_bytes() != (root / there[1]).read_bytes():
        raise BundleError(f"{config}: takes in {file} (%file::id), which can be {there[0]} and {there[1]}: they differ")
    if there or (names and Path(file).is_absolute()):
        return there[0] if there else next(iter(names))
    raise BundleError(
        f"{config}: takes in {file} (%file::id), which is not a file of the bundle; "
        f"a bundle is trusted by its content, so it must contain it"
    )


def _macros(config: Path) -> list[str]:
    """Return the names of the files in the macros of a config; none if MONAI cannot read it either."""
    if config.suffix.lower() not in _SUFFIXES:
        return []
    try:
        content = _data(config.read_bytes(), config.name)
    except Exception:  # yaml's errors share no base class with json's
        return []
    return [parts[0] for text in _texts(content) if (parts := split_macro(text))]


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


def _below(root: Path, file: Path) -> str | None:
    """Return a file's name below the bundle's folder, None if it lies elsewhere."""
    path, here = Path(os.path.abspath(file)), Path(os.path.abspath(root))  # noqa: PTH100 - the name, not the target
    if path.is_relative_to(here):
        return path.relative_to(here).as_posix()
    path, here = path.resolve(), here.resolve()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else None
