"""`medkit evaluate`: scores of results against references."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from medkit.commands.evaluate.lines import inputs, new_file, records
from medkit.errors import InputError, UsageError
from medkit.inference.options import BundleOptions, bundle_options
from medkit.options import option, valid_device
from medkit.pipe.lines import guarded_stdout, input_lines
from medkit.terminal.tables import layout_on

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_NEW = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("files", nargs=-1, metavar="[RESULT]... REFERENCE")
@click.option(
    "--reference",
    metavar="FILE|FOLDER|PATTERN",
    help="What to compare with. All arguments are results then; without any, their names are read from stdin. "
    "In a pattern such as labels/oasis_{id}_labels.nii.gz, {id} stands for the case. For classes also a table of "
    "cases and classes, or a datalist.",
)
@click.option(
    "--kind",
    type=click.Choice(["auto", "labels", "images", "points", "classes"]),
    default="auto",
    show_default=True,
    help="What the files contain; auto: known from their names, folders and sidecars.",
)
@click.option("--labels", metavar="N,N-N,...", help="Labels to compare, as numbered in the results.")
@click.option(
    "--label-map",
    type=_FILE,
    metavar="FILE",
    help="Table with a header, separated by tabs: number in the references, number in the results (0: ignore), "
    "and optionally a name.",
)
@click.option("--mask", metavar="FILE|FOLDER|PATTERN", help="Images: the region to compare.")
@click.option(
    "--data-range",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="Images: span of the intensities for SSIM and PSNR.  [default: each reference's]",
)
@click.option(
    "--transform",
    metavar="FILE|FOLDER|PATTERN",
    help="Points: maps fixed points (REFERENCE) to the moving ones (RESULT) before they are compared.",
)
@click.option(
    "--resample",
    is_flag=True,
    help="Resample results on another grid onto the reference's: labels by nearest neighbour, images linearly.",
)
@click.option("--allow-missing", is_flag=True, help="Exit with 0 although files have no partner.")
@click.option("--per-label", is_flag=True, help="Print a table of the labels, or points, as well.")
@click.option("--csv", "csv_file", type=_NEW, metavar="FILE", help="Write a row per case and label (or point).")
@click.option(
    "--plots",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Classes: draw the ROC curve and the reliability; with --robustness: how the metric falls.",
)
@click.option(
    "--aspect",
    metavar="NAME",
    help="Classes: the one to compare, if results hold several of an image, such as contrast and usability.",
)
@click.option("--overwrite", is_flag=True, help="Replace the --csv file and the --plots.")
@click.option(
    "--robustness",
    is_flag=True,
    help="Run --bundle on original and corrupted images; the arguments are images, and the references of its results.",
)
@click.option(
    "--shifts", metavar="NAME,...", help="With --robustness: corruptions to try.  [default: all that fit the bundle]"
)
@bundle_options(optional=True)
@option("--device", default="auto", callback=valid_device, metavar="auto|cpu|cuda[:N]|mps", help="Where to compute.")
@option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@option("-0", "--null", is_flag=True, help="Lines in end in NUL instead of newline.")
@click.option("--list", "list_file", type=_FILE, metavar="FILE", help="Read the results from FILE, as from stdin.")
@option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads.  [default: what the scheduler or the CPU affinity grants]",
)
@option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Seed of the bootstrap, and of the corruptions.  [default: 0]",
)
def evaluate(files: tuple[str, ...], **given: Any) -> int:
    """Compare results with references, or test how robust a bundle is to corrupted images.

    Labels (Dice, HD95, ASSD, volume), images (MSE, SSIM, PSNR, NCC), points (TRE), classes (AUC, accuracy and so on).

    \b
    medkit evaluate predictions labels --csv scores.csv
    medkit run segment scans/*.nii.gz | medkit evaluate --reference 'labels/{id}_labels.nii.gz'
    medkit evaluate --kind classes results truth.csv --plots curves
    medkit evaluate --robustness --bundle B scans --reference 'labels/{id}_labels.nii.gz'
    """  # fmt: skip
    with guarded_stdout() as stdout:
        text, code = _work(files, given | {"layout": layout_on(stdout)})
        stdout.write(os.fsencode(text))
        stdout.flush()
    return code


def _work(files: tuple[str, ...], given: dict[str, Any]) -> tuple[str, int]:
    """Return what to print, and the exit code."""
    chosen: BundleOptions = given.pop("chosen")
    if given["robustness"] != (chosen.name is not None):
        raise UsageError("--robustness and --bundle need each other: the bundle is run on corrupted images")
    named, reference = inputs(files, given["reference"], given["list_file"] is not None)
    if given["csv_file"]:
        new_file(given["csv_file"], given["overwrite"])
    found, bad = records(input_lines(named, given["list_file"], given["null"]))
    if given["robustness"]:
        from medkit.commands.evaluate.robustness import measure_robustness

        return measure_robustness(found, bad, reference, chosen, given)
    _refuse(given, "robustness", "shifts")
    results = [record.path for record in found]
    from medkit.evaluation.classes.predictions import hold_classes

    if given["kind"] == "classes" or (given["kind"] == "auto" and hold_classes(results)):
        from medkit.commands.evaluate.classes import compare_classes

        return compare_classes(results, bad, reference, given)
    if not any(path.exists() for path in results) and (given["plots"] or given["aspect"]):
        raise InputError("\n".join(f"{path}: no such file or folder" for path in results))
    _refuse(given, "classes", "plots", "aspect")
    from medkit.commands.evaluate.pairs import compare_pairs

    return compare_pairs(results, bad, reference, given)


def _refuse(given: dict[str, Any], what: str, *names: str) -> None:
    """Raise UsageError if options are given that belong to `what`."""
    for name in names:
        if given[name] is not None:
            raise UsageError(f"--{name} is for {what}, which these files are not")
