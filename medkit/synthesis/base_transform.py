"""The base of the MONAI transforms that draw a training image and its target from an item."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable

VARIANT = "variant"
"""Key of an item: the number of the variant that draws it; 0 without one."""
SAMPLE = "sample"
"""Key of an item: how many samples the training drew before it."""

Item = Mapping[Hashable, Any]
V = TypeVar("V")


class RandomPaird(Randomizable, MapTransform, Generic[V]):
    """Draws an image and its target, `image_key` and `target_key`, from what an item holds under each of `keys`.

    The same random state and the same item give the same pair.

    Args:
        keys: of the source that a pair is drawn from.
        variants: a description of how to draw, or several, of which an item's "variant" picks one by its number.
        image_key: key of what a network is given.
        target_key: key of what a network has to find.
        ramp: samples over which the strength of the draws grows to 1, where items count them under "sample"; 0: the
            strength is always 1.
        easiest: strength of the first sample, 0 to 1.
    """

    def __init__(
        self,
        keys: KeysCollection,
        variants: V | Sequence[V],
        image_key: str = "image",
        target_key: str = "label",
        ramp: int = 0,
        easiest: float = 0.0,
    ) -> None:
        super().__init__(keys)
        self.variants: tuple[V, ...] = tuple(variants) if isinstance(variants, list | tuple) else (variants,)  # type: ignore[assignment]
        self.image_key, self.target_key = image_key, target_key
        self.ramp, self.easiest = ramp, easiest

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[self.image_key], out[self.target_key] = self.pair(out[key], out, self.variants[out.get(VARIANT, 0)])
        return out

    @abstractmethod
    def pair(self, source: torch.Tensor, item: Item, variant: V) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what a network is given and what it has to find, drawn from the source of an item."""

    def seed(self) -> int:
        """Draw a seed below 2^31 from the transform's random state."""
        return int(self.R.randint(2**31))

    def strength(self, item: Item) -> float:
        """Return the strength of an item's draw, from `easiest` to 1."""
        progress = min(1.0, item.get(SAMPLE, self.ramp) / self.ramp) if self.ramp else 1.0
        return self.easiest + (1 - self.easiest) * progress


def plain_tensor(image: torch.Tensor) -> torch.Tensor:
    """Return an image without MONAI's metadata, which cost time in every operation."""
    return image.as_tensor() if isinstance(image, MetaTensor) else image


def spacing_of(image: torch.Tensor) -> torch.Tensor:
    """Return the spacing of an image's voxels, (3,) mm, float32 on the CPU; 1 mm without metadata."""
    spacing = image.pixdim if isinstance(image, MetaTensor) else torch.ones(3)
    return spacing.float().cpu()


def cubic_affine(spacing: float) -> torch.Tensor:
    """Return the affine (4, 4) of cubic voxels of `spacing` mm along RAS+, float64; the first voxel is at 0."""
    return torch.diag(torch.tensor([*[spacing] * 3, 1.0], dtype=torch.float64))
