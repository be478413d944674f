"""`medkit evaluate --robustness`: how much a bundle's metric falls on corrupted images."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medkit.commands.evaluate.classes import write_pictures
from medkit.commands.evaluate.lines import say
from medkit.errors import MedkitError, Stopped, UsageError
from medkit.inference.options import BundleOptions
from medkit.options import RunOptions
from medkit.pipe.atomic import write_atomically
from medkit.pipe.records import Record
from medkit.pipe.signals import StopRequest
from medkit.terminal.progress import bar_of

if TYPE_CHECKING:
    from medkit.robustness.run import Item
    from medkit.terminal.progress import Bar

_FOR = {"labels": "labels", "label_map": "labels", "data_range": "images", "mask": "", "transform": ""}
"""Option -> the only kind of results that it is for; empty: none."""


def measure_robustness(
    found: Sequence[Record], bad: Sequence[str], reference: str, chosen: BundleOptions, given: Mapping[str, Any]
) -> tuple[str, int]:
    """Return what to print, and the exit code; `bad`: sentences about lines that do not name an image."""
    from medkit.robustness.report import as_data, csv_text, picture, table
    from medkit.robustness.run import classes_of, corruptions_for, kind_of, measure

    bundle = chosen.any()
    kind = kind_of(bundle)
    _check_options(kind, given)
    classes = classes_of(bundle, given["aspect"])
    corruptions = corruptions_for(kind, [name.strip() for name in (given["shifts"] or "").split(",") if name.strip()])
    takes = "images" if "image" in bundle.kinds else "labels"
    records = [each for record in found for each in _in_folder(record, takes)]
    items, unmatched = _items(records, reference, kind, given["aspect"])
    say(*bad, *unmatched)
    if not items:
        raise MedkitError("nothing to compare")
    options = RunOptions(device=given["device"], threads=given["threads"], seed=given["seed"])
    try:
        with StopRequest(), bar_of("evaluate", len(items)) as bar:
            tell = functools.partial(_tell, bar)
            done = measure(items, bundle, _settings(kind, given), chosen.settings, corruptions, options, tell, classes)
    except Stopped as stopped:
        say(f"stopped by {stopped}: nothing was written")
        return "", Stopped.exit_code
    say(*done.failures)
    if given["csv_file"]:
        write_atomically(given["csv_file"], csv_text(done))
    if given["plots"]:
        write_pictures(given["plots"], {"robustness.png": picture(done)}, given["overwrite"])
    text = json.dumps(as_data(done)) + "\n" if given["as_json"] else table(done, given["layout"])
    return text, int(bool(bad or done.failures) or (bool(unmatched) and not given["allow_missing"]))


def _tell(bar: Bar, line: str) -> None:
    bar.count()
    click.echo(line, err=True)


def _settings(kind: str, given: Mapping[str, Any]) -> Any:
    from medkit.evaluation.measures.label_maps import LabelMap, parse_labels
    from medkit.evaluation.results import EvaluationSettings

    return EvaluationSettings(
        kind=kind,  # type: ignore[arg-type]
        labels=parse_labels(given["labels"]) if given["labels"] is not None else (),
        label_map=LabelMap.read(given["label_map"]) if given["label_map"] else None,
        resample=given["resample"],
        data_range=given["data_range"],
        seed=given["seed"],
    )


def _items(records: Sequence[Record], reference: str, kind: str, aspect: str | None) -> tuple[list[Item], list[str]]:
    """Return the images with their references, and a sentence for each image without one."""
    from medkit.evaluation.classes.truth import find_truth
    from medkit.evaluation.matching import match
    from medkit.robustness.run import Item

    paths = [record.path for record in records]
    if kind == "classes":
        truth = find_truth(paths, reference, aspect)
        known, missing = dict(truth.found), truth.missing
    else:
        matches = match(paths, reference, kind)
        known, missing = {path: str(file) for path, file in matches.found.items()}, matches.missing
    items = [Item(record, known[record.path]) for record in records if record.path in known]
    return items, [f"{path}: no reference: {why}" for path, why in missing.items()]


def _in_folder(record: Record, takes: str) -> list[Record]:
    """Return the files of a folder that a bundle takes (images, or labels and masks), and pictures.

    For a file or a DICOM series that is the record itself.
    """
    from medkit.evaluation.matching import files_of, of_kind
    from medkit.inference.inputs import is_picture

    if not record.path.is_dir():
        return [record]
    volumes = files_of(record.path, takes)
    if volumes == [record.path]:
        return [record]
    every = sorted(path for path in record.path.rglob("*") if path.is_file() and not path.name.startswith("."))
    pictures: list[Path] = [path for path in every if is_picture(path)]
    return [Record(path) for path in (*of_kind(volumes, takes), *pictures)]


def _check_options(kind: str, given: Mapping[str, Any]) -> None:
    """Raise UsageError for options that do not fit the results of the bundle."""
    if given["kind"] not in ("auto", kind):
        raise UsageError(f"--kind {given['kind']}: the results of the bundle are {kind}")
    for name, of in _FOR.items():
        if given[name] is not None and kind != of:
            raise UsageError(f"--{name.replace('_', '-')} does not apply to the robustness of {kind}")
