"""nnU-Net's sliding window: evenly spaced windows, Gaussian weights, mirrored views, the mean over all folds."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer

from medkit.terminal.progress import counted

PEAK = 10.0
"""Weight at a window's centre: a larger one than 1 keeps small weights exact in half precision."""


class NnunetInferer(Inferer):
    """Predict window by window as nnU-Net's predictor does, with the same windows, weights and roundings.

    Logits are summed in half precision, as there, unless they are too large for it. A window of two axes is that of a
    network of slices, which lie along the image's first axis.
    """

    sw_batch_size = 1

    def __init__(self, roi_size: Sequence[int], step: float = 0.5, mirror_axes: Sequence[int] = ()) -> None:
        """Take the size of windows in voxels, their distance as a share of it, and the window's axes to mirror."""
        super().__init__()
        self.roi_size, self.step, self.mirror_axes = tuple(roi_size), step, tuple(mirror_axes or ())
        if len(self.roi_size) == 2:
            self.spatial_dim = 0

    @torch.no_grad()
    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *_: Any, **__: Any) -> torch.Tensor:
        """Return logits (N, heads, I, J, K) in half precision for images (N, C, I, J, K); no fold goes over them twice.

        Raises ValueError for logits that are not finite.
        """
        folds = list(getattr(network, "networks", [network]))
        answers = [self._mean(image, folds) for image in _plain(inputs)]
        if len(answers) == 1:
            return answers[0][None]
        batch = answers[0].new_empty((len(answers), *answers[0].shape))  # autocast has no stack for half precision
        for row, answer in zip(batch, answers, strict=True):
            row.copy_(answer)
        return batch

    def bytes_per_voxel(self, heads: int, folds: int) -> int:
        """Return the memory that a voxel of the image takes while windows are put together."""
        return 2 * heads * min(folds, 2) + 2

    def _mean(self, image: torch.Tensor, folds: Sequence[Callable[..., Any]]) -> torch.Tensor:
        total = self._logits(image, folds[0])
        for fold in folds[1:]:
            total += self._logits(image, fold)
        return total.div_(len(folds)) if len(folds) > 1 else total

    def _logits(self, image: torch.Tensor, network: Callable[..., Any]) -> torch.Tensor:
        """Return the logits of one fold, (heads, I, J, K), for an image (C, I, J, K)."""
        padded, inner = _padded(image, self.roi_size)
        for kind in (torch.float16, torch.float32):
            found = self._stitched(padded, network, kind)
            if all(bool(head.isfinite().all()) for head in found):
                return found[(slice(None), *inner)]
        raise ValueError("the network returns values that are not finite")

    def _stitched(self, image: torch.Tensor, network: Callable[..., Any], kind: torch.dtype) -> torch.Tensor:
        weights = gaussian_weights(self.roi_size).to(image.device)
        total: Any = None
        counts = torch.zeros(image.shape[1:], dtype=kind, device=image.device)
        for window in counted(list(_windows(tuple(image.shape[1:]), self.roi_size, self.step)), "windows"):
            place = (slice(None), *window)
            answer = self._views(image[place][None].contiguous(), network)[0] * weights
            if total is None:
                total = torch.zeros((len(answer), *image.shape[1:]), dtype=kind, device=image.device)
            total[place] += answer
            counts[window] += weights
        stitched: torch.Tensor = total.div_(counts)
        return stitched

    def _views(self, window: torch.Tensor, network: Callable[..., Any]) -> torch.Tensor:
        """Return the mean answer to a window (1, C, ...) and its mirror images."""
        axes = [axis + 2 for axis in self.mirror_axes]
        views = [c for n in range(len(axes)) for c in itertools.combinations(axes, n + 1)]
        answer: torch.Tensor = network(window)
        for view in views:
            answer = answer + network(window.flip(view)).flip(view)
        return answer / (len(views) + 1) if views else answer


@functools.lru_cache(maxsize=2)
def gaussian_weights(size: tuple[int, ...]) -> torch.Tensor:
    """Return the weights of a window's voxels in half precision: a Gaussian of an eighth of its size about its centre.

    Weights that half precision cannot hold are the smallest of the others.
    """
    from scipy.ndimage import gaussian_filter

    point = np.zeros(size)
    point[tuple(n // 2 for n in size)] = 1
    blurred = gaussian_filter(point, [n / 8 for n in size], 0, mode="constant", cval=0)
    weights = torch.from_numpy(blurred / (blurred.max() / PEAK)).half()
    weights[weights == 0] = weights[weights > 0].min()
    return weights


def window_starts(size: int, window: int, step: float) -> list[int]:
    """Return the first voxels of the windows along an axis: evenly spaced, from one border to the other."""
    count = int(np.ceil((size - window) / (window * step))) + 1
    return [int(np.round((size - window) / (count - 1) * n)) for n in range(count)] if count > 1 else [0]


def _windows(shape: tuple[int, ...], roi: tuple[int, ...], step: float) -> Iterator[tuple[int | slice, ...]]:
    """Yield the place of each window in an image of `shape`; of slices, if the window has fewer axes."""
    flat = len(shape) - len(roi)
    starts = [range(n) for n in shape[:flat]]
    sides = [window_starts(n, w, step) for n, w in zip(shape[flat:], roi, strict=True)]
    for place in itertools.product(*starts, *sides):
        yield (*place[:flat], *(slice(first, first + w) for first, w in zip(place[flat:], roi, strict=True)))


def _padded(image: torch.Tensor, roi: tuple[int, ...]) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """Return an image (C, ...) with zeros around it up to the window's size, and the place of the image in it."""
    sizes = tuple(image.shape[1:])
    missing = [0] * (len(sizes) - len(roi)) + [max(w - n, 0) for n, w in zip(sizes[-len(roi) :], roi, strict=True)]
    pads = [side for more in reversed(missing) for side in (more // 2, more - more // 2)]
    inner = tuple(slice(more // 2, more // 2 + n) for more, n in zip(missing, sizes, strict=True))
    return (torch.nn.functional.pad(image, pads) if any(pads) else image), inner


def _plain(image: torch.Tensor) -> torch.Tensor:
    return image.as_tensor() if hasattr(image, "as_tensor") else image
