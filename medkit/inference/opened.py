"""A bundle's inference config, opened: its transforms, its network with its weights, its inferer."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.bundles.bundle import WEIGHTS, Bundle, where_to_fetch
from medkit.bundles.config import class_name
from medkit.bundles.devices import on_device
from medkit.bundles.exported import MODELS, is_exported, program_of
from medkit.bundles.guards import arrays_allowed, at_home, loading_onto, offline, root_in, without_downloads
from medkit.bundles.keys import is_of_monai
from medkit.bundles.layers import followed, has_id, value_at
from medkit.bundles.parsed import BundleConfig
from medkit.bundles.places import argument_of, evaluator_of, handlers_of, postprocessings_of, preprocessing_of
from medkit.bundles.requirements import explained
from medkit.bundles.weights import NETWORKS, LoadStep, WeightsPlan, load, loader_file, weights_plan
from medkit.errors import BundleError, WeightsMissingError
from medkit.inference.onnx_network import OnnxNetwork
from medkit.inference.programs import load_program

if TYPE_CHECKING:
    import torch

    from medkit.inference.evaluator import OwnEvaluator

log = logging.getLogger("medkit")

_OWN_WAYS = ("prepare_batch", "iteration_update", "to_kwargs")
"""Arguments of evaluators that decide how a network is called."""


@dataclass(frozen=True)
class InferenceParts:
    """The objects of an inference config that medkit uses."""

    preprocessing: Any
    """monai.transforms.Compose, a copy to run forward; the config's own is what `Invertd` runs backward."""
    network: Any
    """torch.nn.Module, or what stands for one in ONNX. On its device, in evaluation mode, with its weights."""
    inferer: Any
    """monai.inferers.Inferer."""
    postprocessing: tuple[Any, ...]
    """The transforms after the network, without those that save files."""
    saved: tuple[str, ...] = ()
    """Keys of what those would save."""
    evaluator: OwnEvaluator | None = None
    """The config's own evaluator, if only that can call the network."""


