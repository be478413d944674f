"""`medkit run enhance`: options and one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from medkit import bundle as bundles
from medkit import plugins
from medkit.options import RunOptions, settings, task_options
from medkit.records import absolute
from medkit.task import run_task
from medkit_enhance.methods import DOES, WHATS, steps_of
from medkit_enhance.task import MODALITIES, enhancement

_FILE = click.Path(exists=True, path_type=Path)
_BUNDLE = "mri_enhancement"


@click.command()
@click.option(
    "--what",
    type=click.Choice(WHATS),
    default="auto",
    show_default=True,
    help="What to improve; auto: noise and bias field, where there are any.",
)
@click.option(
    "--method",
    type=click.Choice(list(DOES)),
    help="How.  [default: the network for volumes of MR where its weights are there, else nlm, n4 and clahe]",
)
@click.option(
    "--modality",
    type=click.Choice(MODALITIES),
    default="auto",
    show_default=True,
    help="What the images are; auto: CT by its air and its water, else MR for volumes.",
)
@click.option(
    "--reference", type=_FILE, help='The image as it should be: PSNR, SSIM, MSE (or "reference" in a record).'
)
@click.option("--difference", is_flag=True, help="Also write the result minus the input, as float32 NIfTI.")
@click.option(
    "--bundle",
    "name",
    metavar="NAME|PATH",
    allow_from_autoenv=False,
    help="The network to run.  [default: mri_enhancement]",
)
@click.option("--trust", is_flag=True, help="Run the code of a bundle that no installed plugin brings.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    callback=settings,
    metavar="ID=VALUE",
    help="Change a value of the bundle's config; repeatable.",
)
@task_options
def enhance(
    options: RunOptions,
    what: str,
    method: str | None,
    modality: str,
    reference: Path | None,
    difference: bool,
    name: str | None,
    trust: bool,
    overrides: dict[str, Any],
) -> None:
    """Remove noise and bias fields from images, or strengthen their contrast.

    The noise is estimated first, and an image that has too little of it to matter is left alone, as is one whose bias
    field is weak. Results are on the input's grid, scale and type; a CT keeps its Hounsfield units.

    \b
    medkit run enhance *_T1w.nii.gz -o clean
    medkit run enhance --what contrast --method gamma xray.png
    """
    chosen = bundles.choose(name or _BUNDLE, "enhance", plugins.registry(), trust=trust)
    wanted = "network" if name and method is None and what in ("auto", *DOES["network"]) else method
    steps = steps_of(what, wanted, network=(chosen.root / bundles.WEIGHTS).is_file())
    task = enhancement(
        steps,
        chosen if steps.network else None,
        overrides,
        modality=modality,
        reference=absolute(reference) if reference else None,
        difference=difference,
    )
    run_task(task, options)
