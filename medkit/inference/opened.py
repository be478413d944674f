"""A bundle's inference config, opened: its transforms, its network with its weights, its inferer."""

from __future__ import annotations

import contextlib
import copy
import re
import socket
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.bundles.bundle import WEIGHTS, Bundle
from medkit.bundles.config import BundleConfig, class_name, one_line, walk
from medkit.errors import BundleError, WeightsMissingError
from medkit.inference.weights import LoadStep, load, weights_plan

if TYPE_CHECKING:
    import torch

TORCHSCRIPT = "models/model.ts"
_CUDA_CALL = re.compile(r"\.cuda\(\s*\d*\s*\)")
"""In an expression that moves something to a CUDA device."""
_CUDA_NAME = re.compile(r"""(?<![=!]=)(?<![=!]=\s)(?<!startswith\()(['"])cuda(:\d+)?\1(?!\s*([=!]=|in\b))""")
"""A CUDA device in an expression that does not compare it with another."""


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


class InferenceConfig(BundleConfig):
    """A bundle's inference config.

    Only the ids that are needed are built, so a data list that does not exist, an unusual run id, and handlers that
    report elsewhere do not matter. Raises BundleError if MONAI cannot read or build the config.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: torch.device,
        overrides: Mapping[str, Any] | None = None,
        config: str = "inference",
    ) -> None:
        """Open the config of that name for `device`; `overrides` is config id -> value, as `--set` has it."""
        for library in ("monai", "torch"):  # advice to the bundle's authors
            warnings.filterwarnings("ignore", module=rf"{library}\.")
        super().__init__(bundle, [config], "infer")
        self.device = device
        self.put({"device": device, **dict(_on_device(self.parser.config, device))})
        self.put({"bundle_root": str(bundle.root)})
        self.override(overrides or {})
        self._refuse_own_evaluator()

    def _refuse_own_evaluator(self) -> None:
        evaluator = self.parser.config.get("evaluator")
        if not isinstance(evaluator, dict):
            return
        own = None
        if "prepare_batch" in evaluator:
            own = "a prepare_batch of its own"
        elif class_name(evaluator) != "SupervisedEvaluator":
            own = f"an evaluator of its own, {evaluator.get('_target_', '')}"
        if own:
            raise BundleError(f"{self.path}: has {own}, which decides how the network is called; medkit cannot run it")

    def open(self) -> InferenceParts:
        """Build all parts. Raises WeightsMissingError and BundleError."""
        with self.errors_named(), _offline(), _arrays_allowed():
            preprocessing = _compose(self.get("preprocessing"))
            self._require_images(preprocessing)
            network = self._network()
            postprocessing = _compose(self._get_first("postprocessing", "evaluator::postprocessing"))
            inferer = self._get_first("inferer", "evaluator::inferer")
        if inferer is None:
            from monai.inferers import SimpleInferer

            inferer = SimpleInferer()
        steps = postprocessing.flatten().transforms if postprocessing is not None else ()
        return InferenceParts(
            # MONAI's transforms switch their tracing off while they are inverted, which another thread must not see
            copy.deepcopy(preprocessing),
            network.to(self.device).eval(),
            inferer,
            tuple(step for step in steps if not type(step).__name__.startswith("Save")),
        )

    def _require_images(self, preprocessing: Any) -> None:
        from medkit.inference.transforms import loaders_of

        if preprocessing is None:
            raise BundleError(f"{self.path}: has no id preprocessing")
        if not loaders_of(preprocessing):
            raise BundleError(f"{self.path}: its preprocessing loads no image: expected a LoadImaged")

    def _get_first(self, *names: str) -> Any:
        """Build and return what the config holds under the first of `names` that it has; None if it has none."""
        return next((self.get(name) for name in names if name in self.parser), None)

    # ---- the network

    def _network(self) -> torch.nn.Module:
        import torch

        for name in ("network_def", "network"):
            self._switch_off_pretrained(name)
        plan = weights_plan(self.parser)
        files = {step.name: self._path_of(step.name) for step in plan.steps if step.is_loader}
        if not plan.steps and not plan.in_network and not plan.disabled:
            files[""] = self.bundle.root / WEIGHTS
        missing = [path for path in files.values() if not path.is_file()]
        missing += [self._path_of(name) for name in plan.disabled if not plan.steps and not plan.in_network]
        script = self.bundle.root / TORCHSCRIPT
        if missing and len(missing) >= len(plan.steps) and script.is_file():
            return torch.jit.load(str(script), map_location=self.device)
        if missing:
            why = ", whose CheckpointLoader is disabled" if plan.disabled and not plan.steps else ""
            raise WeightsMissingError(f"bundle {self.bundle.name}: no weights at {missing[0]}{why}")
        network = self._get_first("network", "network_def", "evaluator::network")
        if network is None:
            raise BundleError(f"{self.path}: has no id network or network_def")
        for step in plan.steps:
            self._take(step, files)
        if "" in files:
            load(files[""], {"model": network}, strict=True)
        return network

    def _path_of(self, loader: str) -> Path:
        return Path(str(self.parser.get_parsed_content(f"{loader}::load_path")))

    def _take(self, step: LoadStep, files: Mapping[str, Path]) -> None:
        """Fill the networks of one step of the config."""
        if not step.is_loader:
            try:
                self.parser.get_parsed_content(step.name)
            except Exception as error:
                raise BundleError(f"{self.path}: {step.name}, which loads weights: {one_line(error)}") from error
            return
        modules = self.parser.get_parsed_content(f"{step.name}::load_dict")
        strict = self.get(f"{step.name}::strict", True)
        load(files[step.name], modules, strict=bool(strict))

    def _switch_off_pretrained(self, name: str) -> None:
        """Keep a library from downloading weights, which the bundle's own weights replace anyhow."""
        for place, value in list(walk(self.parser.config.get(name))):
            if place and place[-1] == "pretrained" and value is True:
                self.parser["::".join((name, *place))] = False


