"""The validations of a training, and the weights that validated best."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from medkit.errors import TrainingError
from medkit.pipe.signals import StopRequest
from medkit.training.parts.samples import seed_everything, seed_of
from medkit.training.ranks import Ranks
from medkit.training.report.card import Best
from medkit.training.sharing import share_validation
from medkit.training.weights import AveragedNetwork

if TYPE_CHECKING:
    import torch

log = logging.getLogger("medkit.training")


class Validation:
    """The validations of a training by a config's evaluator, each rank with its share of the samples."""

    def __init__(
        self,
        evaluator: Any | None,
        average: AveragedNetwork,
        ranks: Ranks,
        stop: StopRequest,
        patience: int | None = None,
    ) -> None:
        self.metric_name = evaluator.state.key_metric_name if evaluator else None
        if self.metric_name is None:
            log.warning("nothing validates: the weights of the last step will be kept")
        self.evaluator = evaluator if self.metric_name else None
        self.average, self.ranks, self.stop = average, ranks, stop
        self.best: Best | None = None
        self.best_weights: dict[str, torch.Tensor] = {}
        self.patience = patience
        self.without_gain = 0
        """Validations since the best one."""
        self.fresh_metric: float | None = None
        """Metric of the last validation, until a row of the log has it."""
        self.step = -1
        """Step of the last validation."""
        self.due = False
        """Whether a signal stopped a validation, so that it is still to be done."""
        self.interrupted = False
        """Whether a signal has stopped a validation of this process."""
        self._trainer: Any = None
        self._seed = 0
        self._common_batches = 0

    def attach(self, trainer: Any, seed: int, *, amp: bool) -> None:
        """Follow the evaluator, which runs between the steps of a trainer."""
        if self.evaluator is None:
            return
        from ignite.engine import Events

        self._trainer, self._seed = trainer, seed
        self._common_batches = share_validation(self.evaluator, self.ranks)
        self.evaluator.amp = amp
        self.evaluator.network = self.average.network
        self.evaluator.logger.setLevel(logging.CRITICAL)
        on = self.evaluator.add_event_handler
        on(Events.GET_BATCH_STARTED, self._before_batch)
        on(Events.ITERATION_COMPLETED, self._after_batch)
        on(Events.COMPLETED, self._completed)

    def run(self, epoch: int) -> bool:
        """Validate. Return False if a signal stopped the validation."""
        assert self.evaluator is not None
        self.evaluator.run(max(1, epoch))
        return not self.due

    def _before_batch(self, engine: Any) -> None:
        seed_everything(seed_of(self._seed, "validation", engine.state.iteration + 1, *self.ranks.seed))

    def _after_batch(self, engine: Any) -> None:
        number = engine.state.iteration
        if number > self._common_batches:
            return  # other ranks have no more, and cannot be asked
        asked = self.ranks.exchange(f"batch {number} of a validation", stop=self.stop.received)
        if any(message["stop"] for message in asked):
            self.due = self.interrupted = True
            engine.terminate()

    def _completed(self, engine: Any) -> None:
        if self.interrupted:
            return
        self.due = False
        value = float(engine.state.metrics[self.metric_name])
        self._check(value)
        self.fresh_metric = value
        self.step = step = self._trainer.state.iteration
        if math.isfinite(value) and (self.best is None or engine.metric_cmp_fn(value, self.best.value)):
            self.best = Best(step, value, _per_class(engine.state.metric_details.get(self.metric_name)))
            self.best_weights = self.average.weights()
            self.without_gain = 0
        else:
            self.without_gain += 1
            if self.patience is not None:
                log.info("%s", self.words)

    @property
    def exhausted(self) -> bool:
        """Whether as many validations in a row as the patience allows had no gain; all ranks count alike."""
        return self.patience is not None and self.without_gain >= self.patience

    @property
    def words(self) -> str:
        """How long there was no gain, in words."""
        best = (
            f"best {self.metric_name} {self.best.value:.4f} at step {self.best.step}" if self.best else "none is finite"
        )
        of = f" of {self.patience}" if self.patience is not None else ""
        return f"{self.without_gain}{of} validations in a row without gain ({best})"

    def _check(self, value: float) -> None:
        """Raise TrainingError unless all ranks have the same value, that of all samples."""
        for rank, message in enumerate(self.ranks.exchange("result of a validation", value=value)):
            if repr(message["value"]) != repr(value):
                raise TrainingError(
                    f"validation {self.metric_name} is {value:.6g} at rank {self.ranks.world.rank} and "
                    f"{message['value']:.6g} at rank {rank}: the metric does not gather the values of all ranks, as "
                    f"MONAI's and ignite's metrics do"
                )

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "validated_step": self.step,
            "validation_due": self.due,
            "best": asdict(self.best) if self.best else None,
            "best_weights": self.best_weights,
            "without_gain": self.without_gain,
        }

    def restore(self, state: dict[str, Any], epoch_length: int) -> None:
        """Continue from a checkpoint's state."""
        self.step, self.due = state["validated_step"], state["validation_due"]
        self.without_gain = state.get("without_gain", 0)
        if found := state["best"]:
            self.best = Best(found["step"], found["value"], tuple(found["per_class"]))
            self.best_weights = state["best_weights"]
            if self.evaluator:
                self.evaluator.state.best_metric = found["value"]
                self.evaluator.state.best_metric_epoch = found["step"] // epoch_length


def _per_class(details: Any) -> tuple[float, ...]:
    """Return the means per class of a metric's values (N, C) of the validation images; empty if it keeps none."""
    import torch

    if not isinstance(details, torch.Tensor) or details.dim() != 2:
        return ()
    return tuple(float(v) for v in details.float().nanmean(dim=0))
