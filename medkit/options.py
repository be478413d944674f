"""The options that all tasks share: declared once, validated in callbacks, handed over as one `RunOptions` value."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from medkit import __version__
from medkit.commandline import given_command
from medkit.completions import one_of, some_of
from medkit.errors import UsageError, did_you_mean
from medkit.helppages import GroupedOption
from medkit.pipe.lines import shard_of
from medkit.pipe.names import is_file_name, shard_file, split_series
from medkit.pipe.records import absolute

__all__ = [
    "FILE_OF_CASE",
    "IMAGE_PATH",
    "PLUGIN_KEY",
    "PROGRAM",
    "ImagePath",
    "RunOptions",
    "absolute_path",
    "bytes_of",
    "group_by_option",
    "one_of",
    "option",
    "settings",
    "some_of",
    "task_options",
    "valid_device",
    "words",
]

PROGRAM = {"Name": "medkit", "Version": __version__}
"""This program as `GeneratedBy` names it (BIDS)."""
PLUGIN_KEY = "medkit.plugin"
"""Key in click's `ctx.meta` under which `medkit run` keeps the plugin that brings the called task."""


@dataclass(frozen=True)
class RunOptions:
    """The values of the options that all tasks share, explained by `medkit run TASK --help`."""

    inputs: tuple[str, ...] = ()
    list: Path | None = None
    exclude: Path | None = None
    output: Path | None = None
    keep_tree: Path | None = None
    overwrite: bool = False
    skip_existing: bool = False
    json: bool = False
    null: bool = False
    failed: Path | None = None
    records: Path | None = None
    fail_fast: bool = False
    strict: bool = False
    shard: tuple[int, int] | None = None
    part: tuple[int, int] | None = None
    """Which of N parts of a larger run this is (`--shard`, MEDKIT_PART), for names of files that all parts write."""
    workers: int = 0
    executor: str = "local"
    cluster: str | None = None
    jobs: int = 1
    scheduler_file: Path | None = None
    timeout_per_case: float | None = None
    device: str = "auto"
    threads: int | None = None
    seed: int = 0
    frame: int | None = None
    series: str | None = None
    group_by: tuple[str, ...] = ()
    qc: Path | None = None
    dry_run: bool = False
    verbosity: int = 0
    progress: bool = True
    programs: tuple[Mapping[str, str], ...] = (PROGRAM,)
    """The programs that make the results: medkit, and the distribution of the plugin if that is another one."""
    command: tuple[str | Path, ...] = ()
    """The command without its inputs and without options that do not change results, for `medkit show`."""

    @property
    def parallel(self) -> bool:
        """Whether other processes work on the cases, several at once and in any order."""
        return self.workers > 0 or self.executor == "dask"


