"""The task `classify`: its outputs, its inputs, and the table of all cases."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from medkit.errors import UsageError
from medkit.inference import Bundle, BundleOptions, bundle_task, contract_of
from medkit.task import Output, Record, Table, Task
from medkit_classify import report
from medkit_classify.choices import ClassifyChoices
from medkit_classify.runner import ClassifyRunner


def classification(chosen: BundleOptions, choices: ClassifyChoices, table: Path | None = None) -> Task:
    """Return the task for one set of options.

    With `table`, each result is a row of this file, and no case has separate files. Raises UsageError if files for each
    case are requested as well, and what `bundle_task` raises.
    """
    bundles = chosen.of_task("classify")
    settings = replace(chosen.settings, sees_layers=True)
    task = bundle_task("classify", bundles, settings, runner=functools.partial(ClassifyRunner, choices=choices))
    if table is not None and (choices.explain or choices.report or choices.features):
        raise UsageError("--table writes no files for single cases: leave out --explain, --report and --save-features")
    classes = [name for bundle in bundles for name in contract_of(bundle).classes.values()]
    shared = {"points": choices.points, "labels": choices.labels, "features": choices.table, "text": choices.text}
    return replace(
        task,
        outputs=() if table else tuple(_outputs(choices)),
        table=_table(table, classes, several=len(bundles) > 1) if table else None,
        arguments={**task.arguments, "explain": choices.explain, "report": choices.report,
                   "features": choices.features, "coordinates": choices.frame, "text": choices.column},
        takes=_kinds(bundles),
        accepts=(*task.accepts, "points", "labels", "features", "text"),
        shared={role: path for role, path in shared.items() if path is not None},
        summary=_summary,
    )  # fmt: skip


def _table(path: Path, classes: Sequence[str], *, several: bool) -> Table:
    """Return the table of all cases; of several bundles, it has the classes of those that were used."""
    columns = report.columns(classes)
    of_classes = [name for name in columns if name.startswith("probability_")]
    return Table(path, columns, report.rows_of, of_classes if several else ())


def _kinds(bundles: Sequence[Bundle]) -> tuple[str, ...]:
    """Return the kinds of input that the bundles take.

    A single bundle for masks also takes images, because the name of a file does not always show that it is a mask.
    """
    kinds = dict.fromkeys(kind for bundle in bundles for kind in bundle.kinds)
    return tuple(kinds) if len(bundles) > 1 else tuple(dict.fromkeys((*kinds, "image")))


def _outputs(choices: ClassifyChoices) -> Iterable[Output]:
    """Yield the files of each case."""
    yield Output("classes", "table", "class", ".tsv")
    if choices.explain:
        yield Output("explanation", "image", choices.explain, as_picture=True)
    if choices.report:
        yield Output("report", "table", "report", ".txt")
    if choices.features:
        yield Output("features", "table", "features", ".npz")


def _summary(record: Record) -> str:
    """Return what was found, for the progress line."""
    metrics = record.medkit.get("metrics", {})
    rows = metrics.get("findings")
    if rows is None:
        return ""
    if len(rows) != 1 and not metrics.get("classes"):
        return f"{len(rows)} candidates"
    return ", ".join(str(row["class"]) for row in rows) if rows[0]["class"] else f"abstained: {rows[0]['reason']}"
