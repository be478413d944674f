"""Comparing pairs in order, and summarising their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from medkit.errors import InputError, MedkitError
from medkit.evaluation.measures.images import score_images
from medkit.evaluation.measures.labels import score_labels
from medkit.evaluation.measures.points import score_points
from medkit.evaluation.results import (
    CASE_METRICS,
    RESAMPLES,
    ROW_METRICS,
    Evaluation,
    EvaluationSettings,
    Failure,
    Pair,
    Scores,
    Summary,
)
from medkit.terminal.progress import working_on

_SCORERS: Mapping[str, Callable[[Pair, EvaluationSettings], Scores]] = {
    "labels": score_labels,
    "images": score_images,
    "points": score_points,
}


def evaluate(
    pairs: Iterable[Pair], settings: EvaluationSettings, tell: Callable[[Scores | Failure], None] = lambda outcome: None
) -> Evaluation:
    """Compare pairs; one that cannot be compared becomes a `Failure` and does not stop the others.

    `tell` is called with the outcome of each pair as soon as it is known.
    """
    scores, failures = [], []
    for pair in pairs:
        with working_on(pair.name):
            outcome = _outcome(pair, settings)
        tell(outcome)
        if isinstance(outcome, Scores):
            scores.append(outcome)
        else:
            failures.append(outcome)
    return sum_up(settings, tuple(scores), tuple(failures))


def sum_up(settings: EvaluationSettings, scores: tuple[Scores, ...], failures: tuple[Failure, ...] = ()) -> Evaluation:
    """Return the scores with their summaries over cases, and for labels over the cases of each label."""
    summary = {
        metric: summarised([score.values[metric] for score in scores], settings.seed)
        for metric in CASE_METRICS[settings.kind]
    }
    rows = [row for score in scores for row in score.rows] if settings.kind == "labels" else []
    by_label = {
        label: [row for row in rows if row.label == label] for label in sorted({r.label for r in rows}, key=int)
    }
    labels = {
        label: {
            metric: summarised([row.values[metric] for row in own], settings.seed)
            for metric in ROW_METRICS[settings.kind]
        }
        for label, own in by_label.items()
    }
    names = {row.label: row.name for row in rows if row.name}
    return Evaluation(settings, scores, failures, summary, labels, names)


def summarised(values: Iterable[float], seed: int = 0) -> Summary:
    """Return mean, deviation and 95 % percentile bootstrap interval of the mean (Efron 1979) of the finite `values`."""
    given = np.array(list(values), np.float64)
    given = given[np.isfinite(given)]
    none = float("nan")
    if len(given) < 2:
        return Summary(len(given), float(given[0]) if len(given) else none, none, none, none)
    picks = np.random.default_rng(seed).integers(len(given), size=(RESAMPLES, len(given)))
    low, high = np.percentile(given[picks].mean(axis=1), (2.5, 97.5))
    return Summary(len(given), float(given.mean()), float(given.std(ddof=1)), float(low), float(high))


def _outcome(pair: Pair, settings: EvaluationSettings) -> Scores | Failure:
    try:
        return _SCORERS[settings.kind](pair, settings)
    except MedkitError as error:
        return Failure(pair, str(error), isinstance(error, InputError))
    except Exception as error:  # a bug or a full memory in one pair must not take the scores of the others
        return Failure(pair, f"{pair.result}: {type(error).__name__}: {error}")
