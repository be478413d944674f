"""`medkit report`: a page on which a person looks through results, and a table of all their metrics."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from medkit.errors import UsageError
from medkit.options import absolute_path
from medkit.pipe.lines import input_lines
from medkit.review.making import ReportMade, ReportRequest, make_report

log = logging.getLogger("medkit")
_FILE = click.Path(dir_okay=False)


@click.command()
@click.argument("inputs", nargs=-1, metavar="[PATH]...")
@click.option(
    "-o",
    "--output",
    callback=absolute_path,
    metavar="PATH",
    help="The page, such as report.html; with --folder, a folder.",
)
@click.option("--folder", is_flag=True, help="Write a folder, with the pictures next to the page.")
@click.option(
    "--csv",
    callback=absolute_path,
    type=_FILE,
    metavar="FILE",
    help="Write all metrics as one table, a row for each case.",
)
@click.option("--tsv", callback=absolute_path, type=_FILE, metavar="FILE", help="The same, separated by tabs.")
@click.option(
    "--qc",
    multiple=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Take pictures that --qc has written into DIR; repeatable.",
)
@click.option("--no-pictures", is_flag=True, help="Draw no pictures of results that have none of --qc.")
@click.option("--viewer", is_flag=True, help="Let the page show the volumes, by niivue (medkit[viewer]).")
@click.option(
    "--marks",
    callback=absolute_path,
    type=click.Path(exists=True, dir_okay=False),
    metavar="MARKS.csv",
    help="Begin with the marks of an earlier review.",
)
@click.option("--title", default="Results of medkit", show_default=True, help="The title of the page.")
@click.option(
    "--list",
    "list_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Read the paths from FILE, as from stdin.",
)
@click.option("-0", "--null", is_flag=True, help="Lines end in NUL instead of newline.")
@click.option("--overwrite", is_flag=True, help="Replace an existing page or table.")
def report(
    inputs: tuple[str, ...],
    output: Path | None,
    folder: bool,
    csv: Path | None,
    tsv: Path | None,
    qc: tuple[Path, ...],
    no_pictures: bool,
    viewer: bool,
    marks: Path | None,
    title: str,
    list_file: Path | None,
    null: bool,
    overwrite: bool,
) -> None:
    """Make one page of many results, to look through and to mark, from PATHs or from a pipe.

    A PATH is a result, a folder of results, or a file or folder of records (--records). Failed cases come first, then
    those that need a look.

    \b
    medkit report labels aligned -o report.html
    medkit run segment scans -o labels --json | medkit report -o report.html --csv volumes.csv
    """
    if csv and tsv:
        raise UsageError("--csv and --tsv contradict each other")
    if not (output or csv or tsv):
        raise UsageError("name the page (-o report.html) or the table (--csv FILE)")
    if output and not folder and (output.is_dir() or output.suffix.lower() not in (".html", ".htm")):
        raise UsageError(f"-o {output}: expected a name that ends in .html, or --folder for a folder")
    if folder and not output:
        raise UsageError("--folder needs -o DIR")
    if viewer and not output:
        raise UsageError("--viewer needs a page: -o report.html")
    request = ReportRequest(
        output,
        folder,
        csv or tsv,
        tuple(path.absolute() for path in qc),
        not no_pictures,
        marks,
        title,
        overwrite,
        viewer,
    )
    made = make_report(input_lines(inputs, list_file, null), request)
    for path in made.files:
        click.echo(path)
    _say(made)
    if made.problems:
        sys.exit(1)


def _say(made: ReportMade) -> None:
    failed, look, far = (
        sum(map(test, made.cases))
        for test in (lambda c: c.state == "failed", lambda c: c.state == "look", lambda c: bool(c.outliers))
    )
    size = sum(path.stat().st_size for path in made.files) / 1e6
    count = "1 case" if len(made.cases) == 1 else f"{len(made.cases)} cases"
    click.echo(
        f"medkit: report: {count}: {failed} failed, {look} to look at, {far} with outliers; {size:.1f} MB", err=True
    )
    if made.volumes is not None:
        few = "" if made.volumes == len(made.cases) else " (--folder has room for more)"
        text = f"volumes of {made.volumes} of {count}{few}; {made.volumes_size / 1e6:.1f} MB"
        click.echo(f"medkit: report: {text}", err=True)
    for problem in made.problems:
        log.error("report: %s", problem)
