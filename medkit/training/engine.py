"""`train` runs a bundle's train config on a user's data and writes a new bundle."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING

from medkit.machine.threads import granted_threads, limit_torch
from medkit.pipe.signals import StopRequest
from medkit.training.checkpoint import RunFolder
from medkit.training.meeting import joined
from medkit.training.plan import TrainingPlan, TrainingResult, training_identity, value_digest
from medkit.training.ranks import Ranks

if TYPE_CHECKING:
    import torch

    from medkit.training.config import TrainingParts

log = logging.getLogger("medkit.training")


def train(plan: TrainingPlan, stop: StopRequest | None = None) -> TrainingResult:
    """Train a bundle's network and write a new bundle to `plan.output`, from the checkpoint there if there is one.

    A signal that `stop` receives ends the training after the current step, with a checkpoint. Messages go to the logger
    `medkit.training`, progress to `medkit.training.progress`.

    Raises UsageError, BundleError (the config), InputError (the data), OutputError (the folder holds something else)
    and TrainingError (the loss is no longer finite, a step failed, or another rank ended; the last good checkpoint
    stays).
    """
    device = set_up(plan)
    stop = stop or StopRequest()
    with joined(plan.world, device, plan.command, stop) as ranks:
        if ranks.size > 1:
            limit_torch(plan.threads or ranks.threads)
        return _train(plan, stop, device, ranks)


def _train(plan: TrainingPlan, stop: StopRequest, device: torch.device, ranks: Ranks) -> TrainingResult:
    """Train as one of the ranks; rank 0 writes."""
    from medkit.training.checking import checked
    from medkit.training.config import TrainConfig
    from medkit.training.report import overlay
    from medkit.training.report.card import start_texts, write_samples
    from medkit.training.run import TrainingRun

    folder = RunFolder(plan.output)
    if ranks.first:
        folder.refuse_foreign(plan)
    config = TrainConfig(plan, device)
    data = config.take_data()
    identity = training_identity(plan, data.training, data.validation)
    if ranks.first and folder.starts_anew(plan):
        for note in checked(plan, config, data):
            log.warning("%s", note)
    ranks.same("the configs, the settings or the data", value_digest(identity))
    with folder.locked() if ranks.first else nullcontext():
        state = ranks.from_first(folder.state(plan, identity) if ranks.first else None)
        if state is None and ranks.first:
            folder.start(plan, identity)
            start_texts(plan, folder.root)
            overlay.apply(plan, folder.root, config.class_names)
        ranks.exchange("the folder is ready")
        parts = config.build(folder.root)
        adjust(parts, plan, fresh=state is None)
        if state is None and ranks.first:
            write_samples(folder.root, parts)
        return TrainingRun(plan, folder, config, parts, data, identity, stop, ranks).train(state)


def set_up(plan: TrainingPlan) -> torch.device:
    """Set torch's threads and return the device; each rank of a machine has a GPU of its own, if it may choose."""
    limit_torch(plan.threads or granted_threads())
    import torch

    from medkit.machine.precision import choose_device

    device = choose_device(plan.device)
    if device.type == "cuda" and plan.world.size > 1:
        if plan.device in ("auto", "cuda"):
            device = torch.device("cuda", plan.world.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    return device


def adjust(parts: TrainingParts, plan: TrainingPlan, *, fresh: bool) -> None:
    """Set the initial parameters, if the training is fresh, and freeze parameters."""
    from medkit.training.weights import freeze, initialise_from

    if plan.init_from and fresh:
        initialise_from(parts.network, plan.init_from)
    if plan.freeze:
        freeze(parts.network, plan.freeze)
