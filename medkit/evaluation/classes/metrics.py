"""Measures of predicted classes, for many weightings of the cases at once, so that a bootstrap takes a few products.

Weights are (R, N): how often each of R samples contains each of N cases. Classes are numbers from 0 to C - 1. Own code
in numpy, tested against scikit-learn, because neither scikit-learn nor `monai.metrics` takes weights for all measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

BINS = 15
"""Number of bins of the confidences, for the calibration error (Guo 2017)."""
BY_CLASS = ("auc", "sensitivity", "specificity", "ppv", "npv", "f1")
"""Measures of one class against all others."""
OVERALL = ("auc", "accuracy", "balanced_accuracy", *BY_CLASS[1:], "ece", "brier")
"""Measures over all classes."""
INFLATED = ("ece",)
"""Measures that a bootstrap makes larger: the fewer different cases a bin has, the further it is off by chance."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions and the true classes of N cases."""

    classes: tuple[str, ...]
    """Names of the classes; of two, the second is the positive one."""
    probabilities: np.ndarray
    """(N, C) probabilities of the classes."""
    truth: np.ndarray
    """(N,) numbers of the true classes."""
    chosen: np.ndarray
    """(N,) numbers of the predicted classes."""
    confidence: np.ndarray
    """(N,) probability that the predicted class is right, calibrated if the bundle is."""

    def picked(self, kept: np.ndarray) -> Predictions:
        """Return the cases for which `kept`, (N,) bool, is true."""
        names = ("probabilities", "truth", "chosen", "confidence")
        return replace(self, **{name: getattr(self, name)[kept] for name in names})


def overall(given: Predictions, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return `OVERALL`, each (R,): with two classes those of the second, with more the means over classes (macro).

    `balanced_accuracy` is the mean sensitivity of the classes, `ece` the expected calibration error of the predicted
    classes' confidences in 15 bins, `brier` the mean squared error of the second class's probability, with more classes
    the sum of those of all.
    """
    classes = by_class(given, weights)
    total = weights.sum(axis=1)
    right = (given.chosen == given.truth).astype(float)
    binary = len(given.classes) == 2
    out = {name: values[:, 1] if binary else _mean(values) for name, values in classes.items()}
    out["accuracy"] = weights @ right / total
    out["balanced_accuracy"] = _mean(classes["sensitivity"])
    gaps = _one_hot(_bins(given.confidence), BINS) * (right - given.confidence)[:, None]
    out["ece"] = np.abs(weights @ gaps).sum(axis=1) / total
    errors = (given.probabilities - _one_hot(given.truth, len(given.classes))) ** 2
    out["brier"] = weights @ (errors[:, 1] if binary else errors.sum(axis=1)) / total
    return {name: out[name] for name in OVERALL}


def by_class(given: Predictions, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return `BY_CLASS` of each class against all others, each (R, C); NaN where not defined.

    `ppv` and `npv` are the shares of right predictions among those of the class, and among those of other classes.
    """
    columns = range(len(given.classes))
    true, chosen = (_one_hot(numbers, len(columns)) for numbers in (given.truth, given.chosen))
    hits, missed, wrong = weights @ (true * chosen), weights @ (true * (1 - chosen)), weights @ ((1 - true) * chosen)
    others = weights.sum(axis=1)[:, None] - hits - missed - wrong
    return {
        "auc": np.stack([roc_auc(given.probabilities[:, c], given.truth == c, weights) for c in columns], axis=1),
        "sensitivity": _share(hits, missed),
        "specificity": _share(others, wrong),
        "ppv": _share(hits, wrong),
        "npv": _share(others, missed),
        "f1": _share(2 * hits, missed + wrong),
    }


def confusion(given: Predictions) -> np.ndarray:
    """Return (C, C) the number of cases of each true class (rows) that were predicted as each class (columns)."""
    count = len(given.classes)
    return np.bincount(given.truth * count + given.chosen, minlength=count**2).reshape(count, count)


def roc_auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return (R,) the area under the ROC curve: how often a positive case scores higher than a negative one.

    scores (N,), positive (N,) bool, weights (R, N). Equal scores count half. NaN if all cases, or none, are positive.
    """
    order = np.argsort(scores, kind="stable")
    first = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    sorted_weights = weights[:, order]
    up = np.add.reduceat(sorted_weights * positive[order], first, axis=1)
    down = np.add.reduceat(sorted_weights * ~positive[order], first, axis=1)
    below = down.cumsum(axis=1) - down / 2
    return _divided((up * below).sum(axis=1), up.sum(axis=1) * down.sum(axis=1))


def roc_curve(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return 1 - specificity and sensitivity, both (K,), at every threshold from the highest down, from (0, 0) on."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(scores[order]) < 0, True])
    up, down = (np.r_[0, side[order].cumsum()[last]] for side in (positive, ~positive))
    return down / max(down[-1], 1), up / max(up[-1], 1)


def reliability(given: Predictions) -> Mapping[str, np.ndarray]:
    """Return mean `confidence`, mean `accuracy` and number `n` of cases, each for the bins of confidence with cases."""
    hot = _one_hot(_bins(given.confidence), BINS)
    n = hot.sum(axis=0)
    used = n > 0
    values = {"confidence": given.confidence, "accuracy": (given.chosen == given.truth).astype(float)}
    return {name: (value @ hot)[used] / n[used] for name, value in values.items()} | {"n": n[used].astype(int)}


def _bins(confidence: np.ndarray) -> np.ndarray:
    """Return (N,) numbers of bins of equal width; each bin includes its upper end."""
    return np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)


def _one_hot(numbers: np.ndarray, count: int) -> np.ndarray:
    """Return (N, count) with 1 in the column of each number, else 0."""
    return np.eye(count)[numbers]


def _share(part: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Return part / (part + rest), NaN where both are 0."""
    return _divided(part, part + rest)


def _mean(values: np.ndarray) -> np.ndarray:
    """Return (R,) means over the classes, (R, C), where they are defined."""
    defined = np.isfinite(values)
    return _divided(np.where(defined, values, 0).sum(axis=1), defined.sum(axis=1))


def _divided(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return total / count, NaN where `count` is 0."""
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
