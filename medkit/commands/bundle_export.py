"""`medkit bundle export`: a bundle in one file that other programs can run."""

from __future__ import annotations

from pathlib import Path

import click

from medkit import plugins
from medkit.bundles.archive import printable
from medkit.bundles.bundle import find_bundle, require_trust
from medkit.bundles.exported import FORMATS
from medkit.bundles.summary import megabytes
from medkit.errors import UsageError, listed, size_text
from medkit.pipe.records import absolute


@click.command(short_help="Write a bundle into one file that other programs can run.")
@click.argument("name", metavar="NAME|PATH")
@click.option("-o", "--output", required=True, allow_from_autoenv=False, metavar="FILE", help="The file to write.")
@click.option(
    "--format",
    "form",
    type=click.Choice(list(FORMATS)),
    help="The form of its network.  [default: by the suffix: .ts, .pt2 or .onnx]",
)
@click.option("--measure", "scan", metavar="IMAGE", help="Measure precisions on an image, for the metadata.")
@click.option("--overwrite", is_flag=True, help="Replace FILE.")
# no variable: trust is given to one bundle at a time
@click.option(
    "--trust",
    is_flag=True,
    allow_from_autoenv=False,
    help="Let the bundle's code run, now and until it changes; see medkit bundle audit.",
)
def export(name: str, output: str, form: str | None, scan: str | None, overwrite: bool, trust: bool) -> None:
    """Write a bundle into one file: its network as a program, with configs and texts inside.

    FILE is a bundle again: `--bundle FILE` gives the same results. The network is compared with the bundle's own before
    anything is written.

    \b
    medkit bundle export brain_mri_segmentation -o brain.onnx
    """
    target = absolute(output)
    if scan is not None and not Path(scan).exists():
        raise UsageError(f"--measure {scan}: no such file")
    by_suffix = {suffix: word for word, suffix in FORMATS.items()}
    suffixes = listed([FORMATS[form]] if form else list(by_suffix), "or")
    if target.suffix not in by_suffix or form not in (None, by_suffix[target.suffix]):
        raise UsageError(f"--output {output}: expected a name that ends in {suffixes}")
    found = find_bundle(name, plugins.registry())
    require_trust(found, trust=trust)
    from medkit.inference.exporting import export as write
    from medkit.machine.threads import granted_threads, limit_torch

    limit_torch(granted_threads())
    done = write(found, target, by_suffix[target.suffix], overwrite=overwrite, scan=absolute(scan) if scan else None)
    takes = (
        f"images of {size_text(done.sizes)} voxels only" if done.sizes else "images of any size that the bundle takes"
    )
    notes = f"{megabytes(target.stat().st_size)}, largest difference {done.difference:.1e} of the largest value"
    click.echo(printable(f"medkit: {notes}; its network takes {takes}"), err=True)
    click.echo(target)
