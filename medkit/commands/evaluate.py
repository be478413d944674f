"""`medkit evaluate`: scores of results against references."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medkit.errors import InputError, MedkitError, OutputError, UsageError
from medkit.options import granted_threads, option
from medkit.pipe import guarded_stdout, input_lines
from medkit.records import record_from_line

if TYPE_CHECKING:
    from medkit.evaluation import Evaluation, Failure, Scores, Settings

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_NEW = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("files", nargs=-1, metavar="[RESULT]... REFERENCE")
@click.option(
    "--reference",
    metavar="FILE|FOLDER|PATTERN",
    help="What to compare with. All arguments are results then; without any, their names are read from stdin. "
    "A pattern such as labels/oasis_{id}_labels.nii.gz holds {id} where the case stands.",
)
@click.option(
    "--kind",
    type=click.Choice(["auto", "labels", "images", "points"]),
    default="auto",
    show_default=True,
    help="What the files hold; auto: what their names, folders and sidecars say.",
)
@click.option("--labels", metavar="N,N-N,...", help="Labels to compare, in the results' numbers.")
@click.option(
    "--label-map",
    type=_FILE,
    metavar="FILE",
    help="Table with a header, separated by tabs: number in the references, number in the results (0: ignore), "
    "and perhaps name.",
)
@click.option("--mask", metavar="FILE|FOLDER|PATTERN", help="Images: where to compare.")
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
    help="Put results on another grid onto the reference's: labels by nearest neighbour, images linearly.",
)
@click.option("--allow-missing", is_flag=True, help="Exit 0 although files have no partner.")
@click.option("--per-label", is_flag=True, help="Also a table of the labels, or points.")
@click.option("--csv", "csv_file", type=_NEW, metavar="FILE", help="Write a row per case and label (or point).")
@click.option("--overwrite", is_flag=True, help="Replace the --csv file.")
@option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@option("-0", "--null", is_flag=True, help="Lines in end in NUL instead of newline.")
@click.option("--list", "list_file", type=_FILE, metavar="FILE", help="Read the results from FILE, as from stdin.")
@option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads.  [default: what the scheduler or the CPU affinity grants]",
)
@option("--seed", type=click.IntRange(min=0), default=0, metavar="N", help="Seed of the bootstrap.  [default: 0]")
def evaluate(files: tuple[str, ...], **given: Any) -> int:
    """Compare results with references: labels (Dice, HD95, ASSD, volume), images (MSE, SSIM, PSNR, NCC), points (TRE).

    \b
    medkit evaluate predictions labels --csv scores.csv
    medkit run segment scans/*.nii.gz | medkit evaluate --reference 'labels/{id}_labels.nii.gz'
    """  # fmt: skip
    with guarded_stdout() as stdout:
        text, code = _work(files, given)
        stdout.write(os.fsencode(text))
        stdout.flush()
    return code


def _inputs(files: tuple[str, ...], reference: str | None, listed: bool) -> tuple[tuple[str, ...], str]:
    """The results (none: those of stdin) apart from the reference. Raises UsageError."""
    if reference is not None:
        return files, reference
    if len(files) < 2 or listed:
        raise UsageError("expected RESULT REFERENCE, or results with --reference FILE, FOLDER or PATTERN")
    return files[:-1], files[-1]


def _work(files: tuple[str, ...], given: dict[str, Any]) -> tuple[str, int]:
    """What to print, and the exit code."""
    from medkit.evaluation import LabelMap, Settings, evaluate, plan
    from medkit.evaluation.label_maps import parse_labels
    from medkit.evaluation.report import as_data, csv_text, table
    from medkit.files import write_atomically

    named, reference = _inputs(files, given["reference"], given["list_file"] is not None)
    csv_file = given["csv_file"] and _new_file(given["csv_file"], given["overwrite"])
    results, bad = _results(input_lines(named, given["list_file"], given["null"]))
    planned = plan(results, reference, given["kind"], given["mask"], given["transform"]) if results else None
    if planned:
        _check_options(planned.kind, given)
    unmatched = dict(planned.unmatched) if planned else {}
    _say(*bad, *unmatched.values())
    if planned is None or not planned.pairs:
        raise MedkitError("nothing to compare")
    settings = Settings(
        kind=planned.kind,
        labels=parse_labels(given["labels"]) if given["labels"] is not None else (),
        label_map=LabelMap.read(given["label_map"]) if given["label_map"] else None,
        resample=given["resample"],
        data_range=given["data_range"],
        seed=given["seed"],
    )
    _share_cores(settings, given["threads"])
    done = evaluate(planned.pairs, settings, _tell)
    if csv_file:
        write_atomically(csv_file, csv_text(done))
    data = as_data(done) | {"unmatched": [str(path) for path in unmatched]}
    text = json.dumps(data) + "\n" if given["as_json"] else table(done, given["per_label"]) if done.scores else ""
    return text, _exit_code(done, bool(bad) or (bool(unmatched) and not given["allow_missing"]))


def _results(lines: Iterable[str]) -> tuple[list[Path], list[str]]:
    """The files that lines stand for, and a sentence for each line that stands for none or for a failed case."""
    found: dict[Path, None] = {}
    bad = []
    for line in lines:
        try:
            record = record_from_line(line)
        except MedkitError as error:
            bad.append(f"{line}: {error}")
            continue
        if record.failed:
            bad.append(f"{record.path}: an earlier command failed on it")
        else:
            found[record.path] = None
    if not found and not bad:
        raise MedkitError("no input arrived")
    return list(found), bad


def _new_file(path: Path, overwrite: bool) -> Path:
    """A file that can be written when the scores are there. Raises OutputError."""
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already: use --overwrite, or choose another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error}") from error
    return path


def _share_cores(settings: Settings, threads: int | None) -> None:
    """Before torch is imported: threads that spin while they wait made --resample six times as slow on busy cores."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if settings.kind == "images" or settings.resample:
        import torch

        torch.set_num_threads(threads or granted_threads())


def _exit_code(done: Evaluation, incomplete: bool) -> int:
    if not done.scores and all(failure.refused for failure in done.failures):
        return InputError.exit_code
    return int(bool(done.failures) or incomplete)


def _tell(outcome: Scores | Failure) -> None:
    """Failures and warnings go to stderr at once."""
    from medkit.evaluation import Failure

    lines = [outcome.error] if isinstance(outcome, Failure) else outcome.warnings
    _say(*(f"{outcome.pair.name}: {line}" for line in lines))


def _say(*sentences: str) -> None:
    for sentence in sentences:
        click.echo(f"medkit: {sentence}", err=True)


def _check_options(kind: str, given: dict[str, Any]) -> None:
    """Raises UsageError for options that say nothing about this kind of files."""
    belongs = {"labels": "labels", "label_map": "labels", "mask": "images", "data_range": "images",
               "transform": "points"}  # fmt: skip
    for name, of in belongs.items():
        if given[name] is not None and kind != of:
            raise UsageError(f"--{name.replace('_', '-')} is for {of}, and these files are taken for {kind} (--kind)")
