"""A classifier of images together with facts, for train and inference configs.

MONAI's evaluators, like all code that runs bundles, pass one tensor to a network. Therefore the row of facts of a case
(`medkit_classify.facts`) is stored in an additional channel of its image, from the first voxel on, and the network
separates the two again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from medkit_classify.facts import Facts, given_of


def packed(images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Join (N, C, I, J[, K]) images and (N, L) rows to (N, C + 1, I, J[, K]).

    Raises ValueError if a row does not fit into a channel.
    """
    voxels = math.prod(images.shape[2:])
    if rows.shape[1] > voxels:
        raise ValueError(f"{rows.shape[1]} numbers of features and words do not fit into a channel of {voxels} voxels")
    plane = torch.zeros(len(images), voxels, dtype=images.dtype, device=images.device)
    plane[:, : rows.shape[1]] = rows.to(images)
    return torch.cat([images, plane.reshape(len(images), 1, *images.shape[2:])], 1)


class AddContext:
    """The last step of a preprocessing: adds an item's `features` and `text` to its image as a channel.

    Facts that the item does not hold count as missing.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        item = dict(data)
        facts: dict[str, Any] = {key: item.pop(key) for key in ("features", "text") if key in item}
        row = torch.from_numpy(self.facts.row(given_of(facts)))
        item["image"] = packed(item["image"][None], row[None])[0]
        return item


class ContextBatch:
    """MONAI's `prepare_batch` for batches with rows of facts under `context`.

    Args:
        facts: what the rows hold.
        images: the `prepare_batch` of the images, such as `medkit.training.AugmentedBatch`; None changes nothing.
        absent: share of the features, and of the texts, that are removed at random, so that the network learns to do
            without them.

    Returns images with their facts, (N, C + 1, I, J[, K]), and targets. Raises ValueError if `images` mixes images
    (mixup), because words cannot be mixed.
    """

    def __init__(self, facts: Facts, images: Callable[..., Any] | None = None, absent: float = 0.0) -> None:
        if getattr(getattr(images, "changes", None), "mixup", 0):
            raise ValueError("ContextBatch: words cannot be mixed: expected changes with mixup 0")
        self.facts, self.images, self.absent = facts, images, absent

    def __call__(
        self, batch: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = batch["context"].to(device, non_blocking=non_blocking)
        if self.images is not None:
            images, targets = self.images(batch, device, non_blocking)
        else:
            images, targets = (batch[key].to(device, non_blocking=non_blocking) for key in ("image", "label"))
        return packed(images, self._thinned(rows) if self.absent else rows), targets

    def _thinned(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows without a random share of features and texts."""
        rows, count = rows.clone(), len(self.facts.features)
        missing = torch.rand(len(rows), count, device=rows.device) < self.absent
        rows[:, :count] = rows[:, :count].masked_fill(missing, 0)
        rows[:, count : 2 * count] = rows[:, count : 2 * count].masked_fill(missing, 1)
        wordless = torch.rand(len(rows), 1, device=rows.device) < self.absent
        rows[:, self.facts.numbers :] = rows[:, self.facts.numbers :].masked_fill(wordless, 0)
        return rows


class TextEncoder(nn.Module):
    """Word embeddings and a recurrent network (GRU, Cho et al. 2014) over them.

    Takes (N, L) numbers of words, 0 for no word. Returns the state after the last word, (N, hidden); 0 without words.
    """

    def __init__(self, words: int, width: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width, padding_idx=0)
        self.recurrent = nn.GRU(width, hidden, batch_first=True)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """(N, L) numbers of words -> (N, hidden)."""
        states = self.recurrent(self.embedding(words))[0]
        count = (words > 0).sum(1)
        last = (count - 1).clamp(min=0).reshape(-1, 1, 1).expand(-1, 1, states.shape[2])
        return states.gather(1, last).squeeze(1) * (count > 0).unsqueeze(1).to(states.dtype)


class Fused(nn.Module):
    """A classifier that encodes image, features and text as vectors and joins them before the classes.

    Args:
        encoder, pool: together from the image, (N, C, I, J[, K]), to (N, channels, 1, 1[, 1]).
        channels: length of the image's vector.
        classes: number of classes.
        facts: what the bundle reads besides the image.
        width: length of the features' vector, and of a word's.
        hidden: length of the text's vector, and of the joint one.
        dropout: share of the joint values that are dropped in training.
        image_channels: number of the image's channels; one more holds the facts.
    """

    def __init__(
        self,
        encoder: nn.Module,
        pool: nn.Module,
        channels: int,
        classes: int,
        facts: Facts,
        width: int = 16,
        hidden: int = 32,
        dropout: float = 0.3,
        image_channels: int = 1,
    ) -> None:
        super().__init__()
        self.image_channels, self.numbers, self.size = image_channels, facts.numbers, facts.size
        self.words = len(facts.words) + 2  # no word, and an unknown one
        self.encoder, self.pool = encoder, pool
        self.values = nn.Sequential(nn.Linear(facts.numbers, width), nn.ReLU())
        self.reader = TextEncoder(self.words, width, hidden)
        self.joint = nn.Sequential(
            nn.Linear(channels + width + hidden, 2 * hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(2 * hidden, hidden), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, image_channels + 1, I, J[, K]) -> (N, classes) logits."""
        image = self.pool(self.encoder(x[:, : self.image_channels])).flatten(1)
        row = x[:, self.image_channels :].flatten(1)[:, : self.size]
        words = row[:, self.numbers :].round().long().clamp(0, self.words - 1)
        vectors = [image, self.values(row[:, : self.numbers]).to(image), self.reader(words).to(image)]
        return self.head(self.joint(torch.cat(vectors, 1)))
