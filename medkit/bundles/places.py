"""Where a config keeps what its evaluator uses: MONAI names ids for it, but follows only the evaluator's arguments."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from medkit.bundles.config import class_name, walk
from medkit.bundles.layers import followed, has_id, value_at

RUN = re.compile(r"@([\w:#]+)\.run\(")
"""In an expression that runs an engine."""
_NAMES = ("evaluator", "validator", "validate::evaluator")
"""The ids that evaluators usually have."""
_POST = "PostProcessing"
"""MONAI's handler that runs transforms after the network."""
_TRUE = (True, "true", "True")
PREPROCESSING = ("preprocessing", "dataset::transform", "validate::preprocessing", "validate::dataset::transform")
"""Ids that hold the preprocessing where the evaluator's arguments do not lead to it."""


def evaluator_of(content: Mapping[str, Any]) -> str | None:
    """Return the id of a config's evaluator: the one that is run, else the one that usually is; None if it has none."""
    for name in (*(run for _, run in runs(content)), *_NAMES):
        found = followed(content, name)
        if found is not None and "_target_" in _node(content, found):
            return found
    places = ("::".join(place) for place, node in walk(content) if re.search("(Evaluat|Validat)or$", class_name(node)))
    return next(places, None)


def runs(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each id at the top of a config that runs something, with the id of what it runs; trainers are left out."""
    for name, value in content.items():
        for text in value if isinstance(value, list) else [value]:
            for match in RUN.finditer(text) if isinstance(text, str) else ():
                found = followed(content, match[1])
                if found is not None and not class_name(_node(content, found)).endswith("Trainer"):
                    yield name, found


def preprocessing_of(content: Mapping[str, Any]) -> str | None:
    """Return the id of the transforms before the network; None if there is none."""
    chain = evaluator_of(content)
    for key in ("val_data_loader", "dataset", "transform"):
        chain = followed(content, f"{chain}::{key}") if chain is not None else None
    return chain or next((name for name in PREPROCESSING if has_id(content, name)), None)


def data_of(content: Mapping[str, Any]) -> str | None:
    """Return the id of the list of cases that the evaluator's data set takes; None if it is made by an expression."""
    chain: str | None = evaluator_of(content)
    for key in ("val_data_loader", "dataset"):
        chain = followed(content, f"{chain}::{key}")
    names = [f"{chain}::data", "dataset::data", "validate::dataset::data"]
    return next((name for name in names if has_id(content, name)), None)


def argument_of(content: Mapping[str, Any], key: str, *others: str) -> str | None:
    """Return the id of an argument of the evaluator, else the first of `others` that the config has, else None."""
    own = f"{evaluator_of(content)}::{key}"
    return next((name for name in (own, *others) if has_id(content, name)), None)


def postprocessings_of(content: Mapping[str, Any]) -> list[str]:
    """Return the ids of the transforms after the network, in their order: the evaluator's, then those of handlers.

    Where the evaluator has none, those that usually are.
    """
    evaluator = evaluator_of(content)
    own = [name for name in [f"{evaluator}::postprocessing"] if has_id(content, name)]
    added = [f"{name}::transform" for name in handlers_of(content) if class_name(_node(content, name)) == _POST]
    return [*own, *added] or [name for name in ("postprocessing", "validate::postprocessing") if has_id(content, name)][
        :1
    ]


def handlers_of(content: Mapping[str, Any]) -> list[str]:
    """Return the ids of the evaluator's handlers, as far as they are a list; switched-off ones are left out."""
    place = followed(content, f"{evaluator_of(content)}::val_handlers")
    listed = value_at(content, place) if place is not None else None
    found = [followed(content, f"{place}::{n}") for n in range(len(listed))] if isinstance(listed, list) else []
    return [name for name in found if name is not None and _node(content, name).get("_disabled_") not in _TRUE]


def _node(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = value_at(content, name)
    return value if isinstance(value, Mapping) else {}
