"""`medkit bundle`: list, describe, check, audit, install, import, export and pack bundles."""

from __future__ import annotations

import itertools
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import click

from medkit import plugins
from medkit.bundles import store
from medkit.bundles.archive import printable
from medkit.bundles.bundle import find_bundle, missing_files, require_trust
from medkit.bundles.safety.trust import is_trusted
from medkit.bundles.summary import describe, list_lines, megabytes, rows, show_lines
from medkit.commands.bundle_export import export
from medkit.commands.bundle_new import new
from medkit.errors import UsageError, listed
from medkit.pipe.records import absolute
from medkit.terminal.progress import bar_of, has_bar, set_progress
from medkit.terminal.tables import layout_on

json_option = click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
# no variable: trust is given to one bundle at a time
trust_option = click.option(
    "--trust", is_flag=True, allow_from_autoenv=False,
    help="Let its code run, now and until it changes; see medkit bundle audit.",
)  # fmt: skip


@click.group()
def bundle() -> None:
    """List, describe, check, install and pack bundles: networks with their configs, weights and texts.

    \b
    medkit bundle audit stranger.zip && medkit bundle install stranger.zip --trust
    """


@bundle.command(name="list", short_help="List the bundles that there are.")
@json_option
def list_(as_json: bool) -> None:
    """List the bundles that plugins bring and those that you installed."""
    found = rows(plugins.registry())
    if as_json:
        click.echo(json.dumps([asdict(row) for row in found], indent=1))
        return
    for line in list_lines(found, layout_on(sys.stdout)):
        click.echo(line)


