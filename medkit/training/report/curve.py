"""Picture of a training: loss and validation metric over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from medkit.figures.charts import Chart, round_ticks, spread
from medkit.training.report.history import HistoryRow

LOSS, METRIC = (204, 85, 0), (0, 90, 181)
"""Orange and blue, which are distinct with any colour vision."""
_MARKED = 40
"""Curves with up to this many points get a dot for each."""


def draw_curve(rows: Sequence[HistoryRow], metric_name: str | None, title: str = "") -> bytes:
    """Return a PNG of the loss (left axis) and of the validation metric, if any (right axis), over the steps."""
    losses = [(float(r.step), r.loss) for r in rows if math.isfinite(r.loss)]
    metrics = [(float(r.step), r.metric) for r in rows if r.metric is not None and math.isfinite(r.metric)]
    chart = Chart(round_ticks(0, max([1.0] + [r.step for r in rows]), 8, whole=True), "step", title)
    legend = {}
    if losses:
        _curve(chart, losses, LOSS, left=True)
        legend[f"training loss (last {losses[-1][1]:.4g})"] = LOSS
    if metrics:
        _curve(chart, metrics, METRIC, left=False)
        best = f"last {metrics[-1][1]:.4g}, highest {max(m for _, m in metrics):.4g}"
        legend[f"validation {metric_name} ({best})"] = METRIC
    chart.legend(legend)
    return chart.png()


def _curve(chart: Chart, points: list[tuple[float, float]], colour: tuple[int, int, int], *, left: bool) -> None:
    values = [value for _, value in points]
    ticks = round_ticks(*spread(values), 6, most=1 if not left and max(values) <= 1 else math.inf)
    chart.vertical(ticks, colour, left=left)
    chart.curve(points, ticks, colour, marked=len(points) <= _MARKED)
