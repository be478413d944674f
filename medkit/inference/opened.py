"""A bundle's inference config, opened: its transforms, its network with the weights, its inferer."""

from __future__ import annotations

import contextlib
import copy
import importlib
import re
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.bundles.bundle import WEIGHTS, Bundle
from medkit.bundles.config import one_line, own_error, silence_monai
from medkit.errors import BundleError, MedkitError, UsageError, WeightsMissingError

if TYPE_CHECKING:
    import torch

TORCHSCRIPT = "models/model.ts"


@dataclass(frozen=True)
class InferenceParts:
    """What medkit takes hold of in an inference config."""

    preprocessing: Any
    """monai.transforms.Compose, a copy of the config's own: see `_own_copy`."""
    network: torch.nn.Module
    """On its device, in evaluation mode, with its weights."""
    inferer: Any
    postprocessing: tuple[Any, ...]
    """The transforms that follow, without those that save."""


class InferenceConfig:
    """An inference config; raises BundleError where MONAI cannot read or build what it says.

    Only the ids that are needed are built, so a data list that is not there, a run id of any name or none, and
    handlers that report elsewhere do not matter.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: torch.device,
        overrides: Mapping[str, Any] | None = None,
        config: str = "inference",
    ) -> None:
        from monai.bundle import ConfigWorkflow

        self.bundle, self.device = bundle, device
        self.path = bundle.config(config)
        silence_monai()
        for library in ("monai", "torch"):  # advice to the bundle's authors
            warnings.filterwarnings("ignore", module=rf"{library}\.")
        with self._blame():
            workflow = ConfigWorkflow(
                config_file=str(self.path),
                meta_file=str(bundle.root / "configs" / "metadata.json"),
                workflow_type="infer",
                logging_file=False,
            )
        self.parser = workflow.parser
        _search_a_copy(self.parser.locator)
        if unknown := [name for name in overrides or () if name not in self.parser]:
            raise UsageError(f"--set {unknown[0]}: {self.path} has no such id")
        for name in ("device", *_devices(self.parser.config)):
            if name in self.parser:
                self.parser[name] = device
        for name, value in {"bundle_root": str(bundle.root), **(overrides or {})}.items():
            if name in self.parser:
                self.parser[name] = value
        self._refuse_what_runs_itself()
        _put_code_first(bundle.root)

    def _refuse_what_runs_itself(self) -> None:
        evaluator = self.parser.config.get("evaluator")
        if not isinstance(evaluator, dict):
            return
        target = str(evaluator.get("_target_", ""))
        if target.rpartition(".")[2] != "SupervisedEvaluator" or "prepare_batch" in evaluator:
            what = (
                "a prepare_batch of its own" if "prepare_batch" in evaluator else f"an evaluator of its own, {target}"
            )
            raise BundleError(f"{self.path}: has {what}, which decides how the network is called; medkit cannot")

    def open(self) -> InferenceParts:
        """Builds all parts. Raises WeightsMissingError."""
        with self._blame(), _offline(), _arrays_allowed():
            preprocessing = _compose(self._get("preprocessing"))
            self._want_images(preprocessing)
            network = self._network()
            postprocessing = _compose(self._get("postprocessing", "evaluator::postprocessing"))
            inferer = self._get("inferer", "evaluator::inferer")
        if inferer is None:
            from monai.inferers import SimpleInferer

            inferer = SimpleInferer()
        steps = postprocessing.flatten().transforms if postprocessing is not None else ()
        return InferenceParts(
            _own_copy(preprocessing),
            network.to(self.device).eval(),
            inferer,
            tuple(step for step in steps if not type(step).__name__.startswith("Save")),
        )

    def _want_images(self, preprocessing: Any) -> None:
        from medkit.inference.transforms import loaders_of

        if preprocessing is None:
            raise BundleError(f"{self.path}: has no id preprocessing")
        if not loaders_of(preprocessing):
            raise BundleError(f"{self.path}: its preprocessing loads no image (LoadImaged), so medkit can feed it none")

    def _get(self, *names: str) -> Any:
        """What the config says under the first of `names` that it has."""
        name = next((n for n in names if n in self.parser), None)
        return None if name is None else self.parser.get_parsed_content(name)

    # ---- the network

    def _network(self) -> torch.nn.Module:
        import torch

        loader, path = self._weights()
        script = self.bundle.root / TORCHSCRIPT
        if not path.is_file() and script.is_file():
            return torch.jit.load(str(script), map_location=self.device)
        if not path.is_file():
            raise WeightsMissingError(f"bundle {self.bundle.name}: no weights at {path}")
        for name in ("network_def", "network"):
            self._want_no_pretrained(name, self.parser.config.get(name))
        network = self._get("network", "network_def", "evaluator::network")
        if network is None:
            raise BundleError(f"{self.path}: has no id network or network_def")
        modules = self.parser.get_parsed_content(f"{loader}::load_dict") if loader else {"model": network}
        strict = self.parser.get_parsed_content(f"{loader}::strict") if f"{loader}::strict" in self.parser else True
        _load(path, modules, strict=bool(strict))
        return network

    def _weights(self) -> tuple[str | None, Path]:
        """The id of the config's CheckpointLoader, and the file that it loads."""
        for name in _ids(self.parser.config, "CheckpointLoader"):
            return name, Path(str(self.parser.get_parsed_content(f"{name}::load_path")))
        return None, self.bundle.root / WEIGHTS

    def _want_no_pretrained(self, name: str, config: Any) -> None:
        """Weights that a library would download are overwritten by the bundle's anyhow."""
        if isinstance(config, dict):
            for key, value in config.items():
                if key == "pretrained" and value is True:
                    self.parser[f"{name}::{key}"] = False
                self._want_no_pretrained(f"{name}::{key}", value)

    @contextlib.contextmanager
    def _blame(self) -> Iterator[None]:
        """Errors of MONAI become a sentence about the config."""
        try:
            yield
        except (MedkitError, MemoryError):
            raise
        except Exception as error:
            if own := own_error(error):
                raise own from None
            raise BundleError(f"{self.path}: {one_line(error)}") from error


