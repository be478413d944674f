"""A running training: its steps, validations, checkpoints and end, as handlers of the config's engines."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from medkit.bundles.config import one_line
from medkit.errors import MedkitError, TrainingError
from medkit.machine.precision import choose_precision, prepare
from medkit.pipe.signals import StopRequest
from medkit.training.checkpoint import RunFolder
from medkit.training.config import TrainConfig, TrainingParts
from medkit.training.data import DataList
from medkit.training.loss_guard import LossGuard
from medkit.training.parts.samples import SampleNumbers, seed_everything, seed_of
from medkit.training.plan import TrainingPlan, TrainingResult
from medkit.training.report.card import Best, Figures, write_texts, write_weights
from medkit.training.report.history import History, HistoryRow
from medkit.training.report.progress_line import progress_line
from medkit.training.weights import AveragedNetwork, count_parameters

if TYPE_CHECKING:
    import torch

log = logging.getLogger("medkit.training")
progress_log = logging.getLogger("medkit.training.progress")

EMA = 0.995
"""Share of the averaged weights that a step keeps, if the config has no `ema`."""
ROWS_PER_EPOCH = 10
"""Rows of the log from one validation to the next."""
SECONDS_BETWEEN_LINES = 10.0
"""Seconds between two lines of progress."""


class TrainingRun:
    """The training of one config in one folder."""

    def __init__(
        self,
        plan: TrainingPlan,
        folder: RunFolder,
        config: TrainConfig,
        parts: TrainingParts,
        data: DataList,
        identity: dict[str, Any],
        stop: StopRequest,
    ) -> None:
        self.plan, self.folder, self.config, self.parts, self.stop = plan, folder, config, parts, stop
        self.data, self.identity = data, identity
        self.trainer, self.network, self.progress = parts.trainer, parts.network, parts.progress
        self.evaluator = parts.evaluator
        self.metric_name = self.evaluator.state.key_metric_name if self.evaluator else None
        if self.evaluator is None or self.metric_name is None:
            log.warning("nothing validates: the weights of the last step will be kept")
            self.evaluator = None
        self.history = History(folder.log, self.metric_name)
        self.epoch_length = self.trainer.state.epoch_length
        self.device = self.trainer.state.device
        self.best: Best | None = None
        self.best_weights: dict[str, torch.Tensor] = {}
        self.fresh_metric: float | None = None
        self.validated_step = -1
        self.validation_due = False
        self.guard = LossGuard(self.trainer)
        self.between_steps = True
        self.stopped = False
        self.scaler_state: dict[str, Any] | None = None
        """State of a checkpoint's gradient scaler, until the trainer has made its own."""
        self.saved_step = -1
        self.saved_at = self.logged_at = time.monotonic()
        self._set_limits()
        self._set_precision()

    # ---- before the first step

    def _set_limits(self) -> None:
        plan, progress = self.plan, self.progress
        progress.steps = plan.steps or (None if plan.hours else self.parts.steps)
        progress.hours = plan.hours
        epochs = math.ceil(progress.steps / self.epoch_length) if progress.steps else 10**9
        self.trainer.state.max_epochs = epochs

    def _set_precision(self) -> None:
        """Choose the precision, and make the network whose weights are the average over steps."""
        self.precision = choose_precision(self.plan.precision, self.device)
        self.trainer.amp = self.precision == "fp16"
        self.average = AveragedNetwork(self.network, float(self.config.get("ema", EMA)))
        # a set: without an average the first two are the same network
        for network in {self.network, self.average.network, *_networks(self.parts.further.values())}:
            prepare(network, self.precision)
        if self.evaluator:
            self.evaluator.amp = self.trainer.amp
            self.evaluator.network = self.average.network

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.average.network.load_state_dict(state["ema"])
        self.parts.optimizer.load_state_dict(state["optimizer"])
        if self.parts.scheduler is not None and state["scheduler"] is not None:
            self.parts.scheduler.load_state_dict(state["scheduler"])
        for name, value in self.parts.further.items():
            value.load_state_dict(state["further"][name])
        self.scaler_state = state["scaler"]
        step = self.saved_step = state["step"]
        self.trainer.state.iteration, self.trainer.state.epoch = step, step // self.epoch_length
        self.progress.restore(step, state["seconds"])
        self.guard.sum, self.guard.count, self.guard.skipped = state["pending"]
        self.validated_step, self.validation_due = state["validated_step"], state["validation_due"]
        if found := state["best"]:
            self.best = Best(found["step"], found["value"], tuple(found["per_class"]))
            self.best_weights = state["best_weights"]
            if self.evaluator:
                self.evaluator.state.best_metric = found["value"]
                self.evaluator.state.best_metric_epoch = found["step"] // self.epoch_length
        self.history.restore(state["rows"])
        self._set_sampler(step)

    def _set_sampler(self, step: int) -> None:
        loader = self.trainer.data_loader
        sampler = getattr(loader, "sampler", None)
        if isinstance(sampler, SampleNumbers):
            sampler.start = step * (loader.batch_size or 1)
        elif step:
            log.warning(
                "the config's data loader does not count its samples (medkit.training.SampleNumbers): the rest of the "
                "epoch gets samples in a new order, so the curve will differ from that of an uninterrupted training"
            )

    def _attach(self) -> None:
        from ignite.engine import Events
        from monai.handlers import ValidationHandler

        on = self.trainer.add_event_handler
        self.trainer.logger.setLevel(logging.CRITICAL)  # errors are reported once, by medkit
        self.progress.attach(self.trainer)
        if self.evaluator and not self.config.validates_itself():
            ValidationHandler(1, self.evaluator).attach(self.trainer)
        on(Events.GET_BATCH_STARTED, lambda engine: self._seed("batch", engine.state.iteration + 1))
        on(Events.ITERATION_STARTED, self._before_step)
        self.guard.attach()
        self.average.attach(self.trainer)
        on(Events.ITERATION_COMPLETED, self._after_step)
        on(Events.EPOCH_COMPLETED, self._after_epoch)
        if self.evaluator:
            on = self.evaluator.add_event_handler
            self.evaluator.logger.setLevel(logging.CRITICAL)
            on(Events.GET_BATCH_STARTED, lambda engine: self._seed("validation", engine.state.iteration + 1))
            on(Events.ITERATION_COMPLETED, self._during_validation)
            on(Events.COMPLETED, self._after_validation)

    # ---- the whole training

    def train(self, state: dict[str, Any] | None) -> TrainingResult:
        """Train from the start, or from a checkpoint's state, to the end or until a signal."""
        if state is None:
            self.history.restore([])
        else:
            self._restore(state)
            if self.progress.done and not self.validation_due:
                log.info("already trained for %d steps; larger --steps or --hours continue from there", state["step"])
                return self._result("was finished")
            log.info("continuing from step %d of %s", state["step"], self.folder.checkpoint)
        self._log_start()
        self._attach()
        with self.stop.working():
            self._run_engines()
        if self.stopped:
            log.warning("stopped at step %d; the same command continues from there", self.saved_step)
        return self._result("stopped" if self.stopped else "finished")

    def _run_engines(self) -> None:
        """Run the trainer to the end or a signal. Raises TrainingError if a step fails."""
        self._seed("start", self.progress.step)
        try:
            if self.validation_due and self._validated():
                self._end_interval()
            if not self.stopped and not self.progress.done:
                self.config.run(self.trainer)
            if not self.stopped:
                self._finish()
        except MedkitError:
            raise
        except Exception as error:
            if self.stop.received and self.between_steps:  # the signal also stopped the data loader's workers
                self._stop()
                return
            raise TrainingError(f"step {self.trainer.state.iteration}: {one_line(error)}") from error

    def _finish(self) -> None:
        """Validate the last step, choose the weights, and write the bundle and the checkpoint."""
        if self.evaluator and self.validated_step != self.progress.step and not self._validated():
            return
        if self.guard.count or self.fresh_metric is not None:
            self._end_interval()
        if self.best is None:
            self.best_weights = self.average.weights()
        self._publish()
        self._save()

    def _result(self, outcome: Any) -> TrainingResult:
        best, progress = self.best, self.progress
        name = self.metric_name if best else None
        chosen = (best.value, best.step) if best else (None, None)
        return TrainingResult(self.folder.root, outcome, progress.step, progress.seconds, name, *chosen)

    # ---- a step

    def _seed(self, phase: str, number: int) -> None:
        """Seed the global generators by the position in the training only, so that dropout continues too."""
        seed_everything(seed_of(self.plan.seed, phase, number))

    def _before_step(self, engine: Any) -> None:
        self.between_steps = False
        if self.scaler_state and engine.scaler is not None:
            engine.scaler.load_state_dict(self.scaler_state)
            self.scaler_state = None
        self._seed("step", engine.state.iteration)

    def _after_step(self, engine: Any) -> None:
        self.between_steps = True
        step = self.progress.step = engine.state.iteration
        self.guard.after_step(engine)
        if step % self.epoch_length == 0:
            return  # `_after_epoch` follows after the validation
        regular = step % self._row_every() == 0 or self.fresh_metric is not None
        if regular and not self.progress.done and not self.validation_due:
            self._end_interval()
        self._pause()

    def _row_every(self) -> int:
        return int(max(1, self.epoch_length // ROWS_PER_EPOCH))

    def _after_epoch(self, engine: Any) -> None:
        if not self.validation_due:
            self._end_interval()
        self._pause()

    def _pause(self) -> None:
        """End, stop or save between two steps if it is time to."""
        if self.progress.done:
            self.trainer.terminate()
        elif self.stop.received:
            self._stop()
            self.trainer.terminate()
        elif time.monotonic() - self.saved_at > 60 * self.plan.checkpoint_minutes:
            self._save()
        if not self.stopped and time.monotonic() - self.logged_at > SECONDS_BETWEEN_LINES:
            self._log_progress()

    def _stop(self) -> None:
        self.stopped = True
        self._save()

    def _end_interval(self) -> None:
        """Add a row to the log, over the steps since the last one."""
        rate = self.parts.optimizer.param_groups[0]["lr"]
        metric, self.fresh_metric = self.fresh_metric, None
        self.history.add(HistoryRow(self.progress.step, self.progress.seconds, rate, self.guard.mean, metric))
        self.guard.start_interval()
        if metric is not None:
            self._publish()
            self._log_progress()

    # ---- validation

    def _validated(self) -> bool:
        """Validate between two steps. Return False if a signal stopped the validation, and so the training."""
        assert self.evaluator is not None
        self.evaluator.run(max(1, self.trainer.state.epoch))
        if self.validation_due:
            self._stop()
        return not self.validation_due

    def _during_validation(self, engine: Any) -> None:
        if self.stop.received:
            self.validation_due = True
            engine.terminate()

    def _after_validation(self, engine: Any) -> None:
        if self.stop.received and self.validation_due:
            return
        self.validation_due = False
        self.fresh_metric = value = float(engine.state.metrics[self.metric_name])
        self.validated_step = step = self.trainer.state.iteration
        if math.isfinite(value) and (self.best is None or engine.metric_cmp_fn(value, self.best.value)):
            self.best = Best(step, value, _per_class(engine.state.metric_details.get(self.metric_name)))
            self.best_weights = self.average.weights()

    # ---- files

    def _save(self) -> None:
        if self.guard.in_a_row:
            return  # the weights may be corrupted: keep the earlier checkpoint
        scheduler, scaler = self.parts.scheduler, getattr(self.trainer, "scaler", None)
        self.folder.save({
            "identity": self.identity,
            "step": self.progress.step,
            "seconds": self.progress.seconds,
            "network": self.network.state_dict(),
            "ema": self.average.network.state_dict(),
            "optimizer": self.parts.optimizer.state_dict(),
            "scheduler": None if scheduler is None else scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "further": {name: value.state_dict() for name, value in self.parts.further.items()},
            "pending": [self.guard.sum, self.guard.count, self.guard.skipped],
            "validated_step": self.validated_step,
            "validation_due": self.validation_due,
            "best": asdict(self.best) if self.best else None,
            "best_weights": self.best_weights,
            "rows": self.history.plain(),
        })  # fmt: skip
        self.saved_step, self.saved_at = self.progress.step, time.monotonic()

    def _publish(self) -> None:
        """Write the weights chosen so far, and their figures, into the bundle."""
        if self.best_weights:
            write_weights(self.folder.root, self.best_weights, str(self.config.get("weights_dtype", "float32")))
        numbers, trained = count_parameters(self.network)
        figures = Figures(
            step=self.progress.step,
            seconds=self.progress.seconds,
            items=len(self.data.training),
            validation_items=len(self.data.validation),
            parameters=numbers,
            trained_parameters=trained,
            device=_device_name(self.device),
            precision=self.precision,
            metric_name=self.metric_name,
            best=self.best,
            skipped_steps=self.guard.skipped,
        )
        write_texts(self.folder.root, self.plan, figures, self.history.rows)

    # ---- messages

    def _log_start(self) -> None:
        numbers, trained = count_parameters(self.network)
        log.info(
            "%d items for training, %d for validation; %s of %s parameters trained on %s in %s",
            len(self.data.training), len(self.data.validation), f"{trained:,}", f"{numbers:,}",
            _device_name(self.device), self.precision,
        )  # fmt: skip

    def _log_progress(self) -> None:
        self.logged_at = time.monotonic()
        loss = self.guard.mean if self.guard.count else None
        rate = self.parts.optimizer.param_groups[0]["lr"]
        line = progress_line(self.progress, self.history.rows, loss, rate, self.metric_name, self.best)
        progress_log.info("%s", line)


def _networks(objects: Iterable[Any]) -> Iterator[torch.nn.Module]:
    """Return the networks among objects; of a ModuleDict or ModuleList, which is never called, its children."""
    import torch

    for found in objects:
        if isinstance(found, torch.nn.ModuleDict | torch.nn.ModuleList):
            yield from found.children()
        elif isinstance(found, torch.nn.Module):
            yield found


def _per_class(details: Any) -> tuple[float, ...]:
    """Return the means per class of a metric's values (N, C) of the validation images; empty if it keeps none."""
    import torch

    if not isinstance(details, torch.Tensor) or details.dim() != 2:
        return ()
    return tuple(float(v) for v in details.float().nanmean(dim=0))


def _device_name(device: torch.device) -> str:
    import torch

    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)
