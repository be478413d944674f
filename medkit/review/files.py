"""Where results come from, for the page: each file of their trees once, with what its sidecar says."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medkit.pipe.provenance import command_line, in_words
from medkit.pipe.records import Record, describe_programs, lineage
from medkit.review.cases import bundle_of
from medkit.run.looks import plain


def files_of(records: Iterable[Record]) -> dict[str, dict[str, Any]]:
    """Return path -> facts of all files that the results were made from, and of the results."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        for file in lineage(record):
            if str(file.path) not in found:
                found[str(file.path)] = _facts(file)
    return found


def _facts(record: Record) -> dict[str, Any]:
    """Return what the page says of a file; empty facts are left out."""
    block = record.medkit
    facts: dict[str, Any] = {"kind": record.kind, "sources": [str(path) for path in record.sources]}
    facts["missing"] = not record.path.exists()
    if block and not record.failed:
        bundle, arguments = bundle_of(record), block.get("arguments")
        facts |= {
            "description": record.description,
            "command": command_line(record) or in_words(record),
            "programs": describe_programs(record.generated_by),
            "bundle": " ".join(str(bundle[key]) for key in ("name", "version") if key in bundle),
            "arguments": _texts(arguments) if isinstance(arguments, Mapping) else {},
            "seconds": block.get("seconds"),
            "device": block.get("device"),
            "look": bool(block.get("look")),
            "warnings": [plain(str(text)) for text in block.get("warnings") or ()],
        }
    return {name: value for name, value in facts.items() if value not in (None, "", False, [], {})}


def _texts(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return the arguments that say something, as texts."""
    said = {name: value for name, value in arguments.items() if value not in (None, "", [], {})}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in said.items()}


def label_colours_of(record: Record) -> dict[str, str]:
    """Return the name of each structure of a label map -> its colour in pictures, as `#rrggbb`."""
    labels = record.medkit.get("labels")
    if not isinstance(labels, Mapping):
        return {}
    from medkit.figures.overlays import label_colours

    numbered = [(int(number), str(name)) for number, name in labels.items() if str(number).isdecimal()]
    colours = label_colours([number for number, _ in numbered])  # type: ignore[arg-type]
    return {name: "#{:02x}{:02x}{:02x}".format(*map(int, c)) for (_, name), c in zip(numbered, colours, strict=True)}


def common_folder(paths: Iterable[Path]) -> str:
    """Return the folder that the page leaves out in front of paths, with its final slash; empty if it is the root."""
    parts = [path.parent.parts for path in paths]
    shared = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return f"{Path(*shared)}/" if len(shared) > 1 else ""
