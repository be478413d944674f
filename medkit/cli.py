"""The `medkit` command: lazy groups of commands and tasks, from the core and from plugins; errors to exit codes."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from medkit import __version__, plugins
from medkit.commandline import WORDS
from medkit.errors import INTERRUPTED, MedkitError, PluginError, Stopped, reason_of
from medkit.helppages import OWN, OWN_OF_TASK, lay_out, question, sharpened
from medkit.machine.user import give_matplotlib_a_folder, name_unknown_user
from medkit.options import PLUGIN_KEY, doubtful_variables
from medkit.pipe.lines import guarded_stdout, nobody_reads, private_stdin
from medkit.pipe.signals import StopRequest
from medkit.plugins import Offer, Plugin
from medkit.specs import CommandSpec, TaskSpec
from medkit.terminal.screen import attach as attach_to_terminal
from medkit.terminal.streams import guard_streams, open_closed_streams

log = logging.getLogger("medkit")
_CORE = Plugin("medkit", "medkit", "medkit", __version__)
_CORE_COMMANDS = (
    CommandSpec("plugins", "List the plugins, or start a new one.", "medkit.commands.plugins:plugins"),
    CommandSpec("show", "Show where a file comes from.", "medkit.commands.show:show"),
    CommandSpec("view", "Look at an image, in the browser or the terminal.", "medkit.commands.view:view"),
    CommandSpec("report", "Make a page of results to look through and mark.", "medkit.commands.report:report"),
    CommandSpec("bundle", "List, check, install and pack bundles.", "medkit.commands.bundle:bundle"),
    CommandSpec("transform", "Apply, compose, invert and convert transforms.", "medkit.commands.transform:transform"),
    CommandSpec(
        "evaluate", "Score labels, images or points against references.", "medkit.commands.evaluate.command:evaluate"
    ),
    CommandSpec("train", "Train a bundle's network on your data, into a new bundle.", "medkit.commands.train:train"),
    CommandSpec("dicom", "List DICOM series, or convert them to NIfTI.", "medkit.commands.dicom:dicom"),
    CommandSpec("bids", "Run a task on a BIDS dataset, as a BIDS App does.", "medkit.commands.bids:bids"),
    CommandSpec("deidentify", "Copy files without what says whose they are.", "medkit.commands.deidentify:deidentify"),
    CommandSpec("describe", "Describe a task for other programs (Boutiques).", "medkit.commands.describe:describe"),
    CommandSpec("submit", "Run a pipe over many inputs as a job array.", "medkit.commands.submit:submit"),
    CommandSpec("status", "Show what has become of each input of a job array.", "medkit.commands.status:status"),
    CommandSpec("merge", "Merge the records and tables of a job array.", "medkit.commands.merge:merge"),
    CommandSpec(
        "completion", "Print what a shell needs to complete medkit's words.", "medkit.commands.completion:completion"
    ),
    CommandSpec("doctor", "Show what medkit finds here, for a bug report.", "medkit.commands.doctor:doctor"),
    CommandSpec("demo", "See medkit work: a tour of two minutes.", "medkit.commands.demo:demo"),
)
_GROUPS = ("bundle", "dicom", "plugins", "transform")
"""Those of them that have commands of their own."""
_CORE_TASKS = (TaskSpec("bundle", "Run any MONAI bundle on images.", "medkit.commands.run_bundle:bundle"),)


def _complete_values(command: click.Command) -> None:
    """Let the parameters of a command complete their values."""
    import importlib

    importlib.import_module("medkit.commands.completion").complete_values(command)


class LazyGroup(click.Group):
    """A group that knows the names and helps of its commands, and imports a command only when it is called."""

    def __init__(self, *args: object, what: str = "command", **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.what = what
        """What messages call its commands: `command` or `task`."""

    def offers(self) -> Mapping[str, tuple[Offer, ...]]:
        """Return command name -> who offers it."""
        raise NotImplementedError

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        ctx.meta.setdefault(WORDS, tuple(args))
        try:
            found = super().resolve_command(ctx, args)
        except click.UsageError as error:
            if args[0].startswith("-"):
                raise
            raise click.UsageError(
                f"No such {self.what} '{args[0]}'.{question(args[0], _commands())}", error.ctx
            ) from None
        if not isinstance(found[1], LazyGroup):  # the command has been imported; from now on it may have what to remove
            ctx.with_resource(StopRequest())
        return found

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self.offers()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if eager := super().get_command(ctx, cmd_name):
            return eager
        if offers := self.offers().get(cmd_name):
            offer = plugins.choose_offer(self.what, cmd_name, offers)
            with guarded_stdout():
                command: click.Command = offer.load()
            lay_out(command, OWN_OF_TASK if self.what == "task" else OWN)
            if ctx.resilient_parsing:  # a shell asks how the words go on
                _complete_values(command)
            ctx.meta[PLUGIN_KEY] = offer.plugin
            return command
        self._refuse_if_broken(cmd_name)
        return None

    def _refuse_if_broken(self, name: str) -> None:
        """Raise PluginError for an unknown name that a broken plugin may have brought."""
        broken = plugins.registry().broken
        for plugin in broken:
            if name == plugin.name:
                raise PluginError(
                    f"{name}: plugin {plugin.name} ({plugin.distribution} {plugin.version}) is broken: "
                    f"{plugin.error} (medkit plugins --verbose shows the traceback)"
                )
        if broken:
            # nobody knows which names a broken plugin would have brought, and a job script must not take it for a typo
            names = ", ".join(f"{p.name} of {p.distribution}" for p in broken)
            raise PluginError(
                f"no {self.what} {name} among the plugins that work; broken: {names} (see medkit plugins --verbose)"
            )

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands with their one-line helps, without importing any."""
        offers = self.offers()
        lines = [(name, self._help(name, offers.get(name, ()))) for name in self.list_commands(ctx)]
        if lines:
            with formatter.section("Tasks" if self.what == "task" else "Commands"):
                formatter.write_dl(lines)
        found = plugins.registry()
        troubles = [(p.name, f"{p.distribution} is broken: {p.error}") for p in found.broken]
        troubles += [("conflict", sentence) for sentence in found.conflicts()]
        if troubles:
            with formatter.section("Plugins in trouble (see medkit plugins --verbose)"):
                formatter.write_dl(troubles)

    def _help(self, name: str, offers: tuple[Offer, ...]) -> str:
        if len(offers) > 1:
            return "(offered by several plugins, so none of them runs)"
        return offers[0].spec.help if offers else self.commands[name].get_short_help_str(80)


