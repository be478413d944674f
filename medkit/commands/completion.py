"""`medkit completion`: the script by which a shell completes commands, options, their values, and file names."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

import click
from click.shell_completion import get_completion_class

from medkit import plugins
from medkit.completions import Completer, files, one_of, some_of
from medkit.errors import UsageError

_PLACES = re.compile(r"\b(FILE|PATH|DIR|FOLDER|ZIP|ROOT|IMG|INPUT|RESULT|REFERENCE)S?\b")
"""What metavars call files and folders."""
_WORD = re.compile(r"[a-z][a-z0-9-]*")
"""Values that a metavar spells out, such as those of `auto|cpu|cuda[:N]|mps`."""

_ENTITIES = ("sub", "ses", "acq", "ce", "rec", "run", "echo", "part")
"""Entities of BIDS names by which images are grouped."""

_BASH = """\
_medkit_completion() {
    local IFS=$'\\n' at words=() response completion type value
    # bash splits words at "=": an option and its value become two words, as with a space
    for ((at = 0; at <= COMP_CWORD; at++)); do
        if [[ ${COMP_WORDS[at]} == "=" && $at -gt 0 && ${COMP_WORDS[at - 1]} == --* ]]; then
            [[ $at -eq $COMP_CWORD ]] && words+=("")
        else
            words+=("${COMP_WORDS[at]}")
        fi
    done
    response=$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) _MEDKIT_COMPLETE=bash_complete "$1")
    for completion in $response; do
        IFS=',' read -r type value <<< "$completion"
        if [[ $type == dir ]]; then
            COMPREPLY=()
            compopt -o dirnames
        elif [[ $type == file ]]; then
            COMPREPLY=()
            compopt -o default
        elif [[ $type == plain ]]; then
            COMPREPLY+=("${value// /\\\\ }")
        fi
    done
    return 0
}
complete -o nosort -F _medkit_completion medkit
"""
"""Click's script for bash, with options of the form `--bundle=NAME` and values that hold spaces."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script by which SHELL completes the words after `medkit`; it is read when a shell starts.

    It completes commands, tasks, options, names of bundles and other values of options, and files.

    \b
    medkit completion bash > ~/.local/share/bash-completion/completions/medkit
    medkit completion zsh > ~/.zfunc/_medkit
    medkit completion fish > ~/.config/fish/completions/medkit.fish
    """
    from medkit.cli import cli

    if shell == "bash":
        click.echo(_BASH, nl=False)
        return
    found = get_completion_class(shell)
    if found is None:
        raise UsageError(f"{shell}: click knows no completion for this shell")
    click.echo(found(cli, {}, "medkit", "_MEDKIT_COMPLETE").source())


def complete_values(command: click.Command) -> None:
    """Let the parameters of a command, and of those below it, complete what their metavars say.

    Those keep what they have that complete something themselves: choices, paths, and what a plugin declares.
    """
    if isinstance(command, click.Group):
        for below in command.commands.values():
            complete_values(below)
    for parameter in command.params:
        own = parameter._custom_shell_complete is not None or parameter.type is not click.STRING
        if not own and (complete := _completer(parameter)):  # click takes it only when a parameter is made
            parameter._custom_shell_complete = complete


def _completer(parameter: click.Parameter) -> Completer | None:
    """Return what completes the values of a parameter; None if nothing is known about them."""
    form = parameter.metavar or ("TASK" if parameter.name == "task" else "")
    words = [word for part in form.split("|") if _WORD.fullmatch(word := part.partition("[")[0])]
    place = bool(_PLACES.search(form))
    if "--bundle" in parameter.opts or (isinstance(parameter, click.Argument) and form.startswith("NAME|")):
        return one_of(functools.partial(bundle_names, keywords=words), or_file=True)
    if form == "TASK" or "--task" in parameter.opts:
        return one_of(_task_names)
    if form.startswith("ENTITY"):
        return some_of(_ENTITIES)
    if len(listed := form.split(",")) > 1 and all(map(_WORD.fullmatch, listed)):
        return some_of(listed)
    if words:
        return one_of(words, or_file=place)
    return files if place else None


def bundle_names(ctx: click.Context, keywords: Iterable[str] = ()) -> list[str]:
    """Return the names of the bundles of the task that is being typed, of all bundles outside of tasks."""
    from medkit.bundles.bundle import installed

    known = installed(plugins.registry())
    of_task = [bundle.name for bundle in known if bundle.task == ctx.info_name]
    return [*keywords, *sorted(set(of_task or [bundle.name for bundle in known]))]


def _task_names(ctx: click.Context) -> list[str]:
    return [*sorted(plugins.registry().tasks), "bundle"]
