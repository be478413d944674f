"""The command that was given, as words that a shell and this program read again."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

WORDS = "medkit.words"
"""Key in click's `ctx.meta` under which the command `medkit` keeps the words that follow it."""


def given_command(leave_out: Collection[str]) -> tuple[str | Path, ...]:
    """Return the command in progress without its inputs: the names of commands, and the options that were given.

    `leave_out` has the names of parameters that do not change the result. Values from variables are included as
    options. Files are absolute paths, all else is text. Empty outside a command.
    """
    ctx = click.get_current_context(silent=True)
    if ctx is None or WORDS not in ctx.meta:
        return ()
    names = ctx.command_path.split()[1:]
    words = list(ctx.meta[WORDS])[len(names) :]
    found: list[str | Path] = list(names)
    for option, value in [*_from_line(ctx, words), *_from_variables(ctx)]:
        if option.name not in leave_out:
            found += _words_of(ctx, option, value)
    return tuple(found)


def _from_line(ctx: click.Context, words: Sequence[str]) -> Iterator[tuple[click.Option, Any]]:
    """Yield the options in the order in which they were given, each with its text, or what its flag stands for."""
    values, _, order = ctx.command.make_parser(ctx).parse_args(list(words))
    last = {parameter.name: number for number, parameter in enumerate(order)}
    several = {name: iter(value) for name, value in values.items() if isinstance(value, list)}
    for number, parameter in enumerate(order):
        if not isinstance(parameter, click.Option) or parameter.name is None:
            continue
        if parameter.multiple:
            yield parameter, next(several[parameter.name])
        elif number == last[parameter.name]:  # of an option given twice, the last one counts
            yield parameter, values[parameter.name]


def _from_variables(ctx: click.Context) -> Iterator[tuple[click.Option, Any]]:
    for option in ctx.command.params:
        source = ctx.get_parameter_source(option.name or "")
        if not isinstance(option, click.Option) or source is not click.core.ParameterSource.ENVIRONMENT:
            continue
        if not option.is_flag:
            value = option.value_from_envvar(ctx)
            yield from ((option, one) for one in (value if option.multiple else [value]))
        elif isinstance(value := ctx.params[option.name or ""], bool) or value == option.flag_value:
            yield option, value


def _words_of(ctx: click.Context, option: click.Option, value: Any) -> list[str | Path]:
    """Return the words that give an option this value."""
    name = max(option.opts, key=len)
    if option.count:
        return [name] * int(value)
    if value is False:
        return [max(option.secondary_opts, key=len)] if option.secondary_opts else []
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else []
    return [name] if option.is_flag else [name, *(_as_file(ctx, option, text) for text in texts)]


def _as_file(ctx: click.Context, option: click.Option, text: str) -> str | Path:
    """Return an absolute path for a value that names a file; some options take a file or a word (`--init`)."""
    value = ctx.params.get(option.name or "")
    parsed = value if isinstance(value, list | tuple) else [value]
    if isinstance(option.type, click.Path | click.File) or (parsed and all(isinstance(v, Path) for v in parsed)):
        return Path(os.path.abspath(text))  # noqa: PTH100 - resolve() would follow links
    if option.type is click.STRING and text != option.default and "=" not in text and Path(text).exists():
        return Path(os.path.abspath(text))  # noqa: PTH100 - resolve() would follow links
    return text
