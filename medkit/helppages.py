"""Help pages of commands: examples first, options in groups; and what a mistyped name may have meant."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import click

from medkit.errors import did_you_mean

OWN = "Options"
"""The group of a command's own options, which comes first."""
OWN_OF_TASK = "This task"
"""The heading of that group on the pages of tasks."""
LAST = ("Inputs and outputs", "Running", "Quality control and messages")
"""The groups that come last, in this order."""


class GroupedOption(click.Option):
    """An option that help pages list under a heading."""

    def __init__(self, *names: Any, group: str = OWN, **settings: Any) -> None:
        super().__init__(*names, **settings)
        self.group = group
        """The heading."""


def lay_out(command: click.Command, own: str = OWN) -> None:
    """Give a command, and those below it, help pages with examples first, and options in groups if there are some.

    The classes of commands are their plugins' business, so that only methods of this command are replaced. `own`: the
    heading of its own options.
    """
    if isinstance(command, click.Group):
        for below in command.commands.values():
            lay_out(below)
    elif any(isinstance(parameter, GroupedOption) for parameter in command.params):
        _replace(command, "format_options", functools.partial(_format_options, own=own))
    _replace(command, "format_help_text", _format_help_text)


def _replace(command: click.Command, name: str, function: Callable[..., None]) -> None:
    setattr(command, name, functools.partial(function, command))


def _format_help_text(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Write the first paragraph of a help text, its examples, and what else it says."""
    text = inspect.cleandoc(command.help or "").partition("\f")[0]
    summary, *others = text.split("\n\n")
    examples = [one for one in others if one.startswith("\b\n") and "medkit" in one]
    if summary:
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(summary)
    if examples:
        with formatter.section("Examples"):
            formatter.write_text("\n\n".join(examples))
    if more := [one for one in others if one not in examples]:
        with formatter.section("Description") if examples else formatter.indentation():
            formatter.write_text("\n\n".join(more))


def _format_options(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter, own: str) -> None:
    groups: dict[str, list[tuple[str, str]]] = {OWN: []}
    for parameter in command.get_params(ctx):
        row = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
        if row is not None:
            groups.setdefault(getattr(parameter, "group", OWN), []).append(row)
    ordered = [*(name for name in groups if name not in LAST), *(name for name in LAST if name in groups)]
    for name in ordered:
        with formatter.section(own if name == OWN else name):
            formatter.write_dl(groups[name])


def sharpened(error: click.UsageError) -> click.UsageError:
    """Return an error with better guesses: options like the mistyped one, and a choice like the refused value."""
    if isinstance(error, click.NoSuchOption) and error.possibilities:
        near = difflib.get_close_matches(error.option_name, error.possibilities, n=3, cutoff=0.8)
        begun = [name for name in error.possibilities if name.startswith(error.option_name)]
        possibilities = list(dict.fromkeys([*near, *begun])) or error.possibilities
        return click.NoSuchOption(error.option_name, possibilities=possibilities, ctx=error.ctx)
    if isinstance(error, click.BadParameter) and error.param is not None:
        given = re.match(r"'(.*?)' is not one of", error.message)
        if given and isinstance(error.param.type, click.Choice):
            message = error.message.rstrip(".") + did_you_mean(given[1], map(str, error.param.type.choices))
            return click.BadParameter(message, error.ctx, error.param, error.param_hint)
    return error


def question(name: str, commands: Mapping[str, Collection[str]]) -> str:
    """Return ` Did you mean ...?` for a mistyped command; empty if nothing is like it.

    `commands`: name -> the whole commands that end in it; an equal name elsewhere outranks those that are only like it.
    """
    near = [name] if name in commands else difflib.get_close_matches(name, commands, n=3)
    found = [f"'{whole}'" for one in near for whole in commands[one]]
    if not found:
        return ""
    return f" Did you mean {found[0]}?" if len(found) == 1 else f" Did you mean one of: {', '.join(found)}?"
