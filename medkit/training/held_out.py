"""A finished bundle on held-out items, by the evaluator of its own train config.

For configs that draw or degrade the images that they learn from, so that an item has no image and reference as files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medkit.bundles.bundle import WEIGHTS
from medkit.errors import BundleError
from medkit.machine.precision import choose_precision, prepare
from medkit.training.config import EVALUATOR, TrainConfig
from medkit.training.engine import set_up
from medkit.training.parts.samples import seed_everything, seed_of
from medkit.training.plan import TrainingPlan
from medkit.training.splits import DataList
from medkit.training.weights import read_weights


def evaluates(items: Sequence[Mapping[str, Any]], config: TrainConfig) -> bool:
    """Return whether a config has an evaluator, and all items have what it reads."""
    return EVALUATOR in config.parser and all(key in item for item in items for key in config.data_keys)


def evaluate_held_out(plan: TrainingPlan, data: DataList) -> tuple[str, float] | None:
    """Return name and value of the config's metric for the test items, with the weights of the finished bundle.

    `plan`: of the training, which has ended. Returns None if the config cannot evaluate the items. Raises BundleError.
    """
    device = set_up(plan)
    config = TrainConfig(plan, device)
    if not evaluates(data.test, config):
        return None
    config.put({"dataset_dir": str(data.root)})
    config.put_items("training", data.training)
    config.put_items("validation", data.test)
    config.parser.parse(reset=True)
    parts = config.build(plan.bundle.root)
    evaluator = parts.evaluator
    if evaluator is None or evaluator.state.key_metric_name is None:
        return None
    parts.network.load_state_dict(read_weights(plan.output / WEIGHTS))
    prepare(parts.network, choose_precision(plan.precision, device))
    _seed_batches(evaluator, plan.seed)
    try:
        evaluator.run(1)
    except Exception as error:
        raise BundleError(f"{config.path}: the test items cannot be evaluated: {error}") from error
    name = evaluator.state.key_metric_name
    return name, float(evaluator.state.metrics[name])


def _seed_batches(evaluator: Any, seed: int) -> None:
    """Seed every batch by its number, as in the validations of a training."""
    from ignite.engine import Events

    evaluator.add_event_handler(
        Events.GET_BATCH_STARTED,
        lambda engine: seed_everything(seed_of(seed, "test", engine.state.iteration + 1)),
    )