class InferenceConfig(BundleConfig):
    """A bundle's inference config.

    Only the ids that are needed are built, so a data list that does not exist, an unusual run id, and handlers that
    report elsewhere do not matter. Raises BundleError if MONAI cannot read or build the config.
    """

    def __init__(self, bundle: Bundle, device: torch.device, overrides: Mapping[str, Any] | None = None) -> None:
        """Open the bundle's configs for `device`; `overrides` is config id -> value, as `--set` has it."""
        for library in ("monai", "torch"):  # advice to the bundle's authors
            warnings.filterwarnings("ignore", module=rf"{library}\.")
        super().__init__(bundle, bundle.configs, "infer")
        self.device = device
        config = self.parser.config
        self.put({"device": device, **dict(on_device(config, device)), **dict(without_downloads(config))})
        self.put({"bundle_root": root_in(config, bundle.root)})
        self.override({name: _from_here(value) for name, value in (overrides or {}).items()})

    def own_evaluator(self) -> str | None:
        """Return why only the config's own evaluator can run its network, in words; None if medkit can."""
        config = self.parser.config
        name = evaluator_of(config)
        if name is None:
            return None
        evaluator = self.parser[name]
        for key in _OWN_WAYS:
            if evaluator.get(key) is not None:
                return f"its evaluator has a {key} of its own"
        if evaluator.get("mode", "eval") != "eval":
            return f"its evaluator runs the network in the mode {evaluator['mode']}"
        if has_id(config, f"{followed(config, f'{name}::val_data_loader')}::collate_fn"):
            return "its data loader has a collate_fn of its own"
        for handler in handlers_of(config):
            if not is_of_monai(value_at(config, handler)):
                return f"its evaluator has a handler of its own, {value_at(config, handler)['_target_']}"
        if changing := [step.name for step in weights_plan(self.parser).steps if step.kind == "evaluator"]:
            return f"its evaluator is changed by {changing[0]}"
        if class_name(evaluator) == "SupervisedEvaluator":
            return None
        with self.building():
            same = _changes_nothing(str(evaluator["_target_"]))
        return None if same else f"it has an evaluator of its own, {evaluator['_target_']}"

    @contextlib.contextmanager
    def building(self) -> Iterator[None]:
        """Build parts of the config inside the block: offline, in the bundle's folder, with errors that name it."""
        with self.errors_named(), offline(), arrays_allowed(), loading_onto(self.device), at_home(self.bundle.root):
            yield

    def open(self, *, sees_layers: bool = False) -> InferenceParts:
        """Build all parts; `sees_layers`: see `network`. Raises WeightsMissingError and BundleError."""
        with self.building():
            preprocessing = self.preprocessing()
            network = self.network(sees_layers=sees_layers)
            steps = self.postprocessing()
            inferer = self._argument("inferer", "validate::inferer")
        if inferer is None:
            from monai.inferers import SimpleInferer

            inferer = SimpleInferer()
        if not isinstance(network, OnnxNetwork):
            network = network.to(self.device).eval()
        return InferenceParts(preprocessing, network, inferer, *steps)

    def open_evaluator(self) -> InferenceParts:
        """Build all parts, with the config's own evaluator, which gets its data from medkit and saves nothing.

        Raises WeightsMissingError and BundleError.
        """
        from medkit.inference.evaluator import OneCase, OwnEvaluator

        config = self.parser.config
        name = str(evaluator_of(config))
        if not has_id(config, f"{name}::val_data_loader"):
            raise BundleError(f"{self.path}: its evaluator has no val_data_loader, by which medkit can give it a case")
        with self.building():
            preprocessing = self.preprocessing()
            steps = self.postprocessing()
            collate = self.get(f"{followed(config, f'{name}::val_data_loader')}::collate_fn")
            plan = weights_plan(self.parser)
            case = OneCase()
            for place in handlers_of(config):
                node = value_at(config, place)
                if is_of_monai(node) or class_name(node).endswith("Saver"):  # they report, measure, save, load weights
                    self.parser[f"{place}::_disabled_"] = True
            left_out = ("postprocessing", "key_val_metric", "additional_metrics")
            self.put({f"{name}::{key}": None for key in left_out})
            self.put({f"{name}::val_data_loader": case, f"{name}::epoch_length": 1})
            files = self._weight_files(plan)
            evaluator = self.get(name)
            networks = [getattr(evaluator, "network", None), *getattr(evaluator, "networks", ())]
            modules = [module.to(self.device) for module in networks if module is not None]
            self._fill(plan, files, modules)
        return InferenceParts(
            preprocessing, modules[0], getattr(evaluator, "inferer", None), *steps,
            evaluator=OwnEvaluator(evaluator, case, collate),
        )  # fmt: skip

    def preprocessing(self) -> Any:
        """Build the transforms before the network, a monai.transforms.Compose to run forward. Raises BundleError."""
        from medkit.inference.transforms import loaders_of

        name = preprocessing_of(self.parser.config)
        preprocessing = _compose(self.get(name)) if name is not None else None
        if preprocessing is None:
            raise BundleError(
                f"{self.path}: has no id preprocessing, and its evaluator's dataset has no transform: "
                f"medkit does not know how its images are read"
            )
        if not loaders_of(preprocessing):
            raise BundleError(f"{self.path}: its preprocessing loads no image: expected a LoadImaged")
        # MONAI's transforms switch their tracing off while they are inverted, which another thread must not see
        return copy.deepcopy(preprocessing)

    def postprocessing(self) -> tuple[tuple[Any, ...], tuple[str, ...]]:
        """Build the transforms after the network; return them without those that save, and what those save."""
        steps: list[Any] = []
        for name in postprocessings_of(self.parser.config):
            compose = _compose(self.get(name))
            steps += compose.flatten().transforms if compose is not None else ()
        saved = dict.fromkeys(key for step in steps if _saves(step) for key in getattr(step, "keys", ()))
        return tuple(step for step in steps if not _saves(step)), tuple(saved)

    def _argument(self, key: str, *others: str) -> Any:
        """Build and return an argument of the evaluator, else what the config holds under an id of that name."""
        name = argument_of(self.parser.config, key, key, *others)
        return None if name is None else self.get(name)

    # ---- the network

    def network(self, *, sees_layers: bool = False) -> Any:
        """Build the network and fill it as the config does. Raises WeightsMissingError and BundleError.

        sees_layers: whether a program is replaced by the config's network with its weights, if they fit: a program
        computes the same, but does not show its layers.
        """
        plan = weights_plan(self.parser)
        program = next((self.bundle.root / name for name in MODELS if (self.bundle.root / name).is_file()), None)
        archive = self.bundle.archive
        exported = "export" in self.bundle.block or (archive is not None and is_exported(archive))
        if exported and (own := program_of(self.bundle.root)) is not None:
            return self._with_layers(own) if sees_layers else load_program(own, self.device)
        try:
            files = self._weight_files(plan)
        except WeightsMissingError:
            if program is None:
                raise
            return load_program(program, self.device)
        network = self._argument("network", *NETWORKS)
        if network is None:
            raise BundleError(f"{self.path}: has no id network or network_def")
        self._fill(plan, files, [network])
        return network

    def _with_layers(self, path: Path) -> Any:
        """Return the config's network with the weights of a program; the program if that is not possible."""
        program = load_program(path, self.device)
        if isinstance(program, OnnxNetwork):
            return program
        try:
            network = self._argument("network", *NETWORKS)
            network.load_state_dict(program.state_dict())
        except Exception as error:  # whatever a config of a stranger's file raises
            log.debug("bundle %s: its network cannot be built from its config: %s", self.bundle.name, error)
            return program
        return network

    def _weight_files(self, plan: WeightsPlan) -> dict[str, Path]:
        """Return the files of the config's CheckpointLoaders by their ids; models/model.pt under "" for one without.

        Raises WeightsMissingError if one does not exist.
        """
        files = {step.name: self._path_of(step.name) for step in plan.steps if step.kind == "loader"}
        if not plan.loads and not plan.disabled and not plan.steps:
            files[""] = self.bundle.root / WEIGHTS
        missing = [path for path in files.values() if not path.is_file()]
        why = ""
        if plan.disabled and not plan.loads:
            missing, why = [self._path_of(name) for name in plan.disabled], ", whose CheckpointLoader is disabled"
        if missing:
            hint = where_to_fetch(self.bundle.root)
            raise WeightsMissingError(f"bundle {self.bundle.name}: no weights at {missing[0]}{why}{hint}")
        return files

    def _fill(self, plan: WeightsPlan, files: Mapping[str, Path], networks: Sequence[torch.nn.Module]) -> None:
        """Fill networks as the config does, else by models/model.pt. Raises WeightsMissingError and BundleError."""
        before = [_sums(network) for network in networks]
        for step in plan.steps:
            self._take(step, files)
        if plan.loads or before != [_sums(network) for network in networks]:
            return
        if len(networks) > 1:
            raise BundleError(f"{self.path}: has several networks, and loads weights for none of them")
        path = self.bundle.root / WEIGHTS
        if not path.is_file():
            hint = where_to_fetch(self.bundle.root)
            raise WeightsMissingError(f"bundle {self.bundle.name}: no weights at {path}{hint}")
        log.warning("bundle %s: its config loads no weights; loading %s", self.bundle.name, WEIGHTS)
        load(path, {"model": networks[0]}, strict=True)

    def _path_of(self, loader: str) -> Path:
        """Return the file that a CheckpointLoader reads, and say so if it is another one than the config names."""
        stated, path = loader_file(self.parser, loader, self.bundle.root)
        if stated != path:
            log.warning("bundle %s: no file %s, which its config names; loading %s", self.bundle.name, stated, path)
        return path

    def _take(self, step: LoadStep, files: Mapping[str, Path]) -> None:
        """Do one step of the config that fills or changes its networks."""
        if step.kind != "loader":
            try:
                self.parser.get_parsed_content(step.name)
            except Exception as error:
                text = explained(error, self.bundle)
                what = "which loads weights" if step.kind == "reads" else f"which prepares the {step.kind}"
                raise BundleError(f"{self.path}: {step.name}, {what}: {text}") from error
            return
        modules = self.parser.get_parsed_content(f"{step.name}::load_dict")
        strict = self.get(f"{step.name}::strict", True)
        load(files[step.name], modules, strict=bool(strict))


