"""A bundle's inference config, opened: its transforms, its network with its weights, its inferer."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.bundles.bundle import WEIGHTS, Bundle, where_to_fetch
from medkit.bundles.config import class_name
from medkit.bundles.guards import arrays_allowed, at_home, offline, on_device, root_in, without_downloads
from medkit.bundles.parsed import BundleConfig
from medkit.bundles.places import argument_of, evaluator_of, preprocessing_of
from medkit.bundles.requirements import explained
from medkit.bundles.weights import NETWORKS, LoadStep, load, weights_plan
from medkit.errors import BundleError, WeightsMissingError

if TYPE_CHECKING:
    import torch

log = logging.getLogger("medkit")

TORCHSCRIPT = "models/model.ts"


@dataclass(frozen=True)
class InferenceParts:
    """The objects of an inference config that medkit uses."""

    preprocessing: Any
    """monai.transforms.Compose, a copy to run forward; the config's own is what `Invertd` runs backward."""
    network: torch.nn.Module
    """On its device, in evaluation mode, with its weights."""
    inferer: Any
    """monai.inferers.Inferer."""
    postprocessing: tuple[Any, ...]
    """The transforms after the network, without those that save files."""
    saved: tuple[str, ...] = ()
    """Keys of what those would save."""


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
        name = evaluator_of(self.parser.config)
        if name is None:
            return None
        evaluator = self.parser[name]
        for key in ("prepare_batch", "iteration_update"):
            if evaluator.get(key) is not None:
                return f"its evaluator has a {key} of its own"
        if evaluator.get("mode", "eval") != "eval":
            return f"its evaluator runs the network in the mode {evaluator['mode']}"
        if class_name(evaluator) == "SupervisedEvaluator":
            return None
        with self.building():
            same = _changes_nothing(str(evaluator["_target_"]))
        return None if same else f"it has an evaluator of its own, {evaluator['_target_']}"

    @contextlib.contextmanager
    def building(self) -> Iterator[None]:
        """Build parts of the config inside the block: offline, in the bundle's folder, with errors that name it."""
        with self.errors_named(), offline(), arrays_allowed(), at_home(self.bundle.root):
            yield

    def open(self) -> InferenceParts:
        """Build all parts. Raises WeightsMissingError and BundleError."""
        with self.building():
            preprocessing = self.preprocessing()
            network = self.network()
            postprocessing = _compose(self._argument("postprocessing", "validate::postprocessing"))
            inferer = self._argument("inferer", "validate::inferer")
        if inferer is None:
            from monai.inferers import SimpleInferer

            inferer = SimpleInferer()
        steps = postprocessing.flatten().transforms if postprocessing is not None else ()
        return InferenceParts(
            preprocessing,
            network.to(self.device).eval(),
            inferer,
            tuple(step for step in steps if not _saves(step)),
            tuple(dict.fromkeys(key for step in steps if _saves(step) for key in getattr(step, "keys", ()))),
        )

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

    def _argument(self, key: str, *others: str) -> Any:
        """Build and return an argument of the evaluator, else what the config holds under an id of that name."""
        name = argument_of(self.parser.config, key, key, *others)
        return None if name is None else self.get(name)

    # ---- the network

    def network(self) -> torch.nn.Module:
        """Build the network and fill it as the config does. Raises WeightsMissingError and BundleError."""
        import torch

        files, plan = self._weight_files()
        missing = [path for path in files.values() if not path.is_file()]
        missing += [self._path_of(name) for name in plan.disabled if not plan.steps and not plan.in_network]
        script = self.bundle.root / TORCHSCRIPT
        if missing and len(missing) >= len(plan.steps) and script.is_file():
            return torch.jit.load(str(script), map_location=self.device)
        if missing:
            why = ", whose CheckpointLoader is disabled" if plan.disabled and not plan.steps else ""
            hint = where_to_fetch(self.bundle.root)
            raise WeightsMissingError(f"bundle {self.bundle.name}: no weights at {missing[0]}{why}{hint}")
        network = self._argument("network", *NETWORKS)
        if network is None:
            raise BundleError(f"{self.path}: has no id network or network_def")
        for step in plan.steps:
            self._take(step, files)
        if "" in files:
            load(files[""], {"model": network}, strict=True)
        return network

    def _weight_files(self) -> tuple[dict[str, Path], Any]:
        """Return the files of the config's CheckpointLoaders by their ids, models/model.pt under "", and its plan."""
        plan = weights_plan(self.parser)
        files = {step.name: self._path_of(step.name) for step in plan.steps if step.is_loader}
        if not plan.steps and not plan.in_network and not plan.disabled:
            files[""] = self.bundle.root / WEIGHTS
        return files, plan

    def _path_of(self, loader: str) -> Path:
        """Return the file that a CheckpointLoader reads; a relative one lies below the bundle's folder.

        The path of another machine stands for the file of that name in the bundle's models.
        """
        stated = Path(str(self.parser.get_parsed_content(f"{loader}::load_path")))
        path, own = self.bundle.root / stated, self.bundle.root / "models" / stated.name
        if path.is_file() or path.is_relative_to(self.bundle.root) or not own.is_file():
            return path
        log.warning("bundle %s: no file %s, which its config names; loading %s", self.bundle.name, path, own)
        return own

    def _take(self, step: LoadStep, files: Mapping[str, Path]) -> None:
        """Fill the networks of one step of the config."""
        if not step.is_loader:
            try:
                self.parser.get_parsed_content(step.name)
            except Exception as error:
                text = explained(error, self.bundle)
                raise BundleError(f"{self.path}: {step.name}, which loads weights: {text}") from error
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


def _saves(step: Any) -> bool:
    return type(step).__name__.startswith("Save")


def _compose(value: Any) -> Any:
    from monai.transforms import Compose

    return value if value is None or isinstance(value, Compose) else Compose(value)
