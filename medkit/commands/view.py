"""`medkit view`: look at one image, in the browser, as a picture, or in the terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from medkit.errors import OutputError, UsageError
from medkit.options import absolute_path
from medkit.pipe.atomic import whole
from medkit.pipe.lines import input_lines
from medkit.pipe.records import Record, record_from_line
from medkit.viewer.layers import Layers, draw_layers, layers_of, with_overlay

_PAGES, _PICTURES = (".html", ".htm"), (".png",)


@click.command()
@click.argument("image", required=False, metavar="[IMG]")
@click.option("--overlay", callback=absolute_path, metavar="X", help="Labels, or another image, to show over IMG.")
@click.option(
    "-o",
    "--output",
    callback=absolute_path,
    metavar="PATH",
    help="A page for the browser (x.html; needs medkit[viewer]), or a picture (x.png).",
)
@click.option(
    "--terminal", is_flag=True, help="Print a preview for terminals, also into a pipe. The default without -o."
)
@click.option("--frame", type=click.IntRange(min=0), default=0, show_default=True, help="Index of the time point.")
@click.option(
    "--size",
    type=click.FloatRange(min=0, min_open=True),
    default=13.0,
    show_default=True,
    metavar="MB",
    help="Size of the volumes in a page: larger ones get 256 levels, then coarser voxels.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def view(
    image: str | None,
    overlay: Path | None,
    output: Path | None,
    terminal: bool,
    frame: int,
    size: float,
    overwrite: bool,
) -> None:
    """Look at an image, named as IMG or by a line of stdin.

    Of a result the image that it was made from is shown too: labels lie over their scan.

    \b
    medkit view scan.nii.gz                               # in the terminal, also over ssh
    medkit view scan.nii.gz --overlay labels.nii.gz -o scan.html
    medkit run segment scan.nii.gz | medkit view -o labels.png

    In the terminal there are slices of half blocks in 24-bit colours, or sixels if the terminal says that it knows
    them. The page holds the image, its labels with their names, and niivue, and loads nothing.
    """
    _check(output, terminal, overwrite)
    lines = list(input_lines([image] if image else (), None, False))
    if len(lines) != 1:
        raise UsageError(f"view: expected one image, got {len(lines)}; medkit report shows many")
    record = record_from_line(lines[0])
    layers = _layers(record, overlay, frame)
    for warning in layers.image.warnings:
        click.echo(f"medkit: view: {record.path.name}: {warning}", err=True)
    if output is not None:
        _write(output, layers, record.path.name, round(size * 1e6))
    if terminal or output is None:
        from medkit.viewer.preview import for_terminal

        click.echo(for_terminal(layers), nl=False, color=True)


def _check(output: Path | None, terminal: bool, overwrite: bool) -> None:
    """Raise UsageError or OutputError before anything is read."""
    if output is None:
        if not terminal and (not sys.stdout.isatty() or os.environ.get("TERM") == "dumb"):
            raise UsageError("stdout shows no pictures: name a file (-o x.html or -o x.png), or --terminal")
        return
    if output.suffix.lower() not in (*_PAGES, *_PICTURES):
        raise UsageError(f"-o {output}: expected a name that ends in .html or .png")
    if os.path.lexists(output) and not overwrite:
        raise OutputError(f"{output}: exists already; --overwrite replaces it")
    if output.suffix.lower() in _PAGES:
        from medkit.viewer.niivue import niivue

        niivue()


def _layers(record: Record, overlay: Path | None, frame: int) -> Layers:
    from medkit.images.image import read_image

    if overlay is None:
        arguments = record.medkit.get("arguments")
        return layers_of(record, {"frame": frame} | (arguments if isinstance(arguments, dict) else {}))
    return with_overlay(read_image(record.path, frame=frame, frame_if_several=True), overlay, frame)


def _write(output: Path, layers: Layers, title: str, size: int) -> None:
    """Write the page or the picture, and say how large it is and what of the image it lost."""
    note = ""
    if output.suffix.lower() in _PAGES:
        from medkit.viewer.page import view_page
        from medkit.viewer.volumes import embedded

        volumes = embedded(layers, size, size)
        if volumes is None:
            raise UsageError(f"view: {title}: even its coarsest form has more than {size / 1e6:g} MB: raise --size")
        content, note = view_page(volumes, title).encode(), volumes["note"]
    else:
        import io

        from medkit.figures.mosaic import write_png

        buffer = io.BytesIO()
        write_png(draw_layers(layers, title), buffer)
        content = buffer.getvalue()
    try:
        with whole(output) as file:
            file.write(content)
    except OSError as error:
        raise OutputError(f"{output}: cannot be written: {error.strerror}") from None
    click.echo(output)
    lost = f"; smaller: {note}" if note else ""
    click.echo(f"medkit: view: {len(content) / 1e6:.1f} MB{lost}", err=True)
