"""`medkit run bundle`: run any MONAI bundle on images."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from medkit.bundles.bundle import INFERENCE, Bundle
from medkit.bundles.contract import PLACES, contract_of
from medkit.dicom_objects import DicomChoices, dicom_options, with_dicom
from medkit.inference.options import BundleOptions, bundle_options
from medkit.options import RunOptions, task_options
from medkit.task import run_task

if TYPE_CHECKING:
    from medkit.dicom_objects import Answer, Maker, Meaning
    from medkit.task import Result


@click.command()
@bundle_options(named=True)
@click.option(
    "--config",
    "configs",
    default=INFERENCE,
    show_default=True,
    metavar="NAME[,NAME]",
    help="The bundle's config to run; ids of a further one replace the first one's.",
)
@click.option(
    "--probabilities", is_flag=True, help="Also write the probabilities that a segmentation's labels come from."
)
@click.option(
    "--min-score",
    type=float,
    metavar="S",
    help="Leave out boxes with a lower score.  [default: as the bundle does]",
)
@dicom_options("seg", "image", "sr")
@task_options
def bundle(
    options: RunOptions, chosen: BundleOptions, dicom: DicomChoices, configs: str, probabilities: bool,
    min_score: float | None,
) -> None:  # fmt: skip
    """Run any MONAI bundle on images.

    A bundle for segmentation makes label maps on the images' grids, one for classification a table of probabilities,
    one for detection a table of boxes, one for landmarks a table of points, others images. If it takes several images
    for a case, a record names them.

    \b
    medkit run bundle --bundle ./spleen_ct_segmentation --trust *.nii.gz -o spleens
    """
    from medkit.inference.task import bundle_task

    found = replace(chosen.any(), configs=tuple(name.strip() for name in configs.split(",")))
    task = bundle_task("bundle", [found], replace(chosen.settings, probabilities=probabilities, min_score=min_score))
    makers = _makers(found, task.outputs[0].role)
    run_task(with_dicom(task, dicom, *makers, parts=contract_of(found).keys), options)


def _makers(bundle: Bundle, role: str) -> Sequence[Maker]:
    """Return what makes DICOM objects of the bundle's first result, by its kind; `role`: its name."""
    from medkit.dicom_objects import ClassReport, DerivedImages, Segments, VolumeReport, meanings_of

    contract = contract_of(bundle)
    names = {int(n): str(name) for n, name in (bundle.block.get("labels") or contract.classes).items()}
    meanings = meanings_of(names, bundle.block.get("codes"), f"bundle {bundle.name}")
    if contract.kind in PLACES:
        return []
    if contract.kind == "image":
        return [DerivedImages(role)]
    if contract.kind == "table":
        return [ClassReport(functools.partial(_answers, meanings=meanings))]
    segments = Segments(role, meanings)
    return [segments, VolumeReport(segments)]


def _answers(result: Result, *, meanings: Mapping[str, Meaning]) -> list[Answer]:
    """Return the most probable class of an image, or of each aspect of it."""
    from medkit.dicom_objects import FINDING, Answer, meaning_of, private_code

    table = result.metrics["probabilities"]
    found = result.metrics.get("classes") or {"": result.metrics["class"]}
    return [
        Answer(
            private_code(aspect) if aspect else FINDING,
            ": ".join(filter(None, [aspect, name])),
            meaning_of(name, meanings).type,
            list(table.items()),
        )
        for aspect, name in found.items()
    ]
