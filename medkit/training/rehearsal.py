"""A rehearsal of a training: a few real steps and a part of a validation, from which time and memory follow."""

from __future__ import annotations

import contextlib
import logging
import math
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medkit.machine.memory import resident
from medkit.pipe.signals import StopRequest
from medkit.terminal.words import duration
from medkit.training.checkpoint import RunFolder
from medkit.training.config import TrainConfig, TrainingParts
from medkit.training.plan import TrainingPlan
from medkit.training.ranks import ALONE
from medkit.training.run import TrainingRun
from medkit.training.splits import DataList

WARM_UP = 2
"""Steps that are not measured: the first ones are slower."""
MEASURED = 6
"""Most steps that are measured."""
SECONDS = 60.0
"""Seconds after which two measured steps are enough."""
BATCHES = 3
"""Most batches of a validation that are measured; the first one only if there is no other."""


@dataclass(frozen=True)
class Forecast:
    """What a training will need."""

    start: float
    """Seconds before the first step."""
    step: float
    """Seconds of a step."""
    validation: float
    """Seconds of a validation; 0 if nothing validates."""
    epoch_length: int
    """Steps from one validation to the next."""
    peak: int
    """Most bytes of this process's memory."""
    gpu_peak: int
    """Most bytes of the GPU's memory; 0 on the CPU."""
    workers: int
    """Number of processes that load data."""
    worker_peak: int
    """Most bytes of one of them."""

    def seconds(self, steps: int) -> float:
        """Return how long so many steps take, with their validations."""
        return self.start + steps * self.step + math.ceil(steps / self.epoch_length) * self.validation

    def steps(self, seconds: float) -> int:
        """Return how many steps fit into a time."""
        each = self.step + self.validation / self.epoch_length
        return max(1, int((seconds - self.start) / each))

    def lines(self, steps: int | None, hours: float | None) -> list[str]:
        """Return the forecast in words, for the steps or hours that are left."""
        least = min(n for n in (steps, self.steps(3600 * hours) if hours else None) if n is not None)
        validates = f", {self.validation:.3g} s a validation" if self.validation else ""
        memory = [f"{self.peak / 1e9:.2f} GB"]
        memory += [f"{self.gpu_peak / 1e9:.2f} GB of the GPU's"] if self.gpu_peak else []
        memory += [f"{self.workers} loading processes of up to {self.worker_peak / 1e9:.2f} GB"] if self.workers else []
        return [
            f"time: about {duration(self.seconds(least))} ({self.seconds(least) / 3600:.2g} h) for {least} steps, "
            f"{self.step:.3g} s a step{validates}",
            f"memory: about {', '.join(memory)}",
        ]


class _Rehearsal(TrainingRun):
    """A training of a few steps that leaves nothing."""

    def _save(self) -> None:
        self.saved_at = time.monotonic()


class _Clock:
    """Measures what lies between two events of an engine."""

    def __init__(self, engine: Any, after: Callable[[_Clock], None] = lambda clock: None) -> None:
        from ignite.engine import Events

        self.times: list[float] = []
        self.after = after
        self._began = 0.0
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end)

    def _begin(self, engine: Any) -> None:
        self._began = time.monotonic()

    def _end(self, engine: Any) -> None:
        self.times.append(time.monotonic() - self._began)
        self.after(self)

    def mean(self, warm_up: int) -> float:
        """Return the mean without the first ones, of which at least one is left out if there are others."""
        measured = self.times[min(warm_up, len(self.times) - 1) :]
        return sum(measured) / len(measured) if measured else 0.0


def rehearse(
    plan: TrainingPlan, config: TrainConfig, parts: TrainingParts, data: DataList, stop: StopRequest, began: float
) -> Forecast:
    """Train a few steps and validate some items, in a folder that is removed; return what that says of the training.

    `began`: time (of `time.monotonic`) at which the preparation of the data and the config started.
    """
    steps = min(WARM_UP + MEASURED, plan.steps or parts.steps)
    brief = replace(plan, steps=steps, hours=None, resume=None, patience=None, checkpoint_minutes=1e6)
    evaluator, batches = parts.evaluator, 0
    if evaluator is not None:
        batches = int(evaluator.state.epoch_length or len(evaluator.data_loader))
        evaluator.state.epoch_length = min(batches, BATCHES)
    device = parts.trainer.state.device
    with tempfile.TemporaryDirectory(prefix="medkit-dry-run-") as name:
        folder = RunFolder(_skeleton(Path(name) / plan.output.name, plan))
        run = _Rehearsal(replace(brief, output=folder.root), folder, config, parts, data, {}, stop, ALONE)
        start = time.monotonic()

        def enough(clock: _Clock) -> None:
            late = time.monotonic() - start > SECONDS
            if len(clock.times) >= WARM_UP + 2 and late:
                run.progress.steps = run.progress.step = len(clock.times)

        step = _Clock(parts.trainer, enough)
        validated = _Clock(evaluator) if evaluator is not None else None
        with _silent():
            run.train(None)
    first = step.times[0] - step.mean(WARM_UP) if step.times else 0.0
    return Forecast(
        start=start - began + max(0.0, first),
        step=step.mean(WARM_UP),
        validation=validated.mean(1) * batches if validated else 0.0,
        epoch_length=int(run.epoch_length),
        peak=max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, resident()),
        gpu_peak=_gpu_peak(device),
        workers=int(getattr(parts.trainer.data_loader, "num_workers", 0)),
        worker_peak=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
    )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Within the block, no message speaks of the steps as of a training."""
    log = logging.getLogger("medkit.training")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _skeleton(root: Path, plan: TrainingPlan) -> Path:
    """Make the folders that a training writes to."""
    for name in ("configs", "docs", "models", "training"):
        (root / name).mkdir(parents=True)
    return root


def _gpu_peak(device: Any) -> int:
    import torch

    return int(torch.cuda.max_memory_reserved(device)) if device.type == "cuda" else 0
