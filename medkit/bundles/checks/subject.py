"""The bundle that is checked: its metadata, its network, its weights, and an input of the right size."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.bundles.bundle import WEIGHTS, Bundle, where_to_fetch
from medkit.bundles.devices import on_device
from medkit.bundles.guards import arrays_allowed, loading_onto, offline, root_in, without_downloads
from medkit.bundles.parsed import BundleConfig, raw_parser
from medkit.bundles.weights import loader_file, modules_of, states_of, weights_plan

if TYPE_CHECKING:
    import torch

NETWORK = "network_def"
"""The id of the network in every bundle of MONAI's zoo."""


class Skipped(Exception):  # noqa: N818 - not an error
    """A check does not apply to this bundle; the message states why."""


class Note(str):
    """What a check found that is no fault."""


@dataclass(frozen=True)
class CheckedBundle:
    """The bundle that is checked."""

    root: Path

    @functools.cached_property
    def bundle(self) -> Bundle:
        """Its files."""
        return Bundle(self.root, self.root.name)

    @property
    def inference(self) -> Path:
        """Path of the inference config. Raises BundleError."""
        return self.bundle.config("inference")

    def tensor(self, side: str, name: str) -> Mapping[str, Any]:
        """Return the metadata's description of the network's input or output (`side`). Raises Skipped."""
        formats = self.bundle.metadata.get("network_data_format")
        tensor = (formats.get(side) or {}).get(name) if isinstance(formats, dict) else None
        if not isinstance(tensor, dict):
            raise Skipped(f"network_data_format does not describe any {side[:-1]} named {name}")
        return tensor

    @contextlib.contextmanager
    def building(self) -> Iterator[None]:
        """Build parts of the bundle inside the block as `medkit run bundle` does: offline, arrays among its weights."""
        import torch

        with offline(), arrays_allowed(), loading_onto(torch.device("cpu")):
            yield

    @functools.cached_property
    def opened(self) -> Any:
        """A monai.bundle.ConfigParser of the inference config, for the CPU. Raises BundleError."""
        return self.open("run").parser

    def open(self, run_id: str) -> BundleConfig:
        """Return the inference config for the CPU, without downloads, with its root in place. Raises BundleError."""
        import torch

        config = BundleConfig(self.bundle, self.bundle.configs, "infer", run_id)
        config.put(self.changes(config.parser.config) | {"device": torch.device("cpu")})
        return config

    def changes(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return id -> value for what a config says of other machines: CUDA, downloads, its folder."""
        import torch

        root = {"bundle_root": root_in(content, self.root)} if "bundle_root" in content else {}
        return {**dict(on_device(content, torch.device("cpu"))), **dict(without_downloads(content)), **root}

    def network(self) -> torch.nn.Module:
        """Build the network of the inference config, in evaluation mode. Raises what MONAI raises."""
        name = next((name for name in (NETWORK, "network") if name in self.opened), None)
        if name is None:
            raise KeyError(f"{self.inference.name} has no id {NETWORK}")
        network: torch.nn.Module = self.opened.get_parsed_content(name)
        return network.eval()

    def parser(self, *paths: Path) -> Any:
        """Return a monai.bundle.ConfigParser of configs, each laid over those before it. Raises what MONAI raises."""
        return raw_parser(self.bundle, paths)

    def weights(self) -> dict[str, Path]:
        """Return the files of the config's CheckpointLoaders by their ids; models/model.pt under "" for one without.

        Raises Skipped if one does not exist, or if the config loads weights in another way.
        """
        files, plan = self.weights_of_loaders(), weights_plan(self.opened)
        if plan.loads and not files:
            where = next((step.name for step in plan.steps if step.kind == "reads"), "its network")
            raise Skipped(f"{where} loads the weights in a way of its own")
        if not files:
            files[""] = self.root / WEIGHTS
            self._require(files.values())
        return files

    def require_weights(self) -> None:
        """Raise Skipped if a file of weights that the config names does not exist."""
        if not weights_plan(self.opened).loads:
            self._require([self.root / WEIGHTS])
        self.weights_of_loaders()

    def _require(self, paths: Iterable[Path]) -> None:
        if missing := [path for path in paths if not path.is_file()]:
            raise Skipped(f"no {self.relative(missing[0])}{where_to_fetch(self.root)}")

    def weights_of_loaders(self) -> dict[str, Path]:
        """Return the files of the config's CheckpointLoaders by their ids. Raises Skipped if one does not exist."""
        plan = weights_plan(self.opened)
        loaders = [step.name for step in plan.steps if step.kind == "loader"]
        files = {name: loader_file(self.opened, name, self.root)[1] for name in loaders}
        self._require(files.values())
        return files

    def relative(self, path: Path) -> str:
        """Return a file's name in the bundle."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def states(self) -> Iterator[tuple[str, torch.nn.Module, Mapping[str, Any], bool]]:
        """Yield each file of weights by name, a network that it fills, its state in the file, and whether all must fit.

        Raises Skipped without any, and BundleError.
        """
        for loader, path in self.weights().items():
            if not loader:
                yield self.relative(path), self.network(), _unnested(states_of(path, {})), True
                continue
            modules = self.opened.get_parsed_content(f"{loader}::load_dict")
            strict = f"{loader}::strict" not in self.opened or self.opened.get_parsed_content(f"{loader}::strict")
            states = states_of(path, modules)
            for key, module in modules_of(modules).items():
                yield self.relative(path), module, states[key], bool(strict)

    def size(self) -> tuple[int, ...]:
        """Return a spatial size that the metadata allow for the input, at least 32 voxels if there is a choice."""
        from monai.bundle.scripts import _get_fake_spatial_shape

        def size_of(shape: Sequence[Any], n: int) -> tuple[int, ...]:
            return tuple(_get_fake_spatial_shape(shape, n=n, any=64))

        shape = self.tensor("inputs", "image")["spatial_shape"]
        sizes = (size_of(shape, n) for n in (1, 2, 4, 8, 16, 32))
        return next((size for size in sizes if min(size, default=32) >= 32), size_of(shape, 32))

    def random_input(self) -> torch.Tensor:
        """Return (1, C, ...) random numbers of the input's size. Raises Skipped if only a GPU can take its type."""
        import torch

        kind = self.tensor("inputs", "image")
        if kind["dtype"] == "float16" and not torch.cuda.is_available():
            raise Skipped("its input is float16, which needs a GPU")
        generator = torch.Generator().manual_seed(0)
        return torch.rand((1, int(kind["num_channels"]), *self.size()), generator=generator)


def _unnested(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state of a network that a training may have stored under a name."""
    nested = [state[key] for key in ("model", "state_dict", "network") if isinstance(state.get(key), dict)]
    return nested[0] if nested else state
