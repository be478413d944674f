"""`medkit show`: print where a file comes from, as a tree."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from medkit.errors import InputError
from medkit.pipe.provenance import command_line, in_words
from medkit.pipe.records import Record, absolute, describe_programs, record_of
from medkit.run.existing import is_there
from medkit.terminal.tables import Node, tree_lines


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the tree as JSON.")
def show(file: Path, as_json: bool) -> None:
    """Show where FILE comes from: the commands, versions and warnings of all steps, back to the first scans."""
    path = absolute(file)
    if not is_there(path):
        raise InputError(f"{path}: no such file")
    record = record_of(path)
    if as_json:
        click.echo(json.dumps(tree(record, ()), indent=1))
        return
    for line in tree_lines(_node(record, ()), sys.stdout):
        click.echo(line)


def tree(record: Record, above: tuple[Path, ...]) -> dict[str, Any]:
    """Return the record's JSON object with its sources replaced by theirs; `above`: the files made from it."""
    out = record.to_json()
    out["Sources"] = [tree(record_of(p), (*above, record.path)) for p in record.sources if p not in above]
    return out


def _node(record: Record, above: tuple[Path, ...]) -> Node:
    """Return the tree for people; `above`: the files made from it."""
    sources = [record_of(path) for path in record.sources if path not in above]
    return Node(
        title=_short(record.path, above[-1]) if above else str(record.path),
        note=f"({record.kind}{_state(record)})",
        facts=list(_facts(record)),
        children=[_node(source, (*above, record.path)) for source in sources],
    )


def _short(path: Path, result: Path) -> str:
    """Return the path of a source; only its name if it lies in the folder of its result."""
    return path.name if path.parent == result.parent else str(path)


def _state(record: Record) -> str:
    return "" if is_there(record.path) else ", missing"


def _facts(record: Record) -> Iterator[str]:
    """Yield what is known about how a file was made."""
    if not record.medkit:
        return
    yield command_line(record) or in_words(record)
    yield f"{describe_programs(record.generated_by)}, {record.medkit.get('seconds', '?')} s"
    if record.medkit.get("look"):
        yield "needs a look"
    for warning in record.medkit.get("warnings") or ():
        yield f"warning: {warning}"
