"""Handlers that train configs may name: progress, learning rate, and the limit of gradients.

They attach to any MONAI trainer as ignite's handlers do.
"""

from __future__ import annotations

import math
import time
from typing import Any


class Progress:
    """Progress of a training: steps done of `steps`, or seconds passed of `hours`, whichever is further.

    If a config gives it the id `progress`, medkit sets the limits of the command line and the seconds of earlier parts.
    Without medkit it counts the steps of the trainer that it is attached to.
    """

    def __init__(self, steps: int | None = None, hours: float | None = None) -> None:
        self.steps = steps
        self.hours = hours
        self.step = 0
        """Steps done."""
        self._before = 0.0
        self._started: float | None = None
        self._agreed: float | None = None
        self._engines: list[Any] = []

    @property
    def seconds(self) -> float:
        """Seconds since the start of training, those of earlier parts included."""
        return self.elapsed() if self._agreed is None else self._agreed

    def elapsed(self) -> float:
        """Return `seconds` by the clock of this process."""
        return self._before + (0.0 if self._started is None else time.monotonic() - self._started)

    @property
    def fraction(self) -> float:
        """Share of the training that is done, 0 at the start to 1 at the end."""
        parts = [self.step / self.steps] if self.steps else []
        parts += [self.seconds / (3600 * self.hours)] if self.hours else []
        return min(1.0, max(parts, default=0.0))

    @property
    def done(self) -> bool:
        """Whether the steps or the hours are used up."""
        return self.fraction >= 1

    def restore(self, step: int, seconds: float) -> None:
        """Continue from a checkpoint."""
        self.step, self._before = step, seconds

    def agree(self, seconds: float) -> None:
        """Set `seconds`, which ranks that train together must see alike, until this is called again."""
        self._agreed = seconds

    def attach(self, engine: Any) -> None:
        """Count the steps of a trainer; a second call for the same trainer does nothing."""
        from ignite.engine import Events

        if engine not in self._engines:
            self._engines.append(engine)
            engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(Events.ITERATION_STARTED, self._at_iteration)

    def _start(self, engine: Any) -> None:
        if self._started is None:
            self._started = time.monotonic()

    def _at_iteration(self, engine: Any) -> None:
        self.step = engine.state.iteration - 1


class Cosine:
    """Learning rate that falls along half a cosine, from the optimizer's own to a share of it.

    Args:
        optimizer: the learning rates of its groups at this moment are the peaks.
        progress: progress of the training.
        end: the share of the peak at the end.
        warm_up: the share of the training in which the rate rises linearly from zero to the peak.
    """

    def __init__(self, optimizer: Any, progress: Progress, end: float = 0.02, warm_up: float = 0.0) -> None:
        if not (0 <= warm_up < 1 and 0 <= end <= 1):
            raise ValueError(f"Cosine: expected 0 <= warm_up < 1 and 0 <= end <= 1, got {warm_up} and {end}")
        self.optimizer = optimizer
        self.progress = progress
        self.end = end
        self.warm_up = warm_up
        self.peaks = [group["lr"] for group in optimizer.param_groups]

    def factor(self, fraction: float) -> float:
        """Return the share of the peak at a fraction (0 to 1) of the training."""
        if fraction < self.warm_up:
            return max(fraction / self.warm_up, 1e-3)  # a first step of rate 0 would change nothing
        position = (fraction - self.warm_up) / (1 - self.warm_up)
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * position)) / 2

    def attach(self, engine: Any) -> None:
        """Set the rate before every step of a trainer."""
        from ignite.engine import Events

        self.progress.attach(engine)
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Any) -> None:
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * self.factor(self.progress.fraction)


class ClipGradients:
    """Scales the gradients of a step down to a 2-norm, over all parameters, of at most `max_norm`."""

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    def attach(self, engine: Any) -> None:
        """Clip after every backward pass of a MONAI trainer."""
        from monai.engines.utils import IterationEvents

        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        import torch

        if engine.amp and engine.scaler is not None:
            engine.scaler.unscale_(engine.optimizer)
        torch.nn.utils.clip_grad_norm_(engine.network.parameters(), self.max_norm)
