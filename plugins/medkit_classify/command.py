"""`medkit run classify`: options and one call."""

from __future__ import annotations

from pathlib import Path

import click

from medkit.dicom_objects import ClassReport, DicomChoices, dicom_options, with_dicom
from medkit.errors import UsageError
from medkit.inference import BundleOptions, bundle_options
from medkit.options import RunOptions, absolute_path, task_options
from medkit.task import absolute, run_task
from medkit_classify.choices import ClassifyChoices
from medkit_classify.fact_tables import Sources
from medkit_classify.measurements import answers_of_bundles
from medkit_classify.task import classification

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _table(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
    if value is not None and not value.endswith(".tsv"):
        raise click.BadParameter(f"{value}: expected a name that ends in .tsv")
    return absolute_path(ctx, param, value)


@click.command()
@click.option(
    "--table",
    callback=_table,
    metavar="FILE.tsv",
    allow_from_autoenv=False,
    help="Write a row for each case to FILE, and no separate files; --skip-existing continues it.",
)
@click.option(
    "--explain",
    type=click.Choice(["gradcam", "occlusion"]),
    help="Also write a map of the image that shows what speaks for the class.",
)
@click.option("--report", is_flag=True, help="Also write the findings as a text.")
@click.option("--save-features", is_flag=True, help="Also write the network's features (.npz).")
@click.option("--points", type=_FILE, help='Classify these places of a volume, mm (or "points" in a record).')
@click.option("--labels", type=_FILE, help='Classify the pieces of this label map (or "labels" in a record).')
@click.option(
    "--coordinates",
    type=click.Choice(["RAS", "LPS"]),
    default="RAS",
    show_default=True,
    help="Frame of points in tables; Slicer's files state their own.",
)
@click.option(
    "--features",
    type=_FILE,
    metavar="TABLE",
    help="Numbers such as age, a row for each case, for a bundle that reads them (.csv, .tsv).",
)
@click.option(
    "--text",
    metavar="FILE|FOLDER|COLUMN",
    help="Report text for a bundle that reads it: a file, a folder with <stem>.txt, or a column of --features.",
)
@bundle_options()
@dicom_options("sr")
@task_options
def classify(
    options: RunOptions,
    chosen: BundleOptions,
    dicom: DicomChoices,
    table: Path | None,
    explain: str | None,
    report: bool,
    save_features: bool,
    points: Path | None,
    labels: Path | None,
    coordinates: str,
    features: Path | None,
    text: str | None,
) -> None:
    """Name what images show, with confidence.

    Writes a table for each image: class, probabilities, calibrated confidence, and whether no class is given because
    the image is unlike the bundle's training images. Some bundles classify places in a volume.

    \b
    medkit run classify xrays/*.png --table results.tsv
    medkit run classify ct.nii.gz --points candidates.csv --explain gradcam --report
    medkit run classify xrays/*.png --bundle ./mine --features blood.csv --text reports/
    """
    if points and labels:
        raise UsageError("--points and --labels: give only one of them")
    sources = Sources.of(absolute(features) if features else None, text)
    choices = ClassifyChoices(
        explain,  # type: ignore[arg-type]
        report,
        save_features,
        absolute(points) if points else None,
        absolute(labels) if labels else None,
        coordinates,
        sources.table,
        sources.texts,
        sources.column,
    )
    task = classification(chosen, choices, table)
    run_task(with_dicom(task, dicom, ClassReport(answers_of_bundles(chosen))), options)
