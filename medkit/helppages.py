"""Help pages of commands: options in groups, and what a mistyped name may have meant."""

from __future__ import annotations

import difflib
import types
from collections.abc import Collection, Mapping
from typing import Any

import click

OWN = "Options"
"""The group of a command's own options, which comes first."""


class GroupedOption(click.Option):
    """An option that help pages list under a heading."""

    def __init__(self, *names: Any, group: str = OWN, **settings: Any) -> None:
        super().__init__(*names, **settings)
        self.group = group
        """The heading."""


def list_in_groups(command: click.Command) -> None:
    """Make a command, and those below it, list their options in groups if some of them belong to one.

    The classes of commands are their plugins' business, so that only the method of this command is replaced.
    """
    if isinstance(command, click.Group):
        for below in command.commands.values():
            list_in_groups(below)
    elif any(isinstance(parameter, GroupedOption) for parameter in command.params):
        setattr(command, "format_options", types.MethodType(_format_options, command))  # noqa: B010 - not for mypy


def _format_options(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    groups: dict[str, list[tuple[str, str]]] = {OWN: []}
    for parameter in command.get_params(ctx):
        row = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
        if row is not None:
            groups.setdefault(getattr(parameter, "group", OWN), []).append(row)
    for name, rows in groups.items():
        with formatter.section(name):
            formatter.write_dl(rows)


def question(name: str, commands: Mapping[str, Collection[str]]) -> str:
    """Return ` Did you mean ...?` for a mistyped command; empty if nothing is like it.

    `commands`: name -> the whole commands that end in it; an equal name elsewhere outranks those that are only like it.
    """
    near = [name] if name in commands else difflib.get_close_matches(name, commands, n=3)
    found = [f"'{whole}'" for one in near for whole in commands[one]]
    if not found:
        return ""
    return f" Did you mean {found[0]}?" if len(found) == 1 else f" Did you mean one of: {', '.join(found)}?"
