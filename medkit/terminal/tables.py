"""Tables and trees: drawn on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from medkit.terminal.rendering import rendered
from medkit.terminal.screen import screen_of

Layout = Callable[[Sequence[Sequence[str]], int], str]
"""Lays out a table, whose first row is its head: takes the rows, an empty one for a gap, and how many of the first
columns are text; the others are numbers."""


def aligned(rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Return rows as columns two spaces apart, the first `texts` of them aligned left, the others right."""
    widths = [max(len(row[column]) for row in rows if column < len(row)) for column in range(len(rows[0]))]
    lines = (
        "  ".join(
            cell.ljust(width) if column < texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def layout_on(stream: IO[Any] | None) -> Layout:
    """Return the layout for a stream: on a terminal cells are wrapped at its width."""
    columns = columns_of(stream)
    if columns is None:
        return aligned

    def drawn(rows: Sequence[Sequence[str]], texts: int = 1) -> str:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for number, name in enumerate(rows[0]):
            table.add_column(Text(name), justify="left" if number < texts else "right", overflow="fold")
        for row in rows[1:]:
            table.add_row(*map(Text, row))
        return draw(table, columns, stream).rstrip("\n")

    return drawn


def columns_of(stream: IO[Any] | None) -> int | None:
    """Return the width of the terminal that a stream prints on; None if it is none, or a dumb one."""
    screen = screen_of(stream)
    return screen.size[0] if screen is not None else None


def draw(renderable: Any, columns: int, stream: IO[Any] | None) -> str:
    """Return what rich draws on the terminal of a stream."""
    return rendered(renderable, columns, getattr(stream, "encoding", None) or "utf-8")


@dataclass(frozen=True)
class Node:
    """A tree: what it is, facts about it, and the trees below."""

    title: str
    note: str = ""
    facts: Sequence[str] = ()
    children: Sequence[Node] = ()


def tree_lines(node: Node, stream: IO[Any] | None) -> Iterator[str]:
    """Yield the lines of a tree for a stream."""
    columns = columns_of(stream)
    if columns is None:
        yield from _plain(node, "", "")
    else:
        yield draw(_tree(node), columns, stream).rstrip("\n")


def _plain(node: Node, lead: str, indent: str) -> Iterator[str]:
    yield f"{lead}{node.title}  {node.note}".rstrip()
    bar = "│ " if node.children else "  "
    for fact in node.facts:
        yield f"{indent}{bar}  {fact}"
    for number, child in enumerate(node.children, start=1):
        last = number == len(node.children)
        yield from _plain(child, indent + ("└─ " if last else "├─ "), indent + ("   " if last else "│  "))


def _tree(node: Node) -> Any:
    from rich.text import Text
    from rich.tree import Tree

    label = Text.assemble((node.title, "bold"), "  ", (node.note, "dim"))
    for fact in node.facts:
        doubtful = fact.startswith(("warning: ", "needs a look", "BROKEN", "conflict: "))
        label.append("\n" + fact, "yellow" if doubtful else "")
    tree = Tree(label, guide_style="dim")
    for child in node.children:
        tree.children.append(_tree(child))
    return tree
