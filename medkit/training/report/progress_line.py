"""The line that tells a user how far a training is."""

from __future__ import annotations

from collections.abc import Sequence

from medkit.terminal.words import duration
from medkit.training.parts.handlers import Progress
from medkit.training.report.card import Best
from medkit.training.report.history import HistoryRow


def progress_line(
    progress: Progress,
    rows: Sequence[HistoryRow],
    loss: float | None,
    rate: float,
    metric_name: str | None,
    best: Best | None,
) -> str:
    """Return a line with steps, loss, learning rate, metric and time.

    Args:
        progress: of the training.
        rows: of its log.
        loss: mean since the last row; None: the row's own is shown.
        rate: learning rate.
        metric_name: name of the validation metric.
        best: the best validation.
    """
    parts = [f"step {progress.step}" + (f"/{progress.steps}" if progress.steps else "")]
    losses = [row.loss for row in rows[-1:]] if loss is None else [loss]
    parts += [f"loss {loss:.4f}" for loss in losses]
    parts.append(f"rate {rate:.2g}")
    metrics = [row.metric for row in rows if row.metric is not None]
    if metrics and best:
        parts.append(f"{metric_name} {metrics[-1]:.4f} (best {best.value:.4f} at {best.step})")
    parts.append(duration(progress.seconds))
    if 0 < progress.fraction < 1:
        parts.append(f"about {duration(progress.seconds * (1 - progress.fraction) / progress.fraction)} left")
    return ", ".join(parts)
