"""The bundle that is checked: its metadata, its network, its weights, and an input of the right size."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medkit.bundles.bundle import WEIGHTS, Bundle
from medkit.bundles.parsed import raw_parser

if TYPE_CHECKING:
    import torch

NETWORK = "network_def"
"""The id of the network in every bundle of MONAI's zoo."""


class Skipped(Exception):  # noqa: N818 - not an error
    """A check does not apply to this bundle; the message states why."""


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

    def network(self) -> torch.nn.Module:
        """Build the network of the inference config, in evaluation mode. Raises what MONAI raises."""
        parser = self.parser(self.inference)
        if NETWORK not in parser:
            raise KeyError(f"{self.inference.name} has no id {NETWORK}")
        network: torch.nn.Module = parser.get_parsed_content(NETWORK)
        return network.eval()

    def parser(self, *paths: Path) -> Any:
        """Return a monai.bundle.ConfigParser of configs, each laid over those before it. Raises what MONAI raises."""
        return raw_parser(self.bundle, paths)

    def state_dict(self) -> dict[str, Any]:
        """Load the weights, which may contain only numbers. Raises Skipped if there are none."""
        import torch

        path = self.root / WEIGHTS
        if not path.is_file():
            raise Skipped(f"no {WEIGHTS}")
        found = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(found, dict):
            raise ValueError(f"{WEIGHTS}: expected a state dict, got {type(found).__name__}")
        nested = [found[k] for k in ("model", "state_dict", "network") if isinstance(found.get(k), dict)]
        return nested[0] if nested else found

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
