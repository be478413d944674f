"""Measures of predicted classes, against scikit-learn and against hand-worked values."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as theirs

from medkit.evaluation.bootstrap import estimates, resampled
from medkit.evaluation.classes.metrics import (
    BY_CLASS,
    Predictions,
    by_class,
    confusion,
    overall,
    reliability,
    roc_auc,
    roc_curve,
)


def drawn(count: int, classes: int, seed: int = 0, ties: bool = False) -> Predictions:
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=count)
    raw = rng.normal(size=(count, classes)) + 1.2 * np.eye(classes)[truth]
    raw = np.round(raw) if ties else raw
    probabilities = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    chosen = probabilities.argmax(axis=1)
    names = tuple(f"c{n}" for n in range(classes))
    return Predictions(names, probabilities, truth, chosen, probabilities.max(axis=1))


def ones(given: Predictions) -> np.ndarray:
    return np.ones((1, len(given.truth)))


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("ties", [False, True])
def test_scikit_learn_says_the_same(classes: int, ties: bool) -> None:
    given = drawn(120, classes, seed=classes, ties=ties)
    found = {name: float(value[0]) for name, value in overall(given, ones(given)).items()}
    truth, chosen, p = given.truth, given.chosen, given.probabilities
    binary = classes == 2
    average = "binary" if binary else "macro"
    expected = {
        "auc": theirs.roc_auc_score(truth, p[:, 1]) if binary else theirs.roc_auc_score(truth, p, multi_class="ovr"),
        "accuracy": theirs.accuracy_score(truth, chosen),
        "balanced_accuracy": theirs.balanced_accuracy_score(truth, chosen),
        "sensitivity": theirs.recall_score(truth, chosen, average=average),
        "ppv": theirs.precision_score(truth, chosen, average=average),
        "f1": theirs.f1_score(truth, chosen, average=average),
        "brier": np.mean((p[:, 1] - truth) ** 2) if binary else ((p - np.eye(classes)[truth]) ** 2).sum(1).mean(),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name
    each = by_class(given, ones(given))
    for number in range(classes):
        others, said = truth != number, chosen != number
        assert each["specificity"][0, number] == pytest.approx(theirs.recall_score(others, said))
        assert each["npv"][0, number] == pytest.approx(theirs.precision_score(others, said))
    np.testing.assert_array_equal(confusion(given), theirs.confusion_matrix(truth, chosen))


def test_weights_count_as_so_many_cases() -> None:
    given = drawn(40, 3)
    weights = np.random.default_rng(1).integers(0, 4, size=(5, 40)).astype(float)
    for measure in (overall, by_class):
        many = measure(given, weights)
        for row, counts in enumerate(weights.astype(int)):
            repeated = given.picked(np.repeat(np.arange(40), counts))
            alone = measure(repeated, ones(repeated))
            for name, values in many.items():
                np.testing.assert_allclose(values[row], alone[name][0], atol=1e-12, err_msg=name)


@pytest.mark.parametrize("ties", [False, True])
def test_the_roc_curve(ties: bool) -> None:
    given = drawn(80, 2, ties=ties)
    x, y = roc_curve(given.probabilities[:, 1], given.truth == 1)
    false, true, _ = theirs.roc_curve(given.truth, given.probabilities[:, 1], drop_intermediate=False)
    np.testing.assert_allclose(x, false)
    np.testing.assert_allclose(y, true)
    area = theirs.auc(x, y)
    assert roc_auc(given.probabilities[:, 1], given.truth == 1, ones(given))[0] == pytest.approx(area)


def test_the_calibration_error_by_hand() -> None:
    # bins of 1/15: 0.61 and 0.65 share one, 0.95 and 1.0 another; 0.6 is the upper end of the one below
    confidence = np.array([0.61, 0.65, 0.95, 1.0, 0.6])
    truth, chosen = np.array([0, 1, 0, 0, 0]), np.array([0, 0, 0, 0, 0])
    given = Predictions(("a", "b"), np.stack([confidence, 1 - confidence], axis=1), truth, chosen, confidence)
    # |1 - 1.26| / 5, |2 - 1.95| / 5, |1 - 0.6| / 5
    assert overall(given, ones(given))["ece"][0] == pytest.approx((0.26 + 0.05 + 0.4) / 5)
    bins = reliability(given)
    np.testing.assert_array_equal(bins["n"], [1, 2, 2])
    np.testing.assert_allclose(bins["accuracy"], [1, 0.5, 1])
    np.testing.assert_allclose(bins["confidence"], [0.6, 0.63, 0.975])


def test_what_is_not_defined_is_left_out() -> None:
    """Nobody has the third class, and nobody is said to: it counts neither as right nor as wrong."""
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    given = Predictions(("a", "b", "c"), probabilities, np.array([0, 1, 1]), np.array([0, 1, 0]), probabilities.max(1))
    each = by_class(given, ones(given))
    for name in ("auc", "sensitivity", "ppv", "f1"):
        assert np.isnan(each[name][0, 2]), name
    assert overall(given, ones(given))["balanced_accuracy"][0] == pytest.approx(0.75)
    assert set(each) == set(BY_CLASS)


def test_bootstrap_intervals() -> None:
    given = drawn(300, 2)
    found = estimates(lambda w: overall(given, w), 300, seed=3)
    accuracy = found["accuracy"]
    assert accuracy.low < accuracy.value < accuracy.high
    spread = np.sqrt(accuracy.value * (1 - accuracy.value) / 300)  # of a binomial
    assert accuracy.high - accuracy.low == pytest.approx(2 * 1.96 * spread, rel=0.1)
    again = estimates(lambda w: overall(given, w), 300, seed=3)
    assert again == found
    assert estimates(lambda w: overall(given, w), 300, seed=4) != found


def test_the_interval_of_the_calibration_error_holds_it() -> None:
    """Of a perfectly calibrated network: bootstrap samples are all further off than the cases themselves."""
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 300)
    truth = (rng.random(300) > sure).astype(int)
    given = Predictions(("a", "b"), np.stack([sure, 1 - sure], axis=1), truth, np.zeros(300, int), sure)
    plain, moved = (estimates(lambda w: overall(given, w), 300, 0, names)["ece"] for names in ((), ("ece",)))
    assert plain.value == moved.value
    assert np.mean([plain.low, plain.high]) > moved.value + 0.01
    assert 0 <= moved.low < moved.value < moved.high


def test_samples_do_not_depend_on_how_many_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from medkit.evaluation import bootstrap

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        assert (weights.sum(axis=1) == 50).all()
        return {"mean": weights @ np.arange(50) / 50}

    whole = resampled(measure, 50)["mean"]
    assert whole.shape == (2000,)
    monkeypatch.setattr(bootstrap, "_CELLS", 5000)
    np.testing.assert_array_equal(resampled(measure, 50)["mean"], whole)


def test_one_case_has_no_interval() -> None:
    given = drawn(1, 2)
    found = estimates(lambda w: overall(given, w), 1)
    assert np.isnan(found["auc"].value)
    assert np.isnan(found["accuracy"].low)
