"""The loss of every step: its mean between two rows of the log, and what happens if it is not finite."""

from __future__ import annotations

import math
from typing import Any

from medkit.errors import TrainingError

GIVE_UP_AFTER = 10
"""Steps in a row whose loss or gradients are not finite, after which a training fails."""


class LossGuard:
    """Keeps the optimizer from steps whose loss or gradients are not finite, counts them, and averages the others."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.sum, self.count = 0.0, 0
        """Sum and number of the finite losses since the last row of the log."""
        self.skipped = 0
        """Steps without an update so far."""
        self.in_a_row = 0
        """Steps without an update since the last good step."""
        self._loss: float | None = None
        self._usable = True

    @property
    def mean(self) -> float:
        """Mean loss since the last row; nan without a finite loss."""
        return self.sum / self.count if self.count else math.nan

    def attach(self) -> None:
        """Check the trainer's steps between the backward pass and the optimizer."""
        from ignite.engine import Events
        from monai.engines.utils import IterationEvents

        self.trainer.add_event_handler(Events.ITERATION_STARTED, self._reset)
        self.trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._check)

    def _reset(self, engine: Any) -> None:
        self._loss, self._usable = None, True

    def _check(self, engine: Any) -> None:
        import torch

        self._loss = loss = float(engine.state.output["loss"].detach())
        self._usable = math.isfinite(loss)
        if engine.amp:  # the scaler checks the gradients itself
            return
        norms = [p.grad.norm() for p in engine.network.parameters() if p.grad is not None]
        self._usable = self._usable and bool(not norms or torch.stack(norms).isfinite().all())
        if not self._usable:
            engine.optimizer.zero_grad(set_to_none=True)  # without gradients the optimizer changes nothing

    def after_step(self, engine: Any) -> None:
        """Count the step. Raises TrainingError after too many steps in a row without an update."""
        loss = _loss_in(engine.state.output) if self._loss is None else self._loss
        if self._usable and (loss is None or math.isfinite(loss)):
            if loss is not None:
                self.sum, self.count = self.sum + loss, self.count + 1
            self.in_a_row = 0
            return
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row >= GIVE_UP_AFTER:
            raise TrainingError(
                f"step {engine.state.iteration}: loss or gradients were not finite in {GIVE_UP_AFTER} steps in a "
                f"row; the last good checkpoint stays; try a lower learning rate, clipped gradients or "
                f"--precision float32"
            )

    def start_interval(self) -> None:
        """Forget the losses that a row of the log contains."""
        self.sum, self.count = 0.0, 0


def _loss_in(output: Any) -> float | None:
    """Return the loss in a trainer's output, if it does not call MONAI's events between the parts of a step."""
    first = output[0] if isinstance(output, list) and output else output
    found = first.get("loss") if isinstance(first, dict) else first
    try:
        return float(found)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        return None
