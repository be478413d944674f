"""A bundle's train config, opened with MONAI, with the user's data and settings put in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.bundles.bundle import tensors
from medkit.bundles.parsed import BundleConfig
from medkit.errors import BundleError, InputError, UsageError
from medkit.training.data import check_files, find_items, find_unpaired
from medkit.training.parts.handlers import Progress
from medkit.training.plan import TrainingPlan
from medkit.training.splits import DataList, share_out

if TYPE_CHECKING:
    import torch

TRAINER, EVALUATOR = "train::trainer", "validate::evaluator"
"""MONAI's ids of the two engines."""
CLASS_NAMES, CLASSES = "class_names", "classes"
"""Ids of the names of the classes that a config learns, and of their number, which follows from the names."""
_DATA_IDS = {
    "training": ("train_datalist", "train::dataset::data"),
    "validation": ("val_datalist", "validate::dataset::data"),
}
"""Ids where the items may be put; the first one that a config has is used."""


@dataclass(frozen=True)
class TrainingParts:
    """The objects of a train config that medkit uses."""

    trainer: Any
    """monai.engines.SupervisedTrainer, or a similar engine with `network` and `optimizer`."""
    evaluator: Any | None
    """monai.engines.Evaluator."""
    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any | None
    """The config's `lr_scheduler`."""
    progress: Progress
    steps: int
    """Number of training steps that the config asks for."""
    further: Mapping[str, Any]
    """The config's `save_dict`: further objects whose state belongs in a checkpoint, by name."""


