"""The keys of MONAI's dictionaries that a config's transforms load, make and save, read as data."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

from medkit.bundles.config import class_name, walk
from medkit.bundles.layers import has_id, value_at


def kind_of(node: Any) -> str:
    """Return the class of a transform without the ending of its dictionary form: `SaveImaged`, `SaveImageD` alike."""
    return re.sub(r"(d|D|Dict)$", "", class_name(node))


def transforms(content: Any, kind: str) -> list[Mapping[str, Any]]:
    """Return the transforms of a config whose class starts with `kind`, without those that are switched off."""
    found = (node for _, node in walk(content) if kind_of(node).startswith(kind))
    return [node for node in found if node.get("_disabled_") not in (True, "true", "True")]


def keys_of(content: Any, kind: str) -> Iterator[str]:
    """Yield the keys of all transforms of a class, with references to plain values resolved."""
    for node in transforms(content, kind):
        yield from plain(content, node.get("keys"))


def loaded(content: Mapping[str, Any], place: str | None) -> tuple[str, ...]:
    """Return the keys under which images are loaded, by the transforms at an id, else by any of the config."""
    nodes = transforms(value_at(content, place), "LoadImage") if place is not None else []
    nodes = nodes or transforms(content, "LoadImage")
    return tuple(dict.fromkeys(key for node in nodes for key in plain(content, node.get("keys"))))


def sources(content: Any) -> set[str]:
    """Return the keys from which transforms make others, such as the `source_key` of a crop."""
    nodes = [node for _, node in walk(content) if class_name(node) and "keys" in node]
    return {key for node in nodes for name in node.keys() - {"keys", "orig_keys"} for key in plain(content, node[name])}


def saved(content: Any, given: tuple[str, ...]) -> dict[str, str]:
    """Return the keys that are saved and made after the network -> the ending of their files' names, `pred` first.

    An ending that several keys share is left out: it does not tell their files apart. `given` are the keys of the
    input. A key that only a saver names is one of the data, not of the result, unless code of the bundle's own may have
    made it.
    """
    endings: dict[str, str] = {}
    sharing: dict[str, set[str]] = {}
    for node in transforms(content, "SaveImage"):
        ending = next(plain(content, node.get("output_postfix")), "")
        for key in plain(content, node.get("keys")):
            endings.setdefault(key, ending)
            sharing.setdefault(ending, set()).add(key)
    endings = {key: ending if len(sharing[ending]) == 1 else "" for key, ending in endings.items()}
    nodes = [node for _, node in walk(content) if class_name(node) and not kind_of(node).startswith(("Save", "Load"))]
    known = {key for node in nodes for name in node for key in plain(content, node[name])}
    own_code = any(not is_of_monai(node) for node in nodes if "keys" in node)
    found = [key for key in endings if key not in given and (key in known or key == "pred" or own_code)]
    return {key: endings[key] for key in sorted(found, key=lambda key: key != "pred")}


def is_of_monai(node: Any) -> bool:
    """Return whether a value of a config describes an object of MONAI or of the libraries below it, or no object."""
    target = str(node.get("_target_", "")) if isinstance(node, Mapping) else ""
    return "." not in target or target.startswith(("monai.", "torch.", "ignite."))


def plain(content: Any, value: Any) -> Iterator[str]:
    """Yield the strings of a value, or of a list of them, with references resolved; expressions are left out.

    Expressions that are literals, such as `$['image', 'label']`, are none.
    """
    if isinstance(value, list | tuple):
        for part in value:
            yield from plain(content, part)
    elif not isinstance(value, str):
        return
    elif value.startswith("@"):
        name = value[1:]
        yield from plain(content, value_at(content, name) if name and has_id(content, name) else None)
    elif common := re.fullmatch(r"\$monai\.utils\.(?:enums\.)?CommonKeys\.(\w+)", value):
        yield common[1].lower()
    elif value.startswith("$"):
        try:
            literal = ast.literal_eval(value[1:].strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return
        yield from (part for part in plain(content, literal) if not part.startswith("$"))
    else:
        yield value
