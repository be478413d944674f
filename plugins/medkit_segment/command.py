"""`medkit run segment`: options and one call."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medkit.dicom_objects import DicomChoices, Segments, VolumeReport, dicom_options, with_dicom
from medkit.errors import UsageError, did_you_mean
from medkit.inference import AUTO, BundleOptions, bundle_options
from medkit.options import RunOptions, absolute_path, some_of, task_options, words
from medkit.task import absolute, run_task
from medkit_segment.methods import METHODS, range_of
from medkit_segment.results import ROLES, SegmentChoices

if TYPE_CHECKING:
    from medkit.task import Task

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _roles(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    roles = words(ctx, param, value)
    if unknown := [role for role in roles if role not in ROLES]:
        raise click.BadParameter(f"{unknown[0]}: expected {', '.join(ROLES)}{did_you_mean(unknown[0], ROLES)}")
    if not roles:
        raise click.BadParameter(f"expected some of {', '.join(ROLES)}")
    return roles


def _structures(ctx: click.Context) -> Iterable[str]:
    """Return the names of structures of the bundle that was named, else of all."""
    from medkit_segment.structures import CHEST_LABELS
    from medkit_segment.task import names_of

    names = dict.fromkeys(CHEST_LABELS.values()) if ctx.params.get("method") == "threshold" else {}
    chosen = BundleOptions(ctx.params.get("name"), trust=False, settings=None)  # type: ignore[arg-type]
    for bundle in () if names else chosen.of_task("segment"):
        names |= dict.fromkeys(names_of(bundle).values())
    return names


def _table(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
    if value is not None and not value.endswith(".tsv"):
        raise click.BadParameter(f"{value}: expected a name that ends in .tsv")
    return absolute_path(ctx, param, value)


@click.command()
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default=METHODS[0],
    show_default=True,
    help="network: a bundle; threshold: Hounsfield units and shapes, for CT of the chest; grow: from --seeds.",
)
@click.option(
    "--outputs",
    "roles",
    default="labels",
    show_default=True,
    callback=_roles,
    shell_complete=some_of(ROLES),
    metavar="ROLE,...",
    help=f"What to write, the main output first: {', '.join(ROLES)}. labels come with a table of the structures.",
)
@click.option(
    "--labels",
    callback=words,
    shell_complete=some_of(_structures),
    metavar="NAME,...",
    help="Keep these structures only.  [default: all]",
)
@click.option("--split", is_flag=True, help="Also write a mask of each structure.")
@click.option(
    "--table",
    callback=_table,
    metavar="FILE.tsv",
    allow_from_autoenv=False,
    help="Write a row for each structure of each case to FILE, and no separate files; --skip-existing continues it.",
)
@click.option("--tta", is_flag=True, help="Average over the image and its mirror image: slower, a little better.")
@click.option("--clean/--no-clean", default=True, show_default=True, help="Remove stray pieces of structures.")
@click.option(
    "--refine/--no-refine",
    default=True,
    show_default=True,
    help="Refine the network's labels by the scan's intensities, where the bundle states how.",
)
@click.option("--seeds", type=_FILE, help='Points, mm, from which --method grow starts (or "seeds" in a record).')
@click.option(
    "--range",
    "limits",
    default="auto",
    show_default=True,
    callback=range_of,
    metavar="LOW,HIGH|auto",
    help="Values that --method grow takes in; auto: those around the seeds.",
)
@click.option(
    "--coordinates",
    type=click.Choice(["RAS", "LPS"]),
    default="RAS",
    show_default=True,
    help="Frame of seeds in tables; Slicer's files state their own.",
)
@bundle_options()
@dicom_options("seg", "sr")
@task_options
def segment(
    options: RunOptions,
    chosen: BundleOptions,
    dicom: DicomChoices,
    method: str,
    roles: tuple[str, ...],
    labels: tuple[str, ...],
    split: bool,
    table: Path | None,
    tta: bool,
    clean: bool,
    refine: bool,
    seeds: Path | None,
    limits: tuple[float, float] | None,
    coordinates: str,
) -> None:
    """Label structures in images.

    Writes a label map on each image's own grid, and a table of its structures: index, name, colour, volume in mm3,
    confidence of the network, and what to look at; for CT also densities. The brain bundle takes any MR contrast, whole
    heads or skull-stripped; the chest bundle takes CT.

    \b
    medkit run segment *.nii.gz --outputs labels,mask,brain -o labelled
    medkit run segment chests/*.nii.gz --outputs labels,regions -o lungs
    medkit run segment ct.nii.gz --method grow --seeds liver.csv --range 80,180
    """
    choices = SegmentChoices(roles, clean, labels, split, table, refine)
    if method == "network":
        _refuse(seeds=seeds, range=limits)
        from medkit_segment.task import meanings_of_bundles, segmentation

        task: Task = segmentation(chosen, choices, tta=tta)
        meanings = meanings_of_bundles(chosen)
    else:
        _refuse(
            bundle=None if chosen.name == AUTO else chosen.name,
            tta=tta,
            **{"no-clean": not clean, "no-refine": not refine},
        )
        from medkit_segment.classical import growing, thresholding
        from medkit_segment.structures import CHEST_MEANINGS

        meanings = CHEST_MEANINGS
        if method == "threshold":
            _refuse(seeds=seeds, range=limits)
            task = thresholding(choices)
        else:
            task = growing(choices, absolute(seeds) if seeds else None, limits, coordinates)
    if dicom.kinds and "labels" not in roles:
        raise UsageError("--dicom: needs labels among --outputs")
    segments = Segments(meanings=meanings)
    run_task(with_dicom(task, dicom, segments, VolumeReport(segments)), options)


def _refuse(**given: object) -> None:
    """Raise UsageError if an option is given that the method does not have."""
    if unused := [name for name, value in given.items() if value]:
        raise UsageError(f"--{unused[0]}: does not go with this --method")