def _on_device(config: Any, device: Any) -> Iterator[tuple[str, Any]]:
    """Yield id -> new value for each value of a config that names a CUDA device: the user's choice replaces it."""
    for place, value in walk(config):
        name = "::".join(place)
        if not isinstance(value, str):
            continue
        if re.fullmatch(r"cuda(:\d+)?", value) or (
            place and place[-1] == "device" and re.match(r"\$\s*torch\.device\(.*cuda", value)
        ):
            yield name, device
        elif value.startswith("$"):
            text = _CUDA_NAME.sub(f"'{device}'", _CUDA_CALL.sub(f".to('{device}')", value))
            if text != value:
                yield name, text


def _compose(value: Any) -> Any:
    from monai.transforms import Compose

    return value if value is None or isinstance(value, Compose) else Compose(value)


def _arrays_allowed() -> Any:
    """Let torch.load read NumPy arrays of numbers among weights, such as the code of a searched architecture.

    Nothing else in a pickle is executed for them.
    """
    import numpy as np
    import torch

    make: Any = np.empty(0).__reduce__()[0]
    # the name of the module depends on the NumPy version that wrote the file
    makers = [(make, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    kinds = {type(np.dtype(letter)) for letter in "?bBhHiIlLqQefd"}
    allowed: list[Any] = [*makers, np.ndarray, np.dtype, *kinds]
    return torch.serialization.safe_globals(allowed)


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Refuse network connections inside the block: a bundle's weights come with it or not at all."""

    def refuse(self: socket.socket, address: Any) -> None:
        raise OSError(f"medkit downloads nothing while it runs: connection to {address} refused")

    before = socket.socket.connect
    socket.socket.connect = refuse  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        socket.socket.connect = before  # type: ignore[method-assign]
