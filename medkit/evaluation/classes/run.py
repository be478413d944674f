"""Comparing predictions with true classes, and summarising."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medkit.errors import InputError, MedkitError
from medkit.evaluation.bootstrap import Estimate, estimates
from medkit.evaluation.classes.metrics import BY_CLASS, INFLATED, Predictions, by_class, confusion, overall
from medkit.evaluation.classes.predictions import Prediction, read_predictions
from medkit.evaluation.classes.truth import class_number, find_truth
from medkit.evaluation.matching import files_of, of_kind

ALL, ANSWERED = "all", "answered"
"""Groups of cases: all, and those without abstention."""


@dataclass(frozen=True, eq=False)
class Judged:
    """Predictions compared with true classes."""

    cases: tuple[Prediction, ...]
    """In the order of `given`."""
    given: Predictions
    abstained: np.ndarray
    """(N,) bool."""
    measures: Mapping[str, Mapping[str, Estimate]]
    """Group of cases -> measure (see `medkit.evaluation.classes.metrics.overall`) -> its value; `answered` is left out
    if those are all cases, or none."""
    by_class: Mapping[str, Mapping[str, Estimate]]
    """Class -> measure of the class against all others -> its value, over all cases."""
    confusion: Mapping[str, np.ndarray]
    """Group of cases -> (C, C) counts, true classes in rows."""
    unmatched: Mapping[str, str]
    """Case or reference without a partner -> a sentence."""
    seed: int = 0


def predictions_in(results: Sequence[Path], aspect: str | None = None) -> tuple[list[Prediction], list[str]]:
    """Return the predictions in files and folders, and a sentence for each file that cannot be read. Raises InputError.

    If predictions have several aspects of an image, `aspect` is the one that counts.
    """
    found, bad = [], []
    for path in results:
        files = of_kind(files_of(path, "classes"), "classes")
        if not files:
            raise InputError(f"{path}: no table of classes in this folder")
        for file in files:
            try:
                found += read_predictions(file, aspect)
            except InputError as error:
                bad.append(str(error))
    return found, bad


def judge(cases: Sequence[Prediction], reference: str, seed: int = 0, aspect: str | None = None) -> Judged:
    """Compare predictions with their references; for `reference` and `aspect` see `find_truth`.

    Raises InputError if a case has several predictions, and MedkitError if no case has a reference.
    """
    names = [case.case for case in cases]
    if twice := [path for path, count in Counter(names).items() if count > 1]:
        raise InputError(f"{twice[0]}: there are several results for it")
    truth = find_truth(names, reference, aspect)
    unmatched = {str(path): f"{path}: no reference: {why}" for path, why in truth.missing.items()}
    unmatched |= {name: f"{name}: no result for this reference" for name in truth.unused}
    unmatched |= {str(case.case): f"{case.case}: has no prediction" for case in cases if not case.probabilities}
    kept = [case for case in cases if case.case in truth.found and case.probabilities]
    if not kept:
        raise MedkitError("\n".join([*unmatched.values(), "nothing to compare"]))
    given = gathered(kept, [truth.found[case.case] for case in kept])
    abstained = np.array([case.abstained for case in kept])
    groups = {ALL: given}
    if 0 < abstained.sum() < len(kept):
        groups[ANSWERED] = given.picked(~abstained)
    return Judged(
        cases=tuple(kept),
        given=given,
        abstained=abstained,
        measures={name: _measures(group, seed) for name, group in groups.items()},
        by_class=_by_class(given, seed),
        confusion={name: confusion(group) for name, group in groups.items()},
        unmatched=unmatched,
        seed=seed,
    )


def gathered(cases: Sequence[Prediction], truth: Sequence[str]) -> Predictions:
    """Return predictions and their true classes (names or numbers) as arrays. Raises InputError if they do not fit."""
    cases = [_with_both_classes(case, truth) for case in cases]
    classes = tuple(cases[0].probabilities)
    for case in cases:
        if set(case.probabilities) != set(classes):
            raise InputError(
                f"{case.file}: expected the classes of {cases[0].file}, {', '.join(classes)}; "
                f"got {', '.join(case.probabilities)}; --aspect picks one of several aspects of an image"
            )
    return Predictions(
        classes,
        np.array([[case.probabilities[name] for name in classes] for case in cases]),
        np.array([_number(case, value, classes) for case, value in zip(cases, truth, strict=True)]),
        np.array([classes.index(case.chosen) for case in cases]),
        np.array([case.confidence for case in cases]),
    )


def _number(case: Prediction, value: str, classes: Sequence[str]) -> int:
    try:
        return class_number(value, classes)
    except InputError as error:
        raise InputError(f"{case.case}: {error}") from None


def _with_both_classes(case: Prediction, truth: Sequence[str]) -> Prediction:
    """Add the other class's probability to a case of a network that returns only one."""
    if len(case.probabilities) != 1:
        return case
    ((name, likely),) = case.probabilities.items()
    others = sorted(set(truth) - {name, "0", "1"})
    other = others[0] if len(others) == 1 else f"not {name}"
    chosen = name if likely > 0.5 else other
    confidence = max(likely, 1 - likely) if case.confidence == likely else case.confidence
    return replace(case, probabilities={other: 1 - likely, name: likely}, chosen=chosen, confidence=confidence)


def _measures(given: Predictions, seed: int) -> dict[str, Estimate]:
    return estimates(lambda weights: overall(given, weights), len(given.truth), seed, INFLATED)


def _by_class(given: Predictions, seed: int) -> dict[str, dict[str, Estimate]]:
    def flat(weights: np.ndarray) -> dict[str, np.ndarray]:
        values = by_class(given, weights)
        return {
            f"{number} {name}": values[name][:, number] for number in range(len(given.classes)) for name in BY_CLASS
        }

    found = estimates(flat, len(given.truth), seed)
    return {label: {name: found[f"{number} {name}"] for name in BY_CLASS} for number, label in enumerate(given.classes)}
