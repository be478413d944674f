"""Networks of MONAI that a new bundle can have, sized for small machines."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medkit.errors import size_text

_WIDTHS = [16, 32, 64, 128, 256]
"""Channels of the levels of a U-Net, from the finest."""


@dataclass(frozen=True)
class Architecture:
    """A network as a config describes it."""

    title: str
    """What people call it, with its source."""
    node: Callable[[int, int], Mapping[str, Any]]
    """Channels of the input and of the output -> the description of the network."""
    multiple: int
    """The sizes of a patch are multiples of this number of voxels, which become one at the deepest level."""
    deepest: int = 2
    """Fewest voxels at the deepest level: normalising each channel of a single voxel leaves nothing of it."""
    rate: float = 1e-3
    """Learning rate of AdamW."""

    def fault_of(self, patch: Sequence[int]) -> str | None:
        """Return why the network cannot learn from patches of a size in voxels, and what it needs; None if it can."""
        if wrong := [n for n in patch if n % self.multiple or n < self.multiple]:
            return f"expected multiples of {self.multiple} for this network, got {wrong[0]}"
        if (left := math.prod(n // self.multiple for n in patch)) < self.deepest:
            least = size_text([self.multiple] * (len(patch) - 1) + [self.multiple * self.deepest])
            return (
                f"{size_text(patch)} voxels become {left} at this network's deepest level, which cannot be trained "
                f"on less than {self.deepest}: the smallest patch is {least}, with its longest side along any axis"
            )
        return None


def _dynunet(inputs: int, outputs: int) -> dict[str, Any]:
    return {
        "_target_": "DynUNet", "spatial_dims": 3, "in_channels": inputs, "out_channels": outputs,
        "kernel_size": [3] * 5, "strides": [1, 2, 2, 2, 2], "upsample_kernel_size": [2] * 4, "filters": _WIDTHS,
        "norm_name": ["INSTANCE", {"affine": True}],
    }  # fmt: skip


def _unet(inputs: int, outputs: int) -> dict[str, Any]:
    return {
        "_target_": "UNet", "spatial_dims": 3, "in_channels": inputs, "out_channels": outputs,
        "channels": _WIDTHS, "strides": [2, 2, 2, 2], "num_res_units": 2,
    }  # fmt: skip


def _segresnet(inputs: int, outputs: int) -> dict[str, Any]:
    return {
        "_target_": "SegResNet", "spatial_dims": 3, "in_channels": inputs, "out_channels": outputs,
        "init_filters": 16, "blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1],
    }  # fmt: skip


def _attentionunet(inputs: int, outputs: int) -> dict[str, Any]:
    return {
        "_target_": "AttentionUnet", "spatial_dims": 3, "in_channels": inputs, "out_channels": outputs,
        "channels": _WIDTHS[:4], "strides": [2, 2, 2],
    }  # fmt: skip


def _basicunet(inputs: int, outputs: int) -> dict[str, Any]:
    return {
        "_target_": "BasicUNet", "spatial_dims": 3, "in_channels": inputs, "out_channels": outputs,
        "features": [*_WIDTHS, 16],
    }  # fmt: skip


ARCHITECTURES: Mapping[str, Architecture] = {
    "unet": Architecture("a U-Net with residual units (Kerfoot 2018)", _unet, 16),
    "dynunet": Architecture("the U-Net of nnU-Net (Isensee 2021)", _dynunet, 16),
    "segresnet": Architecture("SegResNet (Myronenko 2018)", _segresnet, 8, deepest=1),
    "attentionunet": Architecture("Attention U-Net (Oktay 2018)", _attentionunet, 8),
    "basicunet": Architecture("a plain U-Net (Falk 2019)", _basicunet, 16),
}
"""Name -> network."""


def named(text: str) -> Architecture | None:
    """Return the architecture that a word names, as MONAI or people write it; None if it is none."""
    return ARCHITECTURES.get(text.lower().replace("-", "").replace("_", ""))


def names() -> Sequence[str]:
    """Return the names of all architectures."""
    return list(ARCHITECTURES)
