"""`medkit bids`: a task over a BIDS dataset, with the command line of a BIDS App."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from medkit.bids import DatasetImages, Selection, check_dataset, check_output, find_images
from medkit.errors import InputError, UsageError, listed
from medkit.options import absolute_path

log = logging.getLogger("medkit")
_SEVERAL = ("--participant-label", "--participant_label", "--session-label", "--session_label")
"""Options that BIDS Apps give several values after one name: `--participant-label 01 02`."""
_FOLDER = click.Path(exists=True, file_okay=False)


class _BidsApp(click.Command):
    """A command whose options for labels take all words up to the next option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(_one_value_each(args)))


def _one_value_each(words: Sequence[str]) -> Iterator[str]:
    """Yield `--x a --x b` for `--x a b`.

    >>> list(_one_value_each(["--session-label", "1", "2", "--task", "sr"]))
    ['--session-label', '1', '--session-label', '2', '--task', 'sr']
    """
    option, values = "", 0
    for at, word in enumerate(words):
        if word == "--":
            yield from words[at:]
            return
        if word.startswith("-"):
            option, values = (word if word in _SEVERAL else ""), 0
        elif option:
            values += 1
            if values > 1:
                yield option
        yield word


def _without(prefix: str) -> Any:
    """Return a callback that takes labels with or without their entity, and several with commas between them."""

    def labels(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
        words = [word for value in values for word in value.split(",") if word]
        return tuple(dict.fromkeys(word.removeprefix(prefix) for word in words))

    return labels


@click.command(cls=_BidsApp)
@click.argument("dataset", type=_FOLDER, callback=absolute_path, metavar="BIDS_DIR")
@click.argument("output", type=click.Path(file_okay=False), callback=absolute_path, metavar="OUTPUT_DIR")
@click.argument("level", type=click.Choice(["participant", "group"]))
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS OF THE TASK]")
@click.option("--task", required=True, metavar="NAME", help="The task, as in medkit run NAME.")
@click.option(
    *("--participant-label", "--participant_label", "participants"),
    multiple=True,
    callback=_without("sub-"),
    metavar="LABEL...",
    help="The participants.  [default: all]",
)
@click.option(
    *("--session-label", "--session_label", "sessions"),
    multiple=True,
    callback=_without("ses-"),
    metavar="LABEL...",
    help="The sessions.  [default: all]",
)
@click.option(
    *("--datatype", "datatypes"),
    multiple=True,
    default=("anat",),
    callback=_without(""),
    metavar="NAME",
    help="The folders of images, such as anat or pet; repeatable.  [default: anat]",
)
@click.option(
    *("--suffix", "suffixes"),
    multiple=True,
    callback=_without("_"),
    metavar="SUFFIX",
    help="The images' BIDS suffixes, such as T1w; repeatable.  [default: all but label images and transforms]",
)
@click.option(
    *("--skip-bids-validation", "--skip_bids_validation", "unchecked"),
    is_flag=True,
    help="Take a dataset without a description, and leave out images with wrong names.",
)
def bids(
    dataset: Path, output: Path, level: str, options: tuple[str, ...], task: str, unchecked: bool, **selected: Any
) -> Any:
    """Run a task on the images of a BIDS dataset, as a BIDS App does; results are a BIDS derivative dataset.

    \b
    medkit bids study study/derivatives/medkit participant --participant-label 01 02 --task segment --suffix T1w
    medkit bids study out participant --task register -- --fixed mni.nii.gz --skip-existing

    What follows -- are options of medkit run NAME. There is no group level.
    """
    if level == "group":
        raise UsageError("group: medkit has no group level; tasks make one table of all scans with -- --table FILE.tsv")
    _refuse_places(task, options)
    if not unchecked:
        check_dataset(dataset)
    check_output(dataset, output)
    found = find_images(dataset, Selection(**selected))
    _say(found, dataset, unchecked)

    from medkit.cli import cli

    words = ["run", task, *options, "--output", str(output), "--", *map(str, found.taken)]
    return cli.main(words, prog_name="medkit", standalone_mode=False)


def _refuse_places(task: str, options: tuple[str, ...]) -> None:
    """Raise UsageError for options of the task that name other inputs or another output."""
    from medkit.cli import run

    _, command, _ = run.resolve_command(click.Context(run, info_name="medkit run"), [task])
    assert command is not None
    context = command.make_context(task, list(options), resilient_parsing=True)
    if context.params.get("inputs"):
        raise UsageError(f"{listed(context.params['inputs'])}: inputs come from the dataset; options follow --")
    for name in ("output", "list", "keep_tree"):
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(f"--{name.replace('_', '-')}: the dataset and the output folder stand before --")


def _say(found: DatasetImages, dataset: Path, unchecked: bool) -> None:
    """Warn of what is left out. Raises InputError if nothing is left, or if names are wrong and are checked."""
    if found.misnamed:
        some = listed([str(path.relative_to(dataset)) for path in found.misnamed[:3]])
        text = f"{dataset}: {len(found.misnamed)} whose names do not fit their folders by BIDS: {some}"
        if not unchecked:
            raise InputError(f"{text} (--skip-bids-validation leaves them out)")
        log.warning("%s: left out", text)
    if found.without_session:
        log.warning("%s: none of these sessions: %s", dataset, ", ".join(found.without_session))
    if found.left_out:
        counts = ", ".join(f"{count} {what}" for what, count in sorted(found.left_out.items()))
        log.warning("%s: %d taken, left out: %s", dataset, len(found.taken), counts)
    if not found.taken:
        raise InputError(f"{dataset}: no images to work on (see --datatype and --suffix)")
