"""`medkit train`: train a bundle's network on the user's data, into a new bundle."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medkit import plugins
from medkit.bundles.bundle import WEIGHTS, bundle_for_task, find_bundle, installed
from medkit.commands.train_test import test
from medkit.errors import MedkitError, Stopped, UsageError
from medkit.options import absolute_path, option, settings, valid_device
from medkit.pipe.lines import guarded_stdout
from medkit.pipe.records import absolute
from medkit.pipe.signals import StopRequest
from medkit.terminal.progress import progress_bar
from medkit.training.ranks import RankEndedError
from medkit.training.world import World, find_world

if TYPE_CHECKING:
    from medkit.training.plan import TrainingPlan, TrainingResult

log = logging.getLogger("medkit.training")
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def _paths(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[Path, ...]:
    return tuple(absolute(text) for text in value)


@click.command()
@click.argument("task")
@click.argument("more_data", nargs=-1, metavar="", callback=_paths)
@click.option(
    "-o",
    "--output",
    required=True,
    callback=absolute_path,
    metavar="FOLDER",
    allow_from_autoenv=False,
    help="The new bundle's folder.",
)
@click.option(
    "--bundle",
    "bundle_name",
    metavar="NAME|PATH",
    allow_from_autoenv=False,
    help="The bundle to train.  [default: the task's bundle, if it has only one]",
)
@click.option(
    "--trust",
    is_flag=True,
    allow_from_autoenv=False,
    help="Run the code of a bundle that no installed plugin brings, now and until it changes.",
)
@click.option(
    "--config",
    "config_name",
    default="train",
    show_default=True,
    metavar="NAME[,NAME]",
    help="The bundle's config to run; ids of a further one replace the first one's.",
)
@click.option(
    "--data",
    callback=absolute_path,
    metavar="PATH",
    help="A datalist's .json, a Medical Decathlon, nnU-Net or BIDS folder, or a folder of images; "
    "a folder of images for each class, below PATH, for configs that learn classes; two folders, --data A/ B/, for "
    "configs that learn from unpaired images.",
)
@click.option(
    "--labels",
    callback=absolute_path,
    metavar="TABLE",
    allow_from_autoenv=False,
    help="A table with the class of each image in the folder of --data (.csv, .tsv), for configs that learn classes.",
)
@click.option("--init-from", metavar="BUNDLE|FILE", help="Start with the parameters of a bundle, .pt or .ts file.")
@click.option(
    "--freeze", multiple=True, metavar="ID", help="Do not change parameters whose names start with ID; repeatable."
)
@click.option(
    "--steps", type=click.IntRange(min=1), metavar="N", help="Optimiser steps in total.  [default: the config's]"
)
@click.option(
    "--hours",
    type=click.FloatRange(min=0, min_open=True),
    metavar="H",
    help="Hours in total, with those before a stop.",
)
@click.option(
    "--patience",
    type=click.IntRange(min=1),
    metavar="N",
    help="Stop early after N validations in a row without gain.  [default: train to the end]",
)
@click.option(
    "--folds", type=click.IntRange(min=2), metavar="K", help="Share the subjects out into K parts; --fold validates."
)
@click.option(
    "--fold", type=click.IntRange(min=1), metavar="N", help="The part that validates, 1 to K; the others train."
)
@click.option(
    "--test-fraction",
    type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
    metavar="F",
    help="Hold out this share of the subjects, and evaluate the finished bundle on them.",
)
@click.option(
    "--no-check",
    "check",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Do not read all data before the first step to find what is wrong with them.",
)
@click.option(
    "--resume/--no-resume",
    default=None,
    help="Require a checkpoint, or refuse one.  [default: continue from one of the same training]",
)
@click.option("--overwrite", is_flag=True, help="Replace another training in FOLDER.")
@click.option(
    "--checkpoint-minutes",
    type=click.FloatRange(min=0),
    default=3.0,
    show_default=True,
    metavar="M",
    help="Minutes between checkpoints.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "bf16", "fp16", "float32"]),
    default="auto",
    show_default=True,
    help="Numbers to compute with; auto: what is fast on the device.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    callback=settings,
    metavar="ID=VALUE",
    help="Change a value of the config; repeatable.",
)
@option("--device", default="auto", callback=valid_device, metavar="auto|cpu|cuda[:N]", help="Where to compute.")
@option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads.  [default: what the scheduler or the CPU affinity grants]",
)
@option("--seed", type=int, default=0, metavar="N", help="Seed of everything random.  [default: 0]")
@click.option("--dry-run", is_flag=True, help="Print what would be trained, and the time and memory it needs.")
@option("-q", "--quiet", is_flag=True, help="Print only errors on stderr.")
@option("-v", "--verbose", is_flag=True, help="Print tracebacks on stderr.")
@click.option("--progress/--no-progress", default=True, help="Show a bar, or a line now and then.  [default: on]")
def train(
    bundle_name: str | None, trust: bool, quiet: bool, verbose: bool, progress: bool, dry_run: bool, **given: Any
) -> int:  # fmt: skip
    """Train a bundle's network on your data, into a new bundle.

    \b
    medkit train segment --data scans/ -o my_bundle --hours 2
    medkit train segment --data scans/ -o my_bundle --hours 2   # again: continues where it stopped
    medkit train segment --data scans/ -o fold_2 --folds 5 --fold 2 --patience 5
    medkit train classify --data photos/ -o my_classes           # photos/ has a folder for each class
    """
    with guarded_stdout() as stdout, StopRequest(_SIGNALS) as stop:
        world = find_world(os.environ)
        _set_levels(quiet or not world.first, progress)
        try:
            plan = _plan(bundle_name, trust, world, given)
            if dry_run:
                return _print_plan(plan, stop) if world.first else 0
            with progress_bar("train", wanted=progress and not quiet and world.first):
                result = _train(plan, stop)
            if world.first and result.outcome != "stopped":
                _complete(plan, result)
                test(plan, result, stop)
        except Stopped:
            return Stopped.exit_code
        except MedkitError as error:
            if verbose:
                traceback.print_exc()
            if isinstance(error, RankEndedError) and error.told:
                return error.exit_code
            raise
        if result.outcome == "stopped":
            return 130 if stop.number is signal.SIGINT else Stopped.exit_code
        if world.first:
            stdout.write(f"{result.bundle}\n".encode())
            stdout.flush()
        return 0


def _set_levels(quiet: bool, progress: bool) -> None:
    logging.getLogger("medkit.training").setLevel(logging.ERROR if quiet else logging.INFO)
    logging.getLogger("medkit.training.progress").setLevel(logging.NOTSET if progress else logging.WARNING)


def _plan(bundle_name: str | None, trust: bool, world: World, given: dict[str, Any]) -> TrainingPlan:
    """Return the plan for the options given. Raises UsageError and BundleError."""
    from medkit.training.plan import TrainingPlan

    registry = plugins.registry()
    if given["more_data"] and given["data"] is None:
        raise UsageError(f"{given['more_data'][0]}: unexpected; data are given by --data")
    configs = given["config_name"].split(",")
    if bundle_name is None and given["data"] is not None:
        bundle_name = _bundle_for_classes(given["task"], given["data"], registry)
    chosen = bundle_for_task(bundle_name, given["task"], registry, trust=trust, configs=configs)
    weights = given.pop("init_from")
    return TrainingPlan(
        bundle=chosen,
        config=given.pop("config_name"),
        init_from=_weights_file(weights, registry) if weights else None,
        command=shlex.join(["medkit", *sys.argv[1:]]),
        world=world,
        **given,
    )


def _bundle_for_classes(task: str, data: Path, registry: plugins.Registry) -> str | None:
    """Return the name of the task's bundle that is for one's own classes of such images; None if none says so.

    Bundles say so by `medkit.own_classes` in their metadata: `planes` or `volumes`.
    """
    from medkit.training.own_classes import is_planar

    known = {b.block["own_classes"]: b for b in installed(registry) if b.task == task and "own_classes" in b.block}
    planar = is_planar(data) if known else None
    if planar is None or (chosen := known.get("planes" if planar else "volumes")) is None:
        return None
    log.info("bundle: %s, for %s; --bundle names another", chosen.name, "planes" if planar else "volumes")
    return f"{chosen.distribution}:{chosen.name}" if chosen.distribution else chosen.name


def _complete(plan: TrainingPlan, result: TrainingResult) -> None:
    """Add to a bundle whose training has ended what its task measures on the weights, and trust the bundle.

    Its code is that of the base, which is trusted, and its weights were made here.
    """
    from medkit.bundles.safety.trust import admit

    offers = plugins.registry().tasks.get(plan.task)
    function = plugins.choose_offer("task", plan.task, offers).load_trained() if offers else None
    try:
        if function is not None and result.data is not None and (result.bundle / WEIGHTS).is_file():
            function(result.bundle, result.data, plan.overrides)
        admit(result.bundle, trust=True)
    except MedkitError as error:
        log.warning("%s: the bundle is trained, but not complete: %s", result.bundle.name, error)


def _weights_file(text: str, registry: plugins.Registry) -> Path:
    """Return the file with the initial parameters that a path or the name of a bundle stands for."""
    path = absolute(text)
    if path.is_file():
        return path
    if path.suffix in (".pt", ".ts"):
        raise UsageError(f"--init-from {text}: no such file")
    return find_bundle(text, registry).weights


def _print_plan(plan: TrainingPlan, stop: StopRequest) -> int:
    from medkit.training.description import describe

    for line in describe(plan, stop):
        click.echo(line, err=True)
    return 0


def _train(plan: TrainingPlan, stop: StopRequest) -> TrainingResult:
    from medkit.training.engine import train

    return train(plan, stop)
