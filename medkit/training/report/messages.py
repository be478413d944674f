"""What a training tells its user while it runs: where it starts, a bar, and now and then a line."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from medkit.terminal.progress import has_bar, set_progress
from medkit.training.objects import device_name
from medkit.training.report.progress_line import bar_text, progress_line, seconds_left
from medkit.training.weights import count_parameters

if TYPE_CHECKING:
    import torch

    from medkit.training.loss_guard import LossGuard
    from medkit.training.parts.handlers import Progress
    from medkit.training.plan import TrainingPlan
    from medkit.training.report.history import History
    from medkit.training.splits import DataList
    from medkit.training.validation import Validation

log = logging.getLogger("medkit.training")
progress_log = logging.getLogger("medkit.training.progress")

SECONDS_BETWEEN_LINES = 10.0
"""Seconds between two lines of progress."""


class Messages:
    """The messages of one training."""

    def __init__(
        self, progress: Progress, validation: Validation, history: History, guard: LossGuard, optimizer: Any
    ) -> None:
        self.progress, self.validation, self.history, self.guard = progress, validation, history, guard
        self.optimizer = optimizer
        self.logged_at = time.monotonic()

    def start(self, data: DataList, plan: TrainingPlan, network: torch.nn.Module, machine: str) -> None:
        """Say what is trained, and on which machine."""
        numbers, trained = count_parameters(network)
        fold = f", {plan.split.text}" if plan.folds else ""
        log.info(
            "%d items for training, %d for validation%s; %s of %s parameters trained on %s",
            *(len(data.training), len(data.validation), fold, f"{trained:,}", f"{numbers:,}", machine),
        )

    def between_steps(self, *, ended: bool) -> None:
        """Show how far the training is: on the bar, or, if it goes on, by a line if the last one is old."""
        if has_bar():
            progress, found = self.progress, self.validation
            text = bar_text(self.history.rows, self._recent_loss(), found.metric_name, found.best)
            set_progress(progress.step, progress.steps, text=text, whole=progress.fraction, left=seconds_left(progress))
        elif not ended and time.monotonic() - self.logged_at > SECONDS_BETWEEN_LINES:
            self.log_line()

    def log_line(self) -> None:
        """Write a line that says how far the training is."""
        self.logged_at = time.monotonic()
        rate, found = self.optimizer.param_groups[0]["lr"], self.validation
        loss, rows = self._recent_loss(), self.history.rows
        progress_log.info("%s", progress_line(self.progress, rows, loss, rate, found.metric_name, found.best))

    def _recent_loss(self) -> float | None:
        """Return the mean since the last row of the log; None right after it."""
        return self.guard.mean if self.guard.count else None


def machine_text(device: torch.device, precision: str, ranks: int) -> str:
    """Return on what a training computes, in words."""
    return f"{device_name(device)} in {precision}" + (f", {ranks} ranks" if ranks > 1 else "")
