"""What a training would do and need, in words: `medkit train --dry-run`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medkit.pipe.signals import StopRequest
from medkit.training.checkpoint import RunFolder
from medkit.training.engine import adjust, set_up
from medkit.training.plan import TrainingPlan, training_identity
from medkit.training.splits import DataList, count_subjects

if TYPE_CHECKING:
    import torch

    from medkit.training.config import TrainConfig, TrainingParts


def describe(plan: TrainingPlan, stop: StopRequest | None = None) -> list[str]:
    """Return lines that describe what `train` would do and need, and write nothing. Raises the same errors as `train`.

    Time and memory are measured on a few steps that are thrown away.
    """
    began = time.monotonic()
    device = set_up(plan)
    from medkit.training.checking import checked
    from medkit.training.config import TrainConfig
    from medkit.training.rehearsal import rehearse

    folder = RunFolder(plan.output)
    folder.refuse_foreign(plan)
    config = TrainConfig(plan, device)
    data = config.take_data()
    state = folder.state(plan, training_identity(plan, data.training, data.validation))
    notes = checked(plan, config, data) if state is None else ()
    parts = config.build(plan.bundle.root)
    adjust(parts, plan, fresh=state is None)
    lines = [*_lines(plan, config, parts, data, device, state), *(f"note: {note}" for note in notes)]
    steps, hours = _left(plan, parts, state)
    if (steps is not None and steps <= 0) or (hours is not None and hours <= 0):
        return lines
    forecast = rehearse(plan, config, parts, data, stop or StopRequest(), began)
    single = ["measured with this rank only, which waits for no other"] if plan.world.size > 1 else []
    return [*lines, *forecast.lines(steps, hours), *single]


def _left(plan: TrainingPlan, parts: TrainingParts, state: Mapping[str, Any] | None) -> tuple[int | None, float | None]:
    """Return the steps and the hours that are left; None for what does not limit the training."""
    steps = plan.steps or (None if plan.hours else parts.steps)
    done, spent = (state["step"], state["seconds"] / 3600) if state else (0, 0.0)
    return (steps - done if steps else None), (plan.hours - spent if plan.hours else None)


def _lines(
    plan: TrainingPlan,
    config: TrainConfig,
    parts: TrainingParts,
    data: DataList,
    device: torch.device,
    state: Mapping[str, Any] | None,
) -> list[str]:
    """Return what would be trained on what."""
    from medkit.machine.precision import choose_precision
    from medkit.training.weights import count_parameters

    numbers, trained = count_parameters(parts.network)
    limits = [f"{plan.steps or parts.steps} steps"] if plan.steps or not plan.hours else []
    limits += [f"{plan.hours:g} hours"] if plan.hours else []
    items = _items(data, config.data_keys)
    return [
        f"bundle: {plan.bundle.name} {plan.bundle.version}, config {config.path}",
        f"items: {items}"
        + (f"; {plan.split.text}" if plan.folds else "")
        + (f"; classes: {', '.join(config.class_names)}" if config.class_names else ""),
        f"network: {numbers:,} parameters, {trained:,} of them trained",
        f"to do: {' or '.join(limits)}, validation every {parts.trainer.state.epoch_length} steps"
        + (f", until {plan.patience} in a row have no gain" if plan.patience is not None else ""),
        f"on: {device}, {choose_precision(plan.precision, device)}"
        + (f", {plan.world.size} ranks" if plan.world.size > 1 else ""),
        f"result: {plan.output}" + (f", continuing from step {state['step']}" if state else ""),
    ]


def _items(data: DataList, keys: list[str]) -> str:
    """Return the number of items, and of their subjects, in each part of the data."""
    parts = [("training", data.training), ("validation", data.validation)]
    parts += [("the test", data.test)] if data.test else []
    words = []
    for name, items in parts:
        known = [item for item in items if isinstance(item, Mapping)]
        count = count_subjects(known, [*keys, "image"], data)
        of = f" ({count} subject{'s' * (count != 1)})" if known else ""
        words.append(f"{len(items)} for {name}{of}")
    return ", ".join(words)
