"""Pictures of judged classes: ROC curves, and the reliability of confidences."""

from __future__ import annotations

from medkit.evaluation.classes.metrics import BINS, reliability, roc_curve
from medkit.evaluation.classes.run import ALL, Judged
from medkit.figures.charts import BOTTOM, LEFT, TOP, Series, line_chart, round_ticks

_SIZE = (620, 620)
_UNIT = round_ticks(0, 1, 10)
_ROW = 18


def pictures(judged: Judged) -> dict[str, bytes]:
    """Return name of a file -> PNG: `roc.png` and `reliability.png`, over all cases."""
    return {"roc.png": _roc(judged), "reliability.png": _reliability(judged)}


def _roc(judged: Judged) -> bytes:
    given = judged.given
    numbers = range(1, 2) if len(given.classes) == 2 else range(len(given.classes))
    series = []
    for number in numbers:
        x, y = roc_curve(given.probabilities[:, number], given.truth == number)
        auc = judged.by_class[given.classes[number]]["auc"]
        name = f"{given.classes[number]}: AUC {auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f})"
        series.append(Series(name, list(zip(x.tolist(), y.tolist(), strict=True)), marked=False))
    place = (LEFT + 120, _SIZE[1] - BOTTOM - 14 - _ROW * (len(series) - 1))
    axes = ("1 - specificity", _UNIT), ("sensitivity", _UNIT)
    return line_chart(series, *axes, f"ROC, {len(judged.cases)} cases", size=_SIZE, key=place, diagonal=True)


def _reliability(judged: Judged) -> bytes:
    bins = reliability(judged.given)
    points = list(zip(bins["confidence"].tolist(), bins["accuracy"].tolist(), strict=True))
    error = judged.measures[ALL]["ece"]
    name = f"calibration error {error.value:.3f} ({error.low:.3f} to {error.high:.3f})"
    axes = ("confidence", _UNIT), ("share that is right", _UNIT)
    title = f"Reliability in {BINS} bins, {len(judged.cases)} cases"
    return line_chart([Series(name, points)], *axes, title, size=_SIZE, key=(LEFT + 14, TOP + 16), diagonal=True)
