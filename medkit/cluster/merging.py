"""One file from the files of all shards: records, tables, lists of failures."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medkit.cluster.folder import JobFolder
from medkit.errors import MedkitError, listed
from medkit.pipe.atomic import whole, write_atomically
from medkit.pipe.lines import text_lines
from medkit.pipe.names import TABLE_SUFFIXES, sidecar_path
from medkit.pipe.records import Record, read_sidecar, sha256_of

_PART = re.compile(r"(?P<stem>.+)\.(?P<k>\d+)-of-(?P<n>\d+)(?P<suffix>\.[^.]+)?")
"""Names that `medkit.pipe.names.shard_file` makes."""


def merge(folder: JobFolder) -> list[Path]:
    """Merge the files of all shards in a folder, and return the files that were made.

    Raises MedkitError if a part of a table or list is missing, or tables do not belong together.
    """
    made = [merge_parts(target, parts) for target, parts in sorted(find_parts(folder.root).items())]
    if folder.records.is_dir():
        made.append(merge_records(folder))
    if not made:
        raise MedkitError(f"{folder.root}: there is nothing to merge: no records, and no files of shards")
    return made


def merge_records(folder: JobFolder) -> Path:
    """Write the latest record of each case and task into `records.jsonl`, in the order in which they were finished."""
    kept: dict[tuple[str, str], tuple[str, str]] = {}
    for path in sorted(folder.records.glob("*.jsonl")):
        for line in text_lines(path.read_bytes().decode(errors="surrogateescape")):
            try:
                record = json.loads(line)
                block, sources = record["medkit"], record.get("Sources")
                case = record["path"] if block["status"] == "failed" or not sources else sources[0]
                key, finished = (block["task"], case), block["finished"]
            except (ValueError, KeyError, TypeError):
                continue  # the end of a line of a process that was killed
            if key not in kept or kept[key][0] <= finished:
                kept[key] = (finished, line)
    target = folder.root / "records.jsonl"
    with whole(target) as file:
        for _, line in sorted(kept.values()):
            file.write(os.fsencode(line) + b"\n")
    return target


def find_parts(root: Path) -> dict[Path, dict[tuple[int, int], Path]]:
    """Return merged file -> its parts by (K, N), for all files below a folder that are named `K-of-N`."""
    found: dict[Path, dict[tuple[int, int], Path]] = {}
    for path in root.rglob("*-of-*"):
        match = _PART.fullmatch(path.name)
        if match and match["suffix"] in (None, *TABLE_SUFFIXES) and not path.name.startswith("."):
            target = path.with_name(match["stem"] + (match["suffix"] or ""))
            found.setdefault(target, {})[int(match["k"]), int(match["n"])] = path
    return found


def merge_parts(target: Path, parts: Mapping[tuple[int, int], Path]) -> Path:
    """Write the parts of a table or list into one file, in their order; an existing file is replaced.

    Raises MedkitError if parts are missing or do not belong together.
    """
    sizes = {n for _, n in parts}
    if len(sizes) > 1:
        raise MedkitError(f"{target}: there are parts of {listed(sorted(map(str, sizes)))}: remove those of older runs")
    n = sizes.pop()
    if missing := [str(k) for k in range(1, n + 1) if (k, n) not in parts]:
        raise MedkitError(f"{target}: of {n} parts, {', '.join(missing)} is missing: not merged")
    ordered = [parts[k, n] for k in range(1, n + 1)]
    if target.suffix.lower() in TABLE_SUFFIXES:
        _merge_tables(target, ordered)
    else:
        write_atomically(target, b"".join(path.read_bytes() for path in ordered))
    return target


def _merge_tables(target: Path, parts: Sequence[Path]) -> None:
    heads = {path: path.read_bytes().split(b"\n", 1)[0] for path in parts}
    if other := [path.name for path in parts if heads[path] != heads[parts[0]]]:
        raise MedkitError(f"{target}: {other[0]} has other columns than {parts[0].name}: not merged")
    records = [read_sidecar(sidecar_path(path)) for path in parts]
    settings = [_settings(record) for record in records]
    if other := [path.name for path, found in zip(parts, settings, strict=True) if found != settings[0]]:
        raise MedkitError(f"{target}: {other[0]} was made with other settings than {parts[0].name}: not merged")
    with whole(target) as file:
        file.write(heads[parts[0]] + b"\n")
        for path in parts:
            file.writelines(_rows(path))
    if records[0] is not None:
        _write_sidecar(target, [record for record in records if record is not None])


def _rows(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        next(file, None)
        yield from file


def _settings(record: Record | None) -> Any:
    """Return what all rows of a table depend on."""
    if record is None:
        return None
    return [record.generated_by, *(record.medkit.get(key) for key in ("task", "arguments", "bundle", "seed"))]


def _write_sidecar(target: Path, records: Sequence[Record]) -> None:
    """Write the sidecar of a merged table, so that a later run can add rows to it."""
    looks = any(record.medkit.get("look") for record in records)
    block = dict(records[0].medkit) | {
        "outputs": {"table": {"path": str(target), "sha256": sha256_of(target)}},
        "look": looks,
        "warnings": [warning for record in records for warning in record.medkit.get("warnings", ())],
    }
    merged = replace(records[0], path=target, medkit=block)
    write_atomically(sidecar_path(target), json.dumps(merged.to_json(target.parent), indent=1) + "\n")
