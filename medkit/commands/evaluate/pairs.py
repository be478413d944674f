"""`medkit evaluate` on pairs of files: labels, images or points, each with its reference."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.commands.evaluate.lines import say
from medkit.errors import InputError, MedkitError, UsageError
from medkit.machine.threads import granted_threads, limit_torch
from medkit.terminal.progress import bar_of

if TYPE_CHECKING:
    from medkit.evaluation.results import Evaluation, EvaluationSettings, Failure, Scores
    from medkit.terminal.progress import Bar


def compare_pairs(results: list[Path], bad: Iterable[str], reference: str, given: dict[str, Any]) -> tuple[str, int]:
    """Return what to print, and the exit code; `bad`: sentences about lines that do not name a result."""
    from medkit.evaluation.measures.label_maps import LabelMap, parse_labels
    from medkit.evaluation.planning import plan_pairs
    from medkit.evaluation.report import as_data, csv_text, table
    from medkit.evaluation.results import EvaluationSettings
    from medkit.evaluation.run import evaluate
    from medkit.pipe.atomic import write_atomically

    planned = plan_pairs(results, reference, given["kind"], given["mask"], given["transform"]) if results else None
    if planned:
        _check_options(planned.kind, given)
    unmatched = dict(planned.unmatched) if planned else {}
    say(*bad, *unmatched.values())
    if planned is None or not planned.pairs:
        raise MedkitError("nothing to compare")
    settings = EvaluationSettings(
        kind=planned.kind,
        labels=parse_labels(given["labels"]) if given["labels"] is not None else (),
        label_map=LabelMap.read(given["label_map"]) if given["label_map"] else None,
        resample=given["resample"],
        data_range=given["data_range"],
        seed=given["seed"],
    )
    _share_cores(settings, given["threads"])
    with bar_of("evaluate", len(planned.pairs)) as bar:
        done = evaluate(planned.pairs, settings, functools.partial(_tell, bar))
    if given["csv_file"]:
        write_atomically(given["csv_file"], csv_text(done))
    data = as_data(done) | {"unmatched": [str(path) for path in unmatched]}
    shown = table(done, given["per_label"], given["layout"]) if done.scores else ""
    text = json.dumps(data) + "\n" if given["as_json"] else shown
    return text, _exit_code(done, bool(bad) or (bool(unmatched) and not given["allow_missing"]))


def _share_cores(settings: EvaluationSettings, threads: int | None) -> None:
    """Limit the threads of torch, if it compares files of this kind; the others do not import it."""
    if settings.kind == "images" or settings.resample:
        limit_torch(threads or granted_threads())


def _exit_code(done: Evaluation, incomplete: bool) -> int:
    if not done.scores and all(failure.refused for failure in done.failures):
        return InputError.exit_code
    return int(bool(done.failures) or incomplete)


def _tell(bar: Bar, outcome: Scores | Failure) -> None:
    """Count a pair, and print failures and warnings on stderr immediately."""
    from medkit.evaluation.results import Failure

    bar.count(failed=isinstance(outcome, Failure))
    lines = [outcome.error] if isinstance(outcome, Failure) else outcome.warnings
    say(*(f"{outcome.pair.name}: {line}" for line in lines))


def _check_options(kind: str, given: dict[str, Any]) -> None:
    """Raise UsageError for options that are for another kind of files."""
    belongs = {"labels": "labels", "label_map": "labels", "mask": "images", "data_range": "images",
               "transform": "points"}  # fmt: skip
    for name, of in belongs.items():
        if given[name] is not None and kind != of:
            raise UsageError(f"--{name.replace('_', '-')} is for {of}, and these files are taken for {kind} (--kind)")