class TrainConfig(BundleConfig):
    """A bundle's train config, with a training plan put in. Raises BundleError if MONAI cannot read or build it."""

    def __init__(self, plan: TrainingPlan, device: torch.device) -> None:
        super().__init__(plan.bundle, plan.config.split(","), "train")
        self.plan = plan
        values = {"bundle_root": str(plan.bundle.root), "device": device, "seed": plan.seed, "steps": plan.steps}
        self.put({name: value for name, value in values.items() if value is not None})
        self.override(plan.overrides)
        self.class_names: tuple[str, ...] = ()
        """Names of the classes of the data; empty if the config learns no classes."""

    @property
    def data_keys(self) -> list[str]:
        """Keys of an item that the config reads."""
        return list(self.get("unpaired_keys") or self.get("datalist_keys", ["image", "label"]))

    def take_data(self) -> DataList:
        """Find the items of --data and put them into the config. Raises InputError and UsageError."""
        keys = self.data_keys
        validates = EVALUATOR in self.parser
        kinds = self.get("unpaired_keys")
        if self.plan.more_data and not kinds:
            raise UsageError(f"--data {self.plan.data} {self.plan.more_data[0]}: {self.path} learns from one only")
        learns_classes = CLASS_NAMES in self.parser and len(keys) > 1
        if self.plan.labels and not learns_classes:
            raise UsageError(f"--labels {self.plan.labels}: {self.path} learns no classes, so it has no {CLASS_NAMES}")
        if CLASSES in self.plan.overrides and CLASS_NAMES in self.parser:
            raise UsageError(f"--set {CLASSES}: the number and the names of the classes follow from --data")
        self._check_split(validates, unpaired=bool(kinds))
        if self.plan.data is None:
            return self._own_data(keys)
        data = (self.plan.data, *self.plan.more_data)
        if learns_classes:
            found = self._find_classes(self.plan.data, keys)
        else:
            found = find_unpaired(data, kinds) if kinds else find_items(self.plan.data, keys, self.plan.split)
        if not validates:
            found = replace(found, training=(*found.training, *found.validation), validation=())
        elif not found.validation:
            what = "one item" if len(found.training) == 1 else "items of one subject"
            raise InputError(f"--data {self.plan.data}: has {what} only; the config needs another one to validate on")
        self.put({"dataset_dir": str(found.root)})
        self._put_all(found, validates=validates)
        return found

    def _check_split(self, validates: bool, *, unpaired: bool) -> None:
        """Raise UsageError for options that need what the config does not do."""
        split = self.plan.split
        if split.folds and not validates:
            raise UsageError(f"--folds {split.folds}: nothing validates in {self.path}")
        if split.test_fraction is not None and unpaired:
            raise UsageError(f"--test-fraction: {self.path} learns from images that do not belong together")
        if self.plan.patience is not None and not validates:
            raise UsageError(f"--patience {self.plan.patience}: nothing validates in {self.path}")

    def _put_all(self, found: DataList, *, validates: bool) -> None:
        self.put_items("training", found.training)
        if validates:
            self.put_items("validation", found.validation)
        self.parser.parse(reset=True)

    def _find_classes(self, data: Path, keys: Sequence[str]) -> DataList:
        """Return the items with a class each, and put the names of the classes into the config. Raises InputError."""
        from medkit.training.own_classes import find_classes

        inputs = tensors(self.bundle.metadata, "inputs")
        planar = len(inputs[0][1].get("spatial_shape") or ()) == 2 if inputs else True
        known = tuple(map(str, self.get(CLASS_NAMES)))
        found = find_classes(data, self.plan.labels, keys, known, planar=planar, split=self.plan.split)
        self.class_names = found.names
        self.put({CLASS_NAMES: list(found.names)})
        return found.data

    def put_items(self, part: str, items: Sequence[Any]) -> None:
        """Put items into the config for a part, `training` or `validation`. Raises BundleError if it has no place."""
        for name in _DATA_IDS[part]:
            if name in self.parser:
                # a tuple is opaque to MONAI's parser: strings of a datalist that begin with $ must not be executed
                self.parser[name] = tuple(items)
                return
        raise BundleError(f"{self.path}: has no id {' or '.join(_DATA_IDS[part])} to put the items of --data into")

    def _own_data(self, keys: Sequence[str]) -> DataList:
        """Return the items that the config names itself."""
        lists = {part: next((self.get(n) for n in ids if n in self.parser), None) for part, ids in _DATA_IDS.items()}
        training, validation = (tuple(lists[part] or ()) for part in ("training", "validation"))
        if not training:
            raise UsageError(f"--data is needed: {self.path} names no data itself")
        named = [item for item in (*training, *validation) if isinstance(item, dict)]
        check_files(named, keys if "datalist_keys" in self.parser else (), self.path)
        found = DataList(training, validation, self.plan.bundle.root)
        if self.plan.split.folds or self.plan.split.test_fraction is not None:
            if len(named) < len(training) + len(validation):
                raise UsageError(
                    f"--folds, --test-fraction: need --data: {self.path} names its data in a way of its own"
                )
            found = share_out(found, keys, self.plan.split)
            self._put_all(found, validates=bool(found.validation))
        return found

    def build(self, bundle_root: Path) -> TrainingParts:
        """Build the engines for the bundle in the folder `bundle_root`. Raises BundleError."""
        from monai.utils import set_determinism

        from medkit.training.parts.samples import seed_everything

        self.put({"bundle_root": str(bundle_root)})
        with self.errors_named():
            set_determinism(self.plan.seed)  # seeds transforms that are made without a seed
            set_determinism(None)
            seed_everything(self.plan.seed)
            self.workflow.initialize()
            if TRAINER not in self.parser:
                raise BundleError(f"{self.path}: has no trainer under the id {TRAINER}")
            trainer = self.parser.get_parsed_content(TRAINER)
            evaluator = self.get(EVALUATOR)
        self._check(trainer)
        return TrainingParts(
            trainer=trainer,
            evaluator=evaluator,
            network=trainer.network,
            optimizer=trainer.optimizer,
            scheduler=self.get("lr_scheduler"),
            progress=self.get("progress") or Progress(),
            steps=int(self.get("steps") or trainer.state.max_epochs * trainer.state.epoch_length),
            further=self._further(),
        )

    def _further(self) -> dict[str, Any]:
        found = self.get("save_dict") or {}
        for name, value in found.items():
            if not (hasattr(value, "state_dict") and hasattr(value, "load_state_dict")):
                raise BundleError(f"{self.path}: save_dict::{name}: expected an object with a state_dict")
        return dict(found)

    def _check(self, trainer: Any) -> None:
        if not (hasattr(trainer, "network") and hasattr(trainer, "optimizer")):
            raise BundleError(f"{self.path}: {TRAINER}: expected a SupervisedTrainer, got {type(trainer).__name__}")
        if getattr(trainer, "accumulation_steps", 1) > 1:
            raise BundleError(f"{self.path}: {TRAINER}: accumulation_steps is not supported; use a larger batch_size")
        if not trainer.state.epoch_length:
            raise BundleError(
                f"{self.path}: {TRAINER}: needs an epoch_length, the steps from one validation to the next"
            )

    def run(self, trainer: Any) -> None:
        """Train with the config's own `run` if it has one, else by running the trainer."""
        if "run" in self.parser:
            self.workflow.run()
        else:
            trainer.run()

    def validates_itself(self) -> bool:
        """Return whether a handler of the config runs the evaluator during training."""
        from monai.handlers import ValidationHandler

        handlers = self.get("train::handlers") or self.get(f"{TRAINER}::train_handlers") or []
        return any(isinstance(handler, ValidationHandler) for handler in handlers)