def _search_a_copy(locator: Any) -> None:
    """Makes MONAI's locator go through a copy of `sys.modules`, which grows while another thread imports."""

    def names() -> list[str]:
        return [
            name
            for name in tuple(sys.modules)
            if name.startswith(locator.MOD_START) and not any(part in name for part in locator.excludes)
        ]

    locator._find_module_names = names


def _load(path: Path, modules: Mapping[str, Any], *, strict: bool) -> None:
    """Fills modules from a checkpoint as MONAI's CheckpointLoader does; nothing but tensors is unpickled."""
    import pickle

    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise BundleError(
            f"{path}: holds more than weights (weights_only=True refuses it); medkit loads no such file"
        ) from None
    wanted = {key: module for key, module in modules.items() if isinstance(module, torch.nn.Module)}
    if len(wanted) == 1 and next(iter(wanted)) not in state:
        state = {next(iter(wanted)): state}
    for key, module in wanted.items():
        if key not in state:
            raise BundleError(f"{path}: has no {key}; there is {', '.join(map(str, list(state)[:5]))}")
        try:
            module.load_state_dict(state[key], strict=strict)
        except RuntimeError as error:
            raise BundleError(f"{path}: does not fit the network: {one_line(error)}") from None


def _ids(config: Any, target: str, name: str = "") -> Iterator[str]:
    """Ids of the objects of a class in a config."""
    if isinstance(config, dict) and str(config.get("_target_", "")).rpartition(".")[2] == target:
        yield name
    pairs: Any = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in pairs:
        yield from _ids(value, target, f"{name}::{key}" if name else str(key))


def _devices(config: Any, name: str = "") -> Iterator[str]:
    """Ids of the CUDA devices that a config names itself, below its `device`: they are what the user asks for, too."""
    pairs: Any = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in pairs:
        here = f"{name}::{key}" if name else str(key)
        if key == "device" and re.match(r"\$\s*torch\.device\(.*cuda|cuda(:\d+)?$", str(value)):
            yield here
        yield from _devices(value, here)


def _compose(value: Any) -> Any:
    from monai.transforms import Compose

    return value if value is None or isinstance(value, Compose) else Compose(value)


def _own_copy(preprocessing: Any) -> Any:
    """A copy to run forward, while the config's own is what `Invertd` runs backward: MONAI's transforms switch
    their tracing off while they are inverted, which another thread must not see."""
    return copy.deepcopy(preprocessing)


def _put_code_first(root: Path) -> None:
    """A bundle's own packages lie in its root; those of another bundle, often of the same name, are forgotten."""
    here = str(root)
    sys.path[:] = [here, *(p for p in sys.path if p != here)]
    own = {p.stem for p in root.iterdir() if (p / "__init__.py").is_file() or p.suffix == ".py"}
    for name in [m for m in sys.modules if m.partition(".")[0] in own]:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if not file.startswith(here):
            del sys.modules[name]
    importlib.invalidate_caches()


def _arrays_allowed() -> Any:
    """Inside, torch.load takes arrays of numbers for weights, such as the code of an architecture that was searched
    for; nothing else of a pickle is executed for them."""
    import numpy as np
    import torch

    make: Any = np.empty(0).__reduce__()[0]
    # files name the module of the NumPy that wrote them
    makers = [(make, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    kinds = {type(np.dtype(letter)) for letter in "?bBhHiIlLqQefd"}
    allowed: list[Any] = [*makers, np.ndarray, np.dtype, *kinds]
    return torch.serialization.safe_globals(allowed)


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Inside, nothing reaches the network: a bundle's weights come with it or not at all."""

    def refuse(self: socket.socket, address: Any) -> None:
        raise OSError(f"medkit downloads nothing while it runs: connection to {address} refused")

    before = socket.socket.connect
    socket.socket.connect = refuse  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        socket.socket.connect = before  # type: ignore[method-assign]
