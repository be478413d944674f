"""Checks of a bundle's configs: MONAI can read them, their references lead somewhere, and their ids are complete."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medkit.bundles.archive import is_junk
from medkit.bundles.bundle import CONFIG_SUFFIXES
from medkit.bundles.checks.subject import CheckedBundle
from medkit.bundles.config import one_line

STAND_ALONE = ("inference", "train")
"""Configs that run by themselves; others may be meant to be laid over them."""


@dataclass(frozen=True)
class Reading:
    """The problems of configs that are laid over each other."""

    problems: list[str]
    complete: bool
    """Whether MONAI could read them at all."""


def check_references(subject: CheckedBundle) -> Iterator[str]:
    """MONAI reads every config; the targets of its `@` and `%` and the classes of its `_target_` exist."""
    configs = [p for p in sorted((subject.root / "configs").glob("*")) if p.suffix in CONFIG_SUFFIXES]
    configs = [p for p in configs if p.stem != "metadata" and not is_junk(p.name)]
    single = {path: _reading(subject, path) for path in configs}
    for path in configs:
        best = single[path] if path.stem in STAND_ALONE else _best_reading(subject, path, single)
        yield from (f"{path.name}: {problem}" for problem in best.problems)


def _best_reading(subject: CheckedBundle, path: Path, single: Mapping[Path, Reading]) -> Reading:
    """Read a config by itself, or laid over one or two others, and return the reading with the fewest problems.

    `single` holds the reading of each config by itself. Problems of those others are left out: they are reported once,
    for the config that has them.
    """
    best = single[path]
    others = [p for p in single if p != path and single[p].complete]
    train = [p for p in others if p.stem.startswith("train")]
    pairs = [[a, b] for a in train for b in others if a != b and b.stem.startswith(("train", "eval"))]
    for below in (*([p] for p in others), *pairs):
        if not best.problems:
            break
        known = {problem for p in below for problem in single[p].problems} - set(single[path].problems)
        found = _reading(subject, *below, path)
        if found.complete:
            found = Reading([problem for problem in found.problems if problem not in known], True)
            best = min(best, found, key=lambda reading: (not reading.complete, len(reading.problems)))
    return best


def _reading(subject: CheckedBundle, *paths: Path) -> Reading:
    try:
        return Reading(list(_unresolved(subject.parser(*paths))), True)
    except Exception as error:
        return Reading([one_line(error)], False)


def _unresolved(parser: Any) -> Iterator[str]:
    from monai.bundle.config_item import ConfigComponent
    from monai.bundle.reference_resolver import ReferenceResolver

    parser.parse()
    items = parser.ref_resolver.items
    for name, item in items.items():
        value = item.get_config()
        if isinstance(value, str) and not name.startswith("_meta_"):
            for reference in ReferenceResolver.match_refs_pattern(value):
                if reference not in items:
                    yield f"{name}: refers to {reference}, which does not exist"
        if isinstance(item, ConfigComponent):
            target = item.resolve_module_name()
            if isinstance(target, str) and not target.startswith("$") and (reason := _why_missing(target)):
                yield f"{name}: {reason}"


@functools.cache
def _why_missing(target: str) -> str | None:
    """Return why the class that a `_target_` names cannot be imported; None if it can."""
    import pydoc

    try:
        return None if pydoc.locate(target) is not None else f"there is no {target}"
    except Exception as error:
        return f"{target}: {one_line(error)}"


def check_properties(subject: CheckedBundle) -> Iterator[str]:
    """The inference has the ids that MONAI's applications ask for."""
    from monai.bundle.properties import InferProperties, MetaProperties

    parser = subject.parser(subject.inference)
    for name, about in {**MetaProperties, **InferProperties}.items():
        if about["required"] and about["id"] not in parser:
            yield f"{subject.inference.name}: no id {about['id']}, where MONAI looks for the {name}"
