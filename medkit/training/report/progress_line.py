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
    parts = [f"step {progress.step}" + (f"/{progress.steps}" if progress.steps else ""), *_losses(rows, loss)]
    parts.append(f"rate {rate:.2g}")
    metrics = [row.metric for row in rows if row.metric is not None]
    if metrics and best:
        parts.append(f"{metric_name} {metrics[-1]:.4f} (best {best.value:.4f} at {best.step})")
    parts.append(duration(progress.seconds))
    if (left := seconds_left(progress)) is not None:
        parts.append(f"about {duration(left)} left")
    return ", ".join(parts)


def bar_text(rows: Sequence[HistoryRow], loss: float | None, metric_name: str | None, best: Best | None) -> str:
    """Return what a bar says: the loss, and the best value of the metric."""
    return ", ".join([*_losses(rows, loss), *([f"best {metric_name} {best.value:.4f}"] if best else [])])


def seconds_left(progress: Progress) -> float | None:
    """Return how long the rest takes at the pace so far; None before the first step and after the last."""
    share = progress.fraction
    return progress.seconds * (1 - share) / share if 0 < share < 1 else None


def _losses(rows: Sequence[HistoryRow], loss: float | None) -> list[str]:
    losses = [row.loss for row in rows[-1:]] if loss is None else [loss]
    return [f"loss {loss:.4f}" for loss in losses]
