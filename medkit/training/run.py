"""A running training: its steps, checkpoints and end, as handlers of the config's trainer."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Mapping
from typing import Any

from medkit.bundles.config import one_line, own_error
from medkit.errors import Stopped, TrainingError
from medkit.machine.precision import choose_precision, prepare
from medkit.pipe.signals import StopRequest
from medkit.training.checkpoint import RunFolder
from medkit.training.config import TrainConfig, TrainingParts
from medkit.training.loss_guard import LossGuard
from medkit.training.objects import device_name, is_network, is_shared, networks_among, raw_bytes
from medkit.training.parts.samples import SampleNumbers, seed_everything, seed_of
from medkit.training.plan import TrainingPlan, TrainingResult
from medkit.training.ranks import RankEndedError, Ranks, StepAbandoned
from medkit.training.report.card import Figures, write_texts, write_weights
from medkit.training.report.history import History, HistoryRow
from medkit.training.report.messages import Messages, machine_text
from medkit.training.sharing import SharedSteps, share_training
from medkit.training.small_patches import patch_too_small
from medkit.training.splits import DataList, count_subjects
from medkit.training.validation import Validation
from medkit.training.weights import AveragedNetwork, count_parameters

log = logging.getLogger("medkit.training")

EMA = 0.995
"""Share of the averaged weights that a step keeps, if the config has no `ema`."""
ROWS_PER_EPOCH = 10
"""Rows of the log from one validation to the next."""


class TrainingRun:
    """The training of one config in one folder, by one rank or by several."""

    def __init__(
        self,
        plan: TrainingPlan,
        folder: RunFolder,
        config: TrainConfig,
        parts: TrainingParts,
        data: DataList,
        identity: dict[str, Any],
        stop: StopRequest,
        ranks: Ranks,
    ) -> None:
        self.plan, self.folder, self.config, self.parts, self.stop = plan, folder, config, parts, stop
        self.data, self.identity, self.ranks = data, identity, ranks
        self.trainer, self.network, self.progress = parts.trainer, parts.network, parts.progress
        self.epoch_length = self.trainer.state.epoch_length
        self.device = self.trainer.state.device
        self.average = AveragedNetwork(self.network, float(self.config.get("ema", EMA)))
        self.validation = Validation(parts.evaluator, self.average, ranks, stop, plan.patience)
        self.history = History(folder.log if ranks.first else None, self.validation.metric_name)
        self.guard = LossGuard(self.trainer)
        self.between_steps = True
        self.stopping = self.save_due = False
        """Whether a signal has come, and whether a checkpoint is due, as all ranks have agreed."""
        self.stopped = False
        self.scaler_state: dict[str, Any] | None = None
        """State of a checkpoint's gradient scaler, until the trainer has made its own."""
        self.saved_step = -1
        self.saved_at = time.monotonic()
        self.messages = Messages(self.progress, self.validation, self.history, self.guard, parts.optimizer)
        self._set_limits()
        self._set_precision()
        further = (value for value in parts.further.values() if is_network(value))
        self.networks = [self.network, *further]
        self.buffers = [b for n in self.networks for b in n.buffers() if b.is_floating_point()]
        self.own_further = {k: v for k, v in parts.further.items() if ranks.size > 1 and not is_shared(v)}
        """Further objects whose state may differ between ranks."""

    # ---- before the first step

    def _set_limits(self) -> None:
        plan, progress = self.plan, self.progress
        progress.steps = plan.steps or (None if plan.hours else self.parts.steps)
        progress.hours = plan.hours
        epochs = math.ceil(progress.steps / self.epoch_length) if progress.steps else 10**9
        self.trainer.state.max_epochs = epochs

    def _set_precision(self) -> None:
        """Choose the precision, that of rank 0, and make all networks compute with it."""
        chosen = choose_precision(self.plan.precision, self.device)
        self.precision = str(self.ranks.exchange("precision", chosen=chosen)[0]["chosen"])
        self.trainer.amp = self.precision == "fp16"
        # a set: without an average the first two are the same network
        for network in {self.network, self.average.network, *networks_among(self.parts.further.values())}:
            prepare(network, self.precision)

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.average.network.load_state_dict(state["ema"])
        self.parts.optimizer.load_state_dict(state["optimizer"])
        if self.parts.scheduler is not None and state["scheduler"] is not None:
            self.parts.scheduler.load_state_dict(state["scheduler"])
        own = {} if self.ranks.first else state["other_ranks"][self.ranks.world.rank - 1]
        for name, value in self.parts.further.items():
            value.load_state_dict((state["further"] | own)[name])
        self.scaler_state = state["scaler"]
        step = self.saved_step = state["step"]
        self.trainer.state.iteration, self.trainer.state.epoch = step, step // self.epoch_length
        self.progress.restore(step, state["seconds"])
        self.guard.sum, self.guard.count, self.guard.skipped = state["pending"]
        self.validation.restore(state, self.epoch_length)
        self.history.restore(state["rows"])
        self._set_sampler(step)

    def _set_sampler(self, step: int) -> None:
        loader = self.trainer.data_loader
        sampler = getattr(loader, "sampler", None)
        if isinstance(sampler, SampleNumbers):
            sampler.start = step * (loader.batch_size or 1) * self.ranks.size
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
        if self.validation.evaluator and not self.config.validates_itself():
            ValidationHandler(1, self.validation.evaluator).attach(self.trainer)
        on(Events.GET_BATCH_STARTED, lambda engine: self._seed("batch", engine.state.iteration + 1))
        on(Events.ITERATION_STARTED, self._before_step)
        share_training(self.trainer.data_loader, self.ranks, self.plan.seed)
        self.shared = SharedSteps(self.trainer, self.ranks)
        self.guard.attach()
        self.average.attach(self.trainer)
        on(Events.ITERATION_COMPLETED, self._after_step)
        on(Events.EPOCH_COMPLETED, self._after_epoch)
        self.validation.attach(self.trainer, self.plan.seed, amp=self.trainer.amp)

    # ---- the whole training

    def train(self, state: dict[str, Any] | None) -> TrainingResult:
        """Train from the start, or from a checkpoint's state, to the end or until a signal."""
        if state is None:
            self.history.restore([])
            self.ranks.copy_networks(self.networks)
        else:
            self._restore(state)
            if self._at_end and not self.validation.due:
                further = "--patience" if self.validation.exhausted else "--steps or --hours"
                log.info("already trained for %d steps; larger %s continue from there", state["step"], further)
                return self._result("was finished")
            log.info("continuing from step %d of %s", state["step"], self.folder.checkpoint)
        machine = machine_text(self.device, self.precision, self.ranks.size)
        self.messages.start(self.data, self.plan, self.network, machine)
        self._attach()
        with self.stop.working():
            self._run_engines()
        if self.stopped:
            log.warning("stopped at step %d; the same command continues from there", self.saved_step)
        return self._result("stopped" if self.stopped else "finished")

    def _run_engines(self) -> None:
        """Run the trainer to the end or a signal. Raises TrainingError if a step fails."""
        self._seed("start", self.progress.step)
        self._agree("start")
        try:
            if self.validation.due and self._validated():
                self._end_interval()
            if not self.stopped and not self._at_end:
                self.config.run(self.trainer)
            if not self.stopped:
                self._finish()
        except StepAbandoned:
            self._stop()
        except Exception as error:
            own = own_error(error)  # MONAI puts errors of its own around it
            if isinstance(own, RankEndedError) and self.stop.received:
                raise Stopped("a signal, which has also stopped another rank") from None
            if own is error or isinstance(own, TrainingError):
                raise own from None
            if self.stop.received and self.between_steps:  # the signal also stopped the data loader's workers
                self.ranks.abandon_step()
                self._stop()
                return
            raise TrainingError(f"step {self.trainer.state.iteration}: {self._explained(error)}") from error

    def _explained(self, error: Exception) -> str:
        """Return what a step has raised in one line, and what is known about it."""
        batch = self.trainer.state.batch
        image = batch.get("image") if isinstance(batch, Mapping) else None
        size = tuple(getattr(image, "shape", ()))[2:]
        text = one_line(error)
        return patch_too_small(text, type(self.network).__name__, size) or text

    def _finish(self) -> None:
        """Validate the last step, choose the weights, and write the bundle and the checkpoint."""
        validation = self.validation
        if validation.evaluator and validation.step != self.progress.step and not self._validated():
            return
        self._agree("end")
        if self.guard.count or validation.fresh_metric is not None:
            self._end_interval()
        if validation.best is None:
            validation.best_weights = self.average.weights()
        if self._early:
            log.info("stopped early at step %d: %s", self.progress.step, validation.words)
        self._publish()
        self._save()

    def _result(self, outcome: Any) -> TrainingResult:
        best, progress = self.validation.best, self.progress
        name = self.validation.metric_name if best else None
        value, step = (best.value, best.step) if best else (None, None)
        root = self.folder.root
        return TrainingResult(root, outcome, progress.step, progress.seconds, name, value, step, self.data)

    @property
    def _at_end(self) -> bool:
        """Whether the steps or hours are used up, or further ones promise no gain; the same at all ranks."""
        return self.progress.done or self.validation.exhausted

    @property
    def _early(self) -> bool:
        return self.validation.exhausted and not self.progress.done

    # ---- a step

    def _seed(self, phase: str, number: int) -> None:
        """Seed the global generators by the position in the training only, so that dropout continues too."""
        seed_everything(seed_of(self.plan.seed, phase, number, *self.ranks.seed))

    def _before_step(self, engine: Any) -> None:
        self.between_steps = False
        if self.scaler_state and engine.scaler is not None:
            engine.scaler.load_state_dict(self.scaler_state)
            self.scaler_state = None
        self._seed("step", engine.state.iteration)

    def _after_step(self, engine: Any) -> None:
        self.between_steps = True
        step = self.progress.step = engine.state.iteration
        self.shared.check()
        self.ranks.copy_buffers(self.buffers)
        self.guard.after_step(engine)
        if step % self.epoch_length == 0:
            return  # `_after_epoch` follows after the validation
        self._agree("step")
        regular = step % self._row_every() == 0 or self.validation.fresh_metric is not None
        if regular and not self.progress.done and not self.validation.due:
            self._end_interval()
        self._pause()

    def _row_every(self) -> int:
        return int(max(1, self.epoch_length // ROWS_PER_EPOCH))

    def _after_epoch(self, engine: Any) -> None:
        self._agree("epoch")
        if not self.validation.due:
            self._end_interval()
        self._pause()

    def _agree(self, point: str) -> None:
        """Learn what signals and the clock of rank 0 ask of all ranks, between two steps."""
        due = time.monotonic() - self.saved_at > 60 * self.plan.checkpoint_minutes
        messages = self.ranks.exchange(
            f"{point} {self.progress.step}", stop=self.stop.received, save=due, seconds=self.progress.elapsed()
        )
        self.stopping = any(message["stop"] for message in messages)
        self.save_due = messages[0]["save"]
        if self.ranks.size > 1:
            self.progress.agree(messages[0]["seconds"])

    def _pause(self) -> None:
        """End, stop or save between two steps if it is time to."""
        if self._at_end:
            self.trainer.terminate()
        elif self.stopping:
            self._stop()
            self.trainer.terminate()
        elif self.save_due:
            self._save()
        self.messages.between_steps(ended=self.stopped)

    def _validated(self) -> bool:
        """Validate between two steps. Return False if a signal stopped the validation, and so the training."""
        if not self.validation.run(self.trainer.state.epoch):
            self._stop()
        return not self.stopped

    def _stop(self) -> None:
        self.stopped = True
        self._save()

    def _end_interval(self) -> None:
        """Add a row to the log, over the steps since the last one."""
        rate = self.parts.optimizer.param_groups[0]["lr"]
        metric, self.validation.fresh_metric = self.validation.fresh_metric, None
        self.history.add(HistoryRow(self.progress.step, self.progress.seconds, rate, self.guard.mean, metric))
        self.guard.start_interval()
        if metric is not None:
            self._publish()
            self.messages.log_line()

    # ---- files

    def _save(self) -> None:
        if self.guard.in_a_row:
            return  # the weights may be corrupted: keep the earlier checkpoint
        self._check_networks()
        states = self.ranks.at_first({name: value.state_dict() for name, value in self.own_further.items()})
        self.saved_step, self.saved_at = self.progress.step, time.monotonic()
        if not self.ranks.first:
            return
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
            "rows": self.history.plain(),
            "other_ranks": states[1:],
            **self.validation.state(),
        })  # fmt: skip

    def _check_networks(self) -> None:
        """Raise TrainingError if a network differs between ranks: something trains it without their knowledge."""
        if self.ranks.size > 1:
            digest = hashlib.blake2b()
            for network in self.networks:
                for parameter in network.parameters():
                    digest.update(raw_bytes(parameter))
            self.ranks.same("the weights of networks", digest.hexdigest())

    def _publish(self) -> None:
        """Write the weights chosen so far, and their figures, into the bundle."""
        if not self.ranks.first:
            return
        if weights := self.validation.best_weights:
            write_weights(self.folder.root, weights, str(self.config.get("weights_dtype", "float32")))
        numbers, trained = count_parameters(self.network)
        figures = Figures(
            step=self.progress.step,
            seconds=self.progress.seconds,
            items=len(self.data.training),
            validation_items=len(self.data.validation),
            parameters=numbers,
            trained_parameters=trained,
            device=device_name(self.device),
            precision=self.precision,
            metric_name=self.validation.metric_name,
            best=self.validation.best,
            ranks=self.ranks.size,
            skipped_steps=self.guard.skipped,
            subjects=self._subjects(),
            early=self.validation.words if self._early else "",
        )
        write_texts(self.folder.root, self.plan, figures, self.history.rows, self.config.class_names)

    def _subjects(self) -> tuple[int, int]:
        """Return how many subjects train and validate."""
        keys = self.config.data_keys
        training, validation = (
            count_subjects([item for item in part if isinstance(item, Mapping)], keys, self.data)
            for part in (self.data.training, self.data.validation)
        )
        return training, validation
