"""`medkit transform`: apply spatial transforms to images."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from medkit.options import RunOptions, task_options
from medkit.records import absolute
from medkit.task import Case, Output, Result, Task, run_task

if TYPE_CHECKING:
    from medkit.resample import Interpolation

_FILE = click.Path(exists=True, path_type=Path)


@click.group()
def transform() -> None:
    """Apply spatial transforms."""


@transform.command()
@click.option("--reference", type=_FILE, required=True, help="The image whose grid the result lies on.")
@click.option(
    "--transform",
    "transforms",
    type=_FILE,
    multiple=True,
    metavar="FILE",
    help="A transform, such as ITK's and ANTs' .tfm, .mat, .h5 or a displacement field. Several apply in the "
    "order given, the first one first. None: the scans' world coordinates alone.",
)
@click.option(
    "--interpolation",
    type=click.Choice(["auto", "linear", "nearest", "label"]),
    default="auto",
    show_default=True,
    help="label: the label with the largest weight around; auto: label for label images, else linear.",
)
@task_options
def apply(options: RunOptions, reference: Path, transforms: tuple[Path, ...], interpolation: str) -> None:
    """Resample images onto a reference's grid through one or more transforms.

    \b
    medkit transform apply labels.nii.gz --reference mni.nii.gz --transform x_transform.tfm -o out.nii.gz
    """
    shared = {"reference": absolute(reference)}
    shared |= {f"transform_{n}": absolute(path) for n, path in enumerate(transforms, start=1)}
    task = Task(
        name="transform apply",
        outputs=(
            Output("image", "image", "transformed", entities={"space": "{space}"}, reference=absolute(reference)),
        ),
        process=functools.partial(_apply, interpolation=interpolation, count=len(transforms)),
        arguments={"interpolation": interpolation},
        takes=("image", "labels", "mask"),
        shared=shared,
    )
    run_task(task, options)


def _apply(case: Case, *, interpolation: str, count: int) -> Result:
    from medkit.images import read_grid
    from medkit.resample import resample
    from medkit.space import compose, read_transform

    kind = case.record.kind
    discrete = kind in ("labels", "mask")
    if interpolation == "auto":
        interpolation = "label" if discrete else "linear"
    blended = discrete and interpolation == "linear"
    image = case.image(labels=(discrete and not blended) or interpolation == "label")
    grid = read_grid(case.inputs["reference"])
    parts = [read_transform(case.inputs[f"transform_{n}"]) for n in range(1, count + 1)]
    way = cast("Interpolation", interpolation)
    moved = resample(image, grid, compose(parts) if parts else None, way)
    return Result(
        {"image": moved},
        warnings=[f"linear interpolation blends the numbers of {case.path.name}, which are labels"] if blended else [],
        spatial_reference=case.inputs["reference"],
        kind=kind,
        description=f"{case.path.name} resampled onto {case.inputs['reference'].name}",
    )
