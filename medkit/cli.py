"""The `medkit` command: lazy groups over the core's commands and the plugins' tasks, errors turned into exit codes."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Mapping, Sequence

import click

from medkit import __version__, plugins
from medkit.errors import MedkitError, PluginError
from medkit.options import PLUGIN_KEY
from medkit.pipe import guarded_stdout
from medkit.plugins import Offer, Plugin
from medkit.specs import CommandSpec

_CORE = Plugin("medkit", "medkit", "medkit", __version__)
_CORE_COMMANDS = (
    CommandSpec("plugins", "List the plugins, or begin a new one.", "medkit.commands.plugins:plugins"),
    CommandSpec("show", "Show where a file comes from.", "medkit.commands.show:show"),
    CommandSpec("transform", "Apply spatial transforms.", "medkit.commands.transform:transform"),
    CommandSpec("demo", "See medkit work, on a brain with a known transform.", "medkit.commands.demo:demo"),
)
_BROKEN_HELP = "(broken: see medkit plugins --verbose)"


class LazyGroup(click.Group):
    """A group whose commands are known by name and help alone, and imported when they are called."""

    def __init__(self, *args: object, what: str = "command", **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.what = what

    def offers(self) -> Mapping[str, tuple[Offer, ...]]:
        """Command name -> who offers it."""
        raise NotImplementedError

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self.offers(), *(p.name for p in self._broken())})

    def _broken(self) -> Sequence[Plugin]:
        """Plugins that cannot say what they would have offered; shown under their own names."""
        return plugins.registry().broken

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if eager := super().get_command(ctx, cmd_name):
            return eager
        if offers := self.offers().get(cmd_name):
            offer = plugins.choose(self.what, cmd_name, offers)
            with guarded_stdout():
                command: click.Command = offer.load()
            ctx.meta[PLUGIN_KEY] = offer.plugin
            return command
        for plugin in self._broken():
            if cmd_name == plugin.name:
                raise PluginError(
                    f"{cmd_name}: plugin {plugin.name} ({plugin.distribution} {plugin.version}) is broken: "
                    f"{plugin.error} (medkit plugins --verbose shows the traceback)"
                )
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands with their one-line helps, without importing any."""
        offers = self.offers()
        rows = [(name, _help(offers.get(name, ())) or self._eager_help(name)) for name in self.list_commands(ctx)]
        if rows:
            with formatter.section("Tasks" if self.what == "task" else "Commands"):
                formatter.write_dl(rows)
        if hints := plugins.registry().conflicts():
            with formatter.section("Conflicts"):
                formatter.write_dl([("!", hint) for hint in hints])

    def _eager_help(self, name: str) -> str:
        return self.commands[name].get_short_help_str(80) if name in self.commands else _BROKEN_HELP


def _help(offers: tuple[Offer, ...]) -> str:
    if len(offers) > 1:
        return "(offered by several plugins: none runs)"
    return offers[0].spec.help if offers else ""


class _Commands(LazyGroup):
    def offers(self) -> Mapping[str, tuple[Offer, ...]]:
        core = {spec.name: (Offer(spec, _CORE),) for spec in _CORE_COMMANDS}
        ours = {*core, *self.commands}
        # a plugin cannot take the name of a core command; `medkit plugins` reports that it tried
        return core | {n: o for n, o in plugins.registry().commands.items() if n not in ours}

    def _broken(self) -> Sequence[Plugin]:
        return ()


class _Tasks(LazyGroup):
    def offers(self) -> Mapping[str, tuple[Offer, ...]]:
        return plugins.registry().tasks


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "MEDKIT"})
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
def cli() -> None:
    """Small commands for medical images that chain through shell pipes.

    \b
    medkit run register --fixed mni.nii.gz *.nii.gz | medkit run segment
    """


@cli.group(cls=_Tasks, what="task")
def run() -> None:
    """Run a task on images, named as arguments or piped in, a line per image."""


def core_command_names() -> frozenset[str]:
    """The names that plugins cannot take for commands of their own."""
    return frozenset({spec.name for spec in _CORE_COMMANDS} | set(cli.commands))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `medkit` script: runs a command and exits with the code that PROTOCOL's table names."""
    logging.basicConfig(format="medkit: %(message)s", level=logging.WARNING, stream=sys.stderr)
    sys.exit(_exit_code(list(sys.argv[1:] if arguments is None else arguments)))


def _exit_code(arguments: list[str]) -> int:
    try:
        result = cli.main(arguments, prog_name="medkit", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except MedkitError as error:
        click.echo(f"medkit: {error}", err=True)
        return error.exit_code
    except OSError as error:
        if error.errno != errno.EPIPE:
            raise
        _forget_stdout()
        return 0


def _forget_stdout() -> None:
    """The reader of our output is gone; without this Python would complain about it once more at exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    main()
