"""`medkit completion`: the script by which a shell completes commands, options and file names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from medkit.errors import UsageError


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script by which SHELL completes the words after `medkit`; it is read when a shell starts.

    \b
    medkit completion bash > ~/.local/share/bash-completion/completions/medkit
    medkit completion zsh > ~/.zfunc/_medkit
    medkit completion fish > ~/.config/fish/completions/medkit.fish
    """
    from medkit.cli import cli

    found = get_completion_class(shell)
    if found is None:
        raise UsageError(f"{shell}: click knows no completion for this shell")
    click.echo(found(cli, {}, "medkit", "_MEDKIT_COMPLETE").source())
