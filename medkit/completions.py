"""What a shell offers for a word: names that are known, names of a list with commas, files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Completer = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]
"""Returns what a word that has begun may become; click's `shell_complete`."""
Names = Callable[[click.Context], Iterable[str]]
"""Returns the names that may be meant, given the options before the word."""


def files(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Let the shell complete names of files and folders; they stand for themselves in arguments without a type."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(begun, type="file")]


def one_of(names: Names | Iterable[str], *, or_file: bool = False) -> Completer:
    """Return what completes a name, or with `or_file` also a file: that is offered once no name fits."""

    def complete(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name) for name in _known(names, ctx) if name.startswith(begun)]
        return found if found or not or_file else files(ctx, param, begun)

    return complete


def some_of(names: Names | Iterable[str]) -> Completer:
    """Return what completes the last name of a list with commas; names in the list are not offered again."""

    def complete(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        before, comma, last = begun.rpartition(",")
        given = before.split(",")
        left = [name for name in _known(names, ctx) if name.startswith(last) and name not in given]
        return [CompletionItem(f"{before}{comma}{name}") for name in left]

    return complete


def _known(names: Names | Iterable[str], ctx: click.Context) -> Iterable[str]:
    """Return the names; none if they cannot be found out, since a shell shows no errors."""
    if not callable(names):
        return names
    try:
        return list(names(ctx))
    except Exception:
        return []