def _from_here(value: Any) -> Any:
    """Return a value of `--set`; a file that exists below the working directory by its absolute path."""
    is_path = isinstance(value, str) and (os.sep in value or Path(value).suffix in (".pt", ".ts", ".json"))
    return str(Path(value).absolute()) if is_path and Path(value).is_file() else value


def _changes_nothing(target: str) -> bool:
    """Return whether an evaluator's class is MONAI's SupervisedEvaluator under another name."""
    import pydoc

    from monai.engines import SupervisedEvaluator

    kind = pydoc.locate(target)
    if not (isinstance(kind, type) and issubclass(kind, SupervisedEvaluator)):
        return False
    added = {key for base in kind.__mro__ if base not in SupervisedEvaluator.__mro__ for key in vars(base)}
    return all(key.startswith("__") and key != "__init__" for key in added)


def _sums(network: torch.nn.Module) -> list[float]:
    """Return a number for each tensor of a network, which changes with its values."""
    return [float(tensor.double().sum()) for tensor in network.state_dict().values() if hasattr(tensor, "double")]


def _saves(step: Any) -> bool:
    return type(step).__name__.startswith("Save")


def _compose(value: Any) -> Any:
    from monai.transforms import Compose

    return value if value is None or isinstance(value, Compose) else Compose(value)