class _Commands(LazyGroup):
    """The commands of the core and of the plugins."""

    def offers(self) -> Mapping[str, tuple[Offer, ...]]:
        core = {spec.name: (Offer(spec, _CORE),) for spec in _CORE_COMMANDS}
        ours = {*core, *self.commands}
        # a plugin cannot take the name of a core command; `medkit plugins` reports that it tried
        return core | {n: o for n, o in plugins.registry().commands.items() if n not in ours}

    def make_context(self, *args: Any, **settings: Any) -> click.Context:
        with _reader_may_leave():  # `--help` prints here
            return super().make_context(*args, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        with _reader_may_leave():
            return super().invoke(ctx)


class _Tasks(LazyGroup):
    """The tasks of the plugins, and the core's task that runs any bundle."""

    def offers(self) -> Mapping[str, tuple[Offer, ...]]:
        core = {spec.name: (Offer(spec, _CORE),) for spec in _CORE_TASKS}
        return dict(plugins.registry().tasks) | core


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "MEDKIT"})
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s", allow_from_autoenv=False)
def cli() -> None:
    """Small commands for medical images that chain through shell pipes.

    \b
    medkit run register --fixed mni.nii.gz *.nii.gz | medkit run segment
    """
    for doubt in doubtful_variables(os.environ, cli.list_commands(click.get_current_context())):
        log.warning("%s", doubt)


def _commands() -> Mapping[str, list[str]]:
    """Return the last word of a command -> the whole commands that end in it, for messages."""
    found: dict[str, list[str]] = {}
    groups: list[tuple[str, click.Group]] = [("medkit", cli), ("medkit run", run)]
    groups += [(f"medkit {s.name}", Offer(s, _CORE).load()) for s in _CORE_COMMANDS if s.name in _GROUPS]
    for path, group in groups:
        for name in group.list_commands(click.Context(group)):
            found.setdefault(name, []).append(f"{path} {name}")
    return found


@cli.group(cls=_Tasks, what="task")
def run() -> None:
    """Run a task on images, given as arguments or piped in, one per line."""


def core_command_names() -> frozenset[str]:
    """Return the names of commands that plugins cannot use."""
    return frozenset({spec.name for spec in _CORE_COMMANDS} | set(cli.commands))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with the code that docs/options.md lists; entry point of the `medkit` script."""
    open_closed_streams()
    attach_to_terminal()
    guard_streams()
    logging.basicConfig(format="medkit: %(message)s", level=logging.WARNING, stream=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names that are not UTF-8 keep their bytes
    name_unknown_user()
    give_matplotlib_a_folder()
    with private_stdin():
        code = _exit_code(list(sys.argv[1:] if arguments is None else arguments))
    sys.exit(code)


def _exit_code(arguments: list[str]) -> int:
    try:
        result = cli.main(arguments, prog_name="medkit", standalone_mode=False)
        if sys.stdout is not None:  # None: started with a closed stdout
            sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("medkit: stopped by Ctrl-C", err=True)
        return INTERRUPTED
    except Stopped as stopped:  # between the last case and the end
        click.echo(f"medkit: stopped by {stopped}; run again", err=True)
        return Stopped.exit_code
    except click.ClickException as error:
        if isinstance(error, click.UsageError):
            error = sharpened(error)
        error.show()
        return error.exit_code
    except MedkitError as error:
        click.echo(f"medkit: {error}", err=True)
        return error.exit_code
    except OSError as error:  # a full disk, a folder that is gone: nothing that a traceback would explain
        _forget_stdout()
        if error.errno == errno.EPIPE:  # stdout is flushed last
            return 0
        log.debug("unexpected error", exc_info=error)
        click.echo(f"medkit: {reason_of(error)}", err=True)
        return 1


@contextlib.contextmanager
def _reader_may_leave() -> Iterator[None]:
    """End with 0 if what reads stdout, such as `head`, needs no more; click would end with 1, without a word."""
    try:
        yield
    except BrokenPipeError as error:
        if not nobody_reads(1):  # another pipe broke
            raise MedkitError(reason_of(error)) from error
        _forget_stdout()
        raise click.exceptions.Exit(0) from None


def _forget_stdout() -> None:
    """Point stdout at /dev/null: it cannot be written, and Python would complain about that once more at exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    main()
