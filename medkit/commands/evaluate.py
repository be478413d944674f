"""`medkit evaluate`: scores of results against references."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medkit.errors import InputError, MedkitError, OutputError, UsageError
from medkit.options import granted_threads, option
from medkit.pipe import guarded_stdout, input_lines
from medkit.records import absolute, record_from_line

if TYPE_CHECKING:
    from medkit.evaluation import Evaluation, Failure, Pair, Scores, Settings
    from medkit.evaluation.pairs import Matches
    from medkit.evaluation.scores import Kind

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
    help="What the files hold.  [auto: what their names, folders and sidecars say]",
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
    request = _request(files, **given)
    with guarded_stdout() as stdout:
        text, code = _work(request)
        stdout.write(os.fsencode(text))
        stdout.flush()
    return code


@dataclass(frozen=True)
class _Request:
    """What the user asked for."""

    results: tuple[str, ...]
    """Files, or one folder; nothing for stdin."""
    reference: str
    given: dict[str, Any]
    """The other options."""


def _request(files: tuple[str, ...], *, reference: str | None, **given: Any) -> _Request:
    """The results apart from the reference; UsageError where options contradict each other."""
    if reference is None:
        if len(files) < 2 or given["list_file"]:
            raise UsageError("expected RESULT REFERENCE, or results with --reference FILE, FOLDER or PATTERN")
        *files_before, reference = files
        files = tuple(files_before)
    csv_file = given["csv_file"]
    if csv_file is not None and csv_file.exists() and not given["overwrite"]:
        raise OutputError(f"{csv_file}: exists already: use --overwrite, or choose another name")
    return _Request(files, reference, given)


def _work(request: _Request) -> tuple[str, int]:
    """What to print, and the exit code."""
    from medkit.evaluation import evaluate
    from medkit.evaluation.report import as_data, csv_text, table
    from medkit.files import write_atomically

    given = request.given
    pairs, settings, unmatched = _planned(request)
    for message in unmatched.values():
        click.echo(f"medkit: {message}", err=True)
    if not pairs:
        raise MedkitError("no result has a reference")
    _share_cores(settings, given["threads"])
    done = evaluate(pairs, settings, _tell)
    if given["csv_file"] is not None:
        write_atomically(given["csv_file"], csv_text(done))
    data = as_data(done) | {"unmatched": [str(path) for path in unmatched]}
    text = json.dumps(data) + "\n" if given["as_json"] else table(done, given["per_label"]) if done.scores else ""
    return text, _exit_code(done, bool(unmatched) and not given["allow_missing"])


def _share_cores(settings: Settings, threads: int | None) -> None:
    """Before torch is imported: threads that spin while they wait made --resample six times as slow on busy cores."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if settings.kind == "images" or settings.resample:
        import torch

        torch.set_num_threads(threads or granted_threads())


def _exit_code(done: Evaluation, lacking: bool) -> int:
    if not done.scores and all(failure.refused for failure in done.failures):
        return InputError.exit_code
    return int(bool(done.failures) or lacking)


def _tell(outcome: Scores | Failure) -> None:
    """Failures and warnings go to stderr at once."""
    from medkit.evaluation import Failure

    name = outcome.pair.name
    for line in [outcome.error] if isinstance(outcome, Failure) else outcome.warnings:
        click.echo(f"medkit: {name}: {line}", err=True)


def _planned(request: _Request) -> tuple[list[Pair], Settings, dict[Path, str]]:
    """The pairs, how to compare them, and the files without a partner, each with a sentence."""
    from medkit.evaluation import LabelMap, Settings
    from medkit.evaluation.label_maps import parse_labels
    from medkit.evaluation.pairs import match, of_kind

    given = request.given
    results, failed, folder = _results(request)
    kind: Kind = given["kind"] if given["kind"] != "auto" else _kind(results, request.reference)
    _check_options(kind, given)
    results = of_kind(results, kind) if folder else results
    matches = match(results, request.reference, kind)
    unmatched = failed | {path: f"{path}: no reference: {why}" for path, why in matches.missing.items()}
    if folder:
        unmatched |= {path: f"{path}: no result for this reference" for path in matches.unused}
    label_map = given["label_map"]
    settings = Settings(
        kind=kind,
        labels=parse_labels(given["labels"]) if given["labels"] else (),
        label_map=LabelMap.read(label_map) if label_map else None,
        resample=given["resample"],
        data_range=given["data_range"],
        seed=given["seed"],
    )
    extras = {
        role: match(list(matches.found), given[role], what) if given[role] else None
        for role, what in (("mask", "labels"), ("transform", "transforms"))
    }
    for role, found in extras.items():
        unmatched |= {path: f"{path}: no {role}: {why}" for path, why in (found.missing if found else {}).items()}
    return _pairs(matches, extras), settings, unmatched


def _pairs(matches: Matches, extras: dict[str, Matches | None]) -> list[Pair]:
    """A pair per result that has all it needs, named by its stem, or by its path where two have one stem."""
    from medkit.evaluation import Pair
    from medkit.evaluation.pairs import stem_of

    needed = [found.found for found in extras.values() if found]
    results = [result for result in matches.found if all(result in found for found in needed)]
    stems = [stem_of(result) for result in results]
    pairs = []
    for result, name in zip(results, stems, strict=True):
        own = {role: found.found[result] for role, found in extras.items() if found}
        pairs.append(Pair(name if stems.count(name) == 1 else str(result), result, matches.found[result], **own))
    return pairs


def _results(request: _Request) -> tuple[list[Path], dict[Path, str], bool]:
    """The results; those that an earlier command failed on, each with a sentence; whether they are a folder's."""
    from medkit.evaluation.pairs import files_of

    single = absolute(request.results[0]) if len(request.results) == 1 else None
    if single is not None and single.is_dir():
        kinds = [request.given["kind"]] if request.given["kind"] != "auto" else ["images", "points"]
        found = list(dict.fromkeys(path for kind in kinds for path in files_of(single, kind)))
        if not found:
            raise InputError(f"{single}: no file to compare in this folder")
        return found, {}, found != [single]
    lines = input_lines(request.results, request.given["list_file"], request.given["null"])
    records = [record_from_line(line) for line in lines]
    if not records:
        raise MedkitError("no input arrived")
    failed = {r.path: f"{r.path}: an earlier command failed on it" for r in records if r.failed}
    return list(dict.fromkeys(r.path for r in records if not r.failed)), failed, False


def _kind(results: Sequence[Path], reference: str) -> Kind:
    from medkit.evaluation.pairs import files_of, kind_between

    if "{id}" in reference:
        return kind_between(results, [absolute(reference)])
    place = absolute(reference)
    candidates = [path for kind in ("images", "points") for path in files_of(place, kind)]
    return kind_between(results, candidates)


def _check_options(kind: str, given: dict[str, Any]) -> None:
    """Raises UsageError for options that say nothing about this kind of files."""
    belongs = {"labels": "labels", "label_map": "labels", "mask": "images", "data_range": "images",
               "transform": "points"}  # fmt: skip
    for name, of in belongs.items():
        if given[name] is not None and kind != of:
            raise UsageError(f"--{name.replace('_', '-')} is for {of}, and these files are taken for {kind} (--kind)")
