"""Pictures of judged classes: ROC curves, and the reliability of confidences."""

from __future__ import annotations

import math

from medkit.evaluation.classes.metrics import BINS, reliability, roc_curve
from medkit.evaluation.classes.run import ALL, Judged
from medkit.figures.charts import BOTTOM, COLOURS, INK, LEFT, TOP, Chart, Series, line_chart, round_ticks

_SIZE = (620, 620)
_UNIT = round_ticks(0, 1, 10)
_ROW = 18
FEW_CASES = 5
"""Bins with fewer cases are drawn paler: what share of them is right says little."""
_MANY, _FEW = (120, 180, 220), (215, 230, 240)


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
    """Draw a bar for each bin with cases: the share that is right, and over it how many cases there are."""
    bins = reliability(judged.given)
    error = judged.measures[ALL]["ece"]
    title = f"Reliability in {BINS} bins, {len(judged.cases)} cases; number of cases on the bars"
    chart = Chart(_UNIT, "confidence", title, _SIZE)
    points = list(zip(bins["confidence"].tolist(), bins["accuracy"].tolist(), bins["n"].tolist(), strict=True))
    for confidence, accuracy, n in points:
        number = min(BINS - 1, max(0, math.ceil(confidence * BINS - 1e-9) - 1))
        edges = (number / BINS, (number + 1) / BINS)
        chart.bar(edges, accuracy, _UNIT, _FEW if n < FEW_CASES else _MANY)
    chart.curve([(0, 0), (1, 1)], _UNIT, (110, 110, 110), marked=False)
    chart.vertical(_UNIT, name="share that is right")
    for confidence, accuracy, n in points:
        chart.curve([(confidence, accuracy)], _UNIT, COLOURS[1])
        chart.text((chart.across(confidence), chart.up(accuracy, _UNIT) - 6), str(n), INK, "mb", 11)
    names = {f"calibration error {error.value:.3f} ({error.low:.3f} to {error.high:.3f})": _MANY}
    chart.key(names | {f"fewer than {FEW_CASES} cases": _FEW, "mean confidence": COLOURS[1]}, (LEFT + 14, TOP + 16))
    return chart.png()