@bundle.command(short_help="Show what a bundle is for, and what it takes.")
@click.argument("name", metavar="NAME|PATH")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show what a bundle is for, its inputs and outputs, and what is known about its quality."""
    about = describe(find_bundle(name, plugins.registry()))
    if as_json:
        click.echo(json.dumps(about, indent=1))
        return
    for line in show_lines(about):
        click.echo(line)


@bundle.command(short_help="Check a bundle, also by running it.")
@click.argument("name", metavar="NAME|PATH")
@trust_option
@json_option
@click.option("--skip", multiple=True, metavar="CHECK", help="Leave a check out, such as case; repeatable.")
def verify(name: str, trust: bool, as_json: bool, skip: tuple[str, ...]) -> int:
    """Check a bundle as MONAI and its model zoo do, and run it on one scan; list everything that fails.

    The scan goes through MONAI's own run and through medkit run bundle, which have to return the same.
    """
    from medkit.bundles.verify import FAILED, READ, RUN, SECONDS, Check, verify_bundle

    names = [*READ, *RUN]
    if unknown := [word for word in skip if word not in names]:
        raise UsageError(f"--skip {unknown[0]}: expected one of {listed(names)}")
    found = find_bundle(name, plugins.registry())
    require_trust(found, trust=trust)
    left = [word for word in names if word not in skip]

    done: list[Check] = []

    def begins(word: str) -> None:
        set_progress(len(done), len(left), text=word, whole=len(done) / len(left), left=None)
        if not (os.environ.get("MEDKIT_NO_PROGRESS") or has_bar()):
            click.echo(f"medkit: verify [{left.index(word) + 1}/{len(left)}] {word}, at most {SECONDS} s", err=True)

    with bar_of("verify", len(left)) as bar:
        for check in verify_bundle(found.root, skip, begins):
            done.append(check)
            bar.count(failed=check.status == FAILED)
            if not as_json:
                for message in check.messages:
                    click.echo(printable(f"{check.status:<8}{check.name:<11} {message}"))
                sys.stdout.flush()
    if as_json:
        data = {"name": found.name, "root": str(found.root), "checks": [asdict(check) for check in done]}
        click.echo(json.dumps(data, indent=1))
    return int(any(check.status == FAILED for check in done))


@bundle.command(short_help="List what a bundle could run, without running it.")
@click.argument("name", metavar="NAME|PATH|ZIP")
@json_option
def audit(name: str, as_json: bool) -> None:
    """List what a bundle could run, without running it: expressions, foreign classes, code, unsafe weights, links."""
    from medkit.bundles.safety.audit import KINDS, audit_bundle

    path = Path(name) if Path(name).is_file() else _root(name)
    found = audit_bundle(path)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in found], indent=1))
        return
    for finding in found:
        where = "  ".join(word for word in (finding.file, finding.id) if word)
        click.echo(printable(f"{finding.kind:<11} {where}  {finding.text}"))
    for kind, meaning in KINDS.items():
        if count := sum(finding.kind == kind for finding in found):
            click.echo(f"{count:>5} {kind}: {meaning}", err=True)


def _root(name: str) -> Path:
    """Return the folder of a bundle, also if it is not a valid bundle: an audit should show what is wrong."""
    path = Path(name)
    return path.resolve() if path.is_dir() else find_bundle(name, plugins.registry()).root


@bundle.command(short_help="Install a bundle, for --bundle NAME.")
@click.argument("source", metavar="ZIP|DIR")
@click.option("--name", metavar="NAME", help="Its name in medkit.  [default: the name of its folder]")
@click.option("--task", metavar="TASK", help="The task it is for.  [default: as its metadata state]")
@click.option("--overwrite", is_flag=True, help="Replace another version of it.")
@trust_option
def install(source: str, name: str | None, task: str | None, overwrite: bool, trust: bool) -> None:
    """Install a bundle from a zip or folder, for `--bundle NAME`; without --trust it can be inspected, not run."""
    path = absolute(source)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder; medkit installs from local files, not from a network")
    taken = [spec.name for plugin in plugins.registry().plugins for spec in plugin.bundles]
    done = store.install(path, name=name, task=task, overwrite=overwrite, trust=trust, taken=taken)
    for line in _install_notes(done, trust):
        click.echo(printable(f"medkit: {line}"), err=True)
    click.echo(done.root)


def _install_notes(done: store.Installed, trust: bool) -> list[str]:
    notes = [f"{done.name} {done.version}, sha256 {done.sha256}" + (": was there already" if done.already else "")]
    if done.left_out:
        notes.append(f"left out {len(done.left_out)} hidden files, caches or files of a training")
    if done.task is None:
        notes.append("its metadata do not state which task it is for; use --task")
    if missing := missing_files(done.root):
        notes.append(f"it has no {', no '.join(missing)}")
    if not trust and not is_trusted(done.root):
        notes.append(f"it runs only with --trust; inspect it first with medkit bundle audit {done.name}")
    return notes


@bundle.command(name="import", short_help="Make a bundle of a trained nnU-Net.")
@click.argument("form", metavar="nnunet", type=click.Choice(["nnunet"]))
@click.argument("source", metavar="DIR|ZIP")
@click.option("--name", metavar="NAME", help="The bundle's name.  [default: the name of the data set]")
@click.option(
    "--configuration",
    "configurations",
    multiple=True,
    metavar="NAME",
    help="Take this configuration, such as 2d; repeatable.  [default: all]",
)
@click.option("--folds", metavar="N[,N]|all", help="Take these folds.  [default: all numbered ones]")
@click.option("--checkpoint", default="checkpoint_final.pth", show_default=True, metavar="NAME", help="The weights.")
@click.option(
    "--orientation", metavar="RAS", help="Turn images to these directions first.  [default: as the model's reader does]"
)
@click.option("--overwrite", is_flag=True, help="Replace another version of it.")
def import_(
    form: str, source: str, name: str | None, configurations: tuple[str, ...], folds: str | None, checkpoint: str,
    orientation: str | None, overwrite: bool,
) -> None:  # fmt: skip
    """Make a bundle of a trained model of nnU-Net v2, for `--bundle NAME`; nnU-Net itself is not needed.

    DIR or ZIP holds plans.json, dataset.json and fold_0/checkpoint_final.pth, or a folder for each configuration that
    does. Weights are read as tensors, and the configs are medkit's own, so the bundle may run at once.

    \b
    medkit bundle import nnunet Dataset004_Hippocampus.zip --name hippocampus
    """
    from medkit.nnunet.importing import Choices, import_model

    path = absolute(source)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder; medkit imports local files, not from a network")
    if orientation is not None and sorted(orientation) not in [sorted(axes) for axes in _DIRECTIONS]:
        raise UsageError(f"--orientation {orientation}: expected three letters, such as RAS")
    taken = [spec.name for plugin in plugins.registry().plugins for spec in plugin.bundles]
    chosen = Choices(
        name, tuple(filter(None, (folds or "").split(","))), checkpoint, configurations, orientation, overwrite
    )
    done = import_model(path, chosen, taken)
    installed = done.installed
    already = ": was there already" if installed.already else ""
    for line in (f"{installed.name} {installed.version}, sha256 {installed.sha256}{already}", *done.notes):
        click.echo(printable(f"medkit: {line}"), err=True)
    click.echo(installed.root)


_DIRECTIONS = tuple("".join(axes) for axes in itertools.product("RL", "AP", "SI"))
"""The directions of three axes, in one of their orders."""


@bundle.command(short_help="Write a bundle into a zip.")
@click.argument("name", metavar="NAME|PATH")
@click.option("-o", "--output", required=True, allow_from_autoenv=False, metavar="FILE.zip", help="The zip to write.")
@click.option("--overwrite", is_flag=True, help="Replace FILE.zip.")
def pack(name: str, output: str, overwrite: bool) -> None:
    """Write a bundle into a zip; the same bundle makes the same bytes on every machine."""
    found = find_bundle(name, plugins.registry())
    target = absolute(output)
    if target.suffix != ".zip":
        raise UsageError(f"--output {output}: expected a name that ends in .zip")
    sha256 = store.pack(found.root, found.name, target, overwrite=overwrite)
    click.echo(f"medkit: {megabytes(target.stat().st_size)}, sha256 {sha256}", err=True)
    click.echo(target)


bundle.add_command(new)
bundle.add_command(export)