def absolute_path(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
    """Return the absolute path; callback of options that name a file or folder."""
    return None if value is None else absolute(value)


class ImagePath(click.Path):
    """A file or folder that exists, or one series of a DICOM folder or zip that does (`study#series=3`)."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        named = split_series(Path(value))
        if named is not None and named[0].exists() and not Path(value).exists():
            return Path(value)
        return super().convert(value, param, ctx)


IMAGE_PATH = ImagePath(exists=True, path_type=Path)
"""Type of options that name an image: a file, a DICOM folder or zip, or one series of these."""


class _FileOfCase(ImagePath):
    """A file that is there, or a pattern with `{id}`, which stands for the case."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return Path(value) if "{id}" in str(value) else super().convert(value, param, ctx)


FILE_OF_CASE = _FileOfCase(exists=True, path_type=Path)
"""Type of options that name a file of all cases, or by `{id}` in its path one of each case."""


def _output(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
    path = None if value is None else absolute(value)
    from_variable = ctx.get_parameter_source("output") is click.core.ParameterSource.ENVIRONMENT
    if path is not None and from_variable and is_file_name(path):
        raise click.BadParameter(f"MEDKIT_OUTPUT={value}: the variable reaches every command of a pipe: name a folder")
    return path


def _shard(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    try:
        return None if value is None else shard_of(value)
    except UsageError as error:
        raise click.BadParameter(str(error)) from None


def valid_device(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Return the device unchanged; callback of `--device` that refuses what no command knows."""
    name, _, number = value.partition(":")
    if name not in ("auto", "cpu", "cuda", "mps") or (number and not (name == "cuda" and number.isdigit())):
        raise click.BadParameter(f"{value}: expected auto, cpu, cuda, cuda:N or mps")
    return value


def settings(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Return id -> value; callback of `--set`, given as ID=VALUE. A value that is not valid JSON is text."""
    out: dict[str, Any] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{value}: expected ID=VALUE")
        try:
            out[name] = json.loads(text)
        except ValueError:
            out[name] = text
    return out


def bytes_of(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Return a number of bytes; callback of `--memory`, given as `6G`, `500M` or bytes."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", value, re.IGNORECASE)
    if not match:
        raise click.BadParameter(f"{value}: expected a size such as 6G or 500M")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def words(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Return the words of a list with commas, each once; callback of options such as `--outputs`."""
    return tuple(dict.fromkeys(word.strip() for word in (value or "").split(",") if word.strip()))


_F = TypeVar("_F", bound=Callable[..., Any])
_PREFIX = "MEDKIT_"
_variables = {_PREFIX + name for name in ("BUNDLES", "NO_PROGRESS", "PART", "PLUGINS", "TRUST", "MEMORY")}
"""The variables that are read: those of the program, of tasks that run bundles, and of all options made by `option`."""
_WITHOUT = {_PREFIX + name for name in ("SHARD", "LIST", "BUNDLE")}
"""Variables that options might be thought to have."""


def option(*names: str, variable: bool = True, group: str | None = None, **settings: Any) -> Callable[[_F], _F]:
    """Return a click option that the variable MEDKIT_<OPTION> can set as well, unless `variable` is False.

    `group` is its heading on help pages; None: it is listed among the command's own options.
    """
    long = next(n for n in names if n.startswith("--")).split("/")[0]
    name = _PREFIX + long[2:].replace("-", "_").upper()
    if variable:
        _variables.add(name)
        settings |= {"envvar": name, "show_envvar": False}
    if group is not None:
        settings |= {"cls": GroupedOption, "group": group}
    return click.option(*names, allow_from_autoenv=variable, **settings)


def doubtful_variables(environ: Mapping[str, str], commands: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for each variable MEDKIT_... that nothing reads, and that is likely misspelt.

    `commands`: names of commands; MEDKIT_<COMMAND>_... are variables of their options.
    """
    prefixes = tuple(f"{_PREFIX}{name.upper().replace('-', '_')}_" for name in commands)
    for name in sorted(environ):
        if not name.startswith(_PREFIX) or name in _variables or name.startswith(prefixes):
            continue
        if name in _WITHOUT:
            yield f"{name} has no effect: a variable reaches every command of a pipe, so this option has none"
        else:
            yield f"{name} has no effect: no option or setting has this name{did_you_mean(name, _variables)}"


_FILE = click.Path(dir_okay=False)
_io = functools.partial(option, group="Inputs and outputs")
_check = functools.partial(option, group="Quality control and messages")
_work = functools.partial(option, group="Running")

_OPTIONS = (
    click.argument("inputs", nargs=-1, metavar="[INPUT]..."),
    _io("-o", "--output", callback=_output, metavar="PATH", help="File or folder.  [default: the input's folder]"),
    _io("--json", is_flag=True, help="Print records (JSON, one per line) instead of paths."),
    _io("-0", "--null", is_flag=True, help="Lines in and out end in NUL instead of newline."),
    _io("--list", variable=False, callback=absolute_path, type=click.Path(exists=True, dir_okay=False),
        metavar="FILE", help="Read the inputs from FILE, as from stdin."),
    _io("--exclude", callback=absolute_path, type=click.Path(exists=True, dir_okay=False), metavar="MARKS.csv",
        help="Leave out the cases that a reviewer failed (marks of medkit report)."),
    _io("--overwrite", is_flag=True, help="Replace existing results."),
    _io("--skip-existing", is_flag=True, help="Keep existing results that are complete and up to date."),
    _io("--keep-tree", callback=absolute_path, metavar="ROOT",
        help="Mirror the inputs' folders below ROOT in the output."),
    _io("--frame", type=click.IntRange(min=0), metavar="N", help="The frame of images that hold several, from 0."),
    _io("--series", metavar="UID|NUMBER", help="The series of a DICOM folder that holds several."),
    _check("--qc", callback=absolute_path, type=click.Path(file_okay=False), metavar="DIR",
           help="Write a picture per case into DIR."),
    _check("--dry-run", is_flag=True, help="Print what would run and the memory it needs, and stop."),
    _check("--strict", is_flag=True, help="Exit with 1 if a result needs a look; results are written all the same."),
    _check("-q", "--quiet", is_flag=True, help="Print only errors, and which results need a look, on stderr."),
    _check("-v", "--verbose", is_flag=True, help="Print tracebacks and timings on stderr."),
    _check("--progress/--no-progress", default=lambda: not os.environ.get("MEDKIT_NO_PROGRESS"),
           help="Show a bar on a terminal, and print a line per finished case on stderr.  [default: on]"),
    _work("--failed", callback=absolute_path, type=_FILE, metavar="FILE",
          help="Write the paths of failed inputs to FILE."),
    _work("--records", callback=absolute_path, type=click.Path(file_okay=False), metavar="DIR",
          help="Add the record of each case to a file in DIR that only this process writes."),
    _work("--fail-fast", is_flag=True, help="Stop at the first failure."),
    _work("--shard", variable=False, callback=_shard, metavar="K/N|auto|auto/N",
          help="Work on the K-th of N parts of the inputs; auto: rank in the job array, auto/N: its task's number."),
    _work("--workers", type=click.IntRange(min=0), default=0, metavar="N",
          help="Work in N child processes.  [default: 0, in this process]"),
    _work("--executor", type=click.Choice(["local", "dask"]), default="local",
          help="dask: in --workers N processes here, or on a cluster (needs medkit[hpc]).  [default: local]"),
    _work("--cluster", metavar="slurm|pbs|sge|lsf|htcondor|FILE",
          help="Submit the Dask workers as jobs; FILE: Dask's settings of the jobs (YAML)."),
    _work("--jobs", type=click.IntRange(min=1), default=1, metavar="N", help="Most jobs at once.  [default: 1]"),
    _work("--scheduler-file", callback=absolute_path, type=click.Path(dir_okay=False),
          metavar="FILE", help="Use the Dask scheduler that wrote FILE, and its workers."),
    _work("--timeout-per-case", type=click.FloatRange(min=0, min_open=True), metavar="S",
          help="Give up on a case after S seconds."),
    _work("--device", default="auto", callback=valid_device, metavar="auto|cpu|cuda[:N]|mps",
          help="Where to compute."),
    _work("--threads", type=click.IntRange(min=1), metavar="N",
          help="Threads.  [default: what the scheduler or the CPU affinity grants]"),
    _work("--seed", type=int, default=0, metavar="N", help="Seed of everything random.  [default: 0]"),
)  # fmt: skip

_COMMON = {f.name for f in fields(RunOptions)} - {"command", "part"} | {"quiet", "verbose"}
"""The names of the options that all tasks share."""
_OF_RESULTS = {"output", "keep_tree", "seed", "frame", "series", "group_by"}
"""Those that a result, or its name, depends on."""

group_by_option = _io(
    "--group-by", callback=words, metavar="ENTITY,...", help="One case per group of BIDS names, such as sub,ses."
)
"""For tasks that take all lines as one case (`arity="all"`)."""


def task_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that all tasks share; the function gets them as its argument `options` (a `RunOptions`)."""

    @functools.wraps(function)
    def with_run_options(*args: Any, **given: Any) -> Any:
        common = {name: given.pop(name) for name in _COMMON & set(given)}
        return function(*args, options=_run_options(**common), **given)

    for decorate in reversed(_OPTIONS):
        with_run_options = decorate(with_run_options)
    return with_run_options


def _run_options(*, quiet: bool, verbose: bool, **common: Any) -> RunOptions:
    """Return the options as one value. Raises UsageError if they contradict each other."""
    _let_options_outrank_variables(common, ("overwrite", "skip_existing"))
    command = given_command(_COMMON - _OF_RESULTS)
    part = common["shard"] or _part(os.environ)
    options = RunOptions(verbosity=verbose - quiet, programs=_programs(), command=command, part=part, **common)
    if options.overwrite and options.skip_existing:
        raise UsageError("--overwrite and --skip-existing contradict each other")
    if options.failed and not (options.failed.parent.is_dir() and os.access(options.failed.parent, os.W_OK)):
        raise UsageError(f"--failed {options.failed}: there is no folder {options.failed.parent} that can be written")
    if options.keep_tree and (options.output is None or is_file_name(options.output)):
        raise UsageError("--keep-tree needs a folder as --output")
    _check_executor(options)
    if options.failed and options.part:
        return replace(options, failed=shard_file(options.failed, options.part))
    return options


def _check_executor(options: RunOptions) -> None:
    """Raise UsageError if the options about where cases are worked on contradict each other."""
    places = {"--cluster": options.cluster, "--scheduler-file": options.scheduler_file}
    given = [name for name, value in places.items() if value]
    if given and options.executor != "dask":
        raise UsageError(f"{given[0]} needs --executor dask")
    if len(given) == 2:
        raise UsageError("--cluster and --scheduler-file contradict each other")
    if options.jobs > 1 and not options.cluster:
        raise UsageError("--jobs needs --cluster")
    if options.workers and given:
        raise UsageError(f"--workers counts processes on this machine; with {given[0]} leave it out (--jobs N)")


def _part(environ: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the part of a larger run whose lines are all that arrives here: job scripts state it to all stages."""
    text = environ.get("MEDKIT_PART")
    try:
        return shard_of(text) if text else None
    except UsageError:
        raise UsageError(f"MEDKIT_PART={text}: expected K/N, such as 3/8") from None


def _let_options_outrank_variables(common: dict[str, Any], opposites: Sequence[str]) -> None:
    """Turn off flags from variables that contradict a flag given as an option."""
    source = click.get_current_context().get_parameter_source
    if any(source(name) is click.core.ParameterSource.COMMANDLINE for name in opposites):
        common |= {n: False for n in opposites if source(n) is not click.core.ParameterSource.COMMANDLINE}


def _programs() -> tuple[Mapping[str, str], ...]:
    plugin = click.get_current_context().meta.get(PLUGIN_KEY)
    if plugin is None or plugin.distribution == "medkit":
        return (PROGRAM,)
    return (PROGRAM, {"Name": plugin.distribution, "Version": plugin.version})
