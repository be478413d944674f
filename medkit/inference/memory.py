"""How much memory a case takes, estimated before the network runs."""

from __future__ import annotations

import copy
import functools
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SCRATCH = 2.0
"""Ratio of a run's memory to that of its tensors: libraries copy a layer's input and output into their own layout."""
WORKSPACE = 256 * 2**20
"""Bytes that libraries take for any size of image (measured: 200 MiB for windows of 96^3 voxels)."""
HALF = 0.6
"""Ratio of a run's memory in half precision to that in float32: sums and normalisations stay float32."""
FALLBACK_CHANNELS = 256
"""Float32 channels at full resolution that a network is assumed to need if its run cannot be followed."""
PROGRAM = 700 * 2**20
"""Bytes that Python, torch and MONAI take."""


def rough_estimate(channels: int, weights: int, voxels: int) -> int:
    """Return roughly how many bytes a process takes, before anything is loaded.

    `channels`: of the network's answer; `weights`: bytes of the weight files; `voxels`: of the case's grid.
    """
    return PROGRAM + WORKSPACE + 2 * weights + 4 * voxels * (4 * channels + 4)


@dataclass(frozen=True)
class Footprint:
    """Memory that a network's run on one window takes."""

    peak: int
    """Largest number of bytes of tensors at one time, in float32, without weights and input."""
    channels: int
    """Number of channels of the network's answer."""


def footprint(network: torch.nn.Module, shape: tuple[int, ...], channels: int) -> Footprint:
    """Follow the sizes of the network's tensors for an input of `shape`, (1, C, I, J, K), without computing anything.

    `channels` is the number of channels of the answer, used if the network cannot be followed.
    """
    import torch

    try:
        empty = _without_values(network)
        with torch.no_grad(), _meter() as meter:
            answer = empty(torch.empty(shape, device="meta"))
        answer = answer[0] if isinstance(answer, list | tuple) else answer
        return Footprint(meter.peak, int(answer.shape[1]))
    except Exception:  # a network may look at values, which do not exist here
        return Footprint(4 * FALLBACK_CHANNELS * int(torch.Size(shape[2:]).numel()), channels)


def _without_values(network: torch.nn.Module) -> torch.nn.Module:
    """Return a copy whose parameters have shapes but no values."""
    import torch

    memo: dict[int, Any] = {id(b): torch.empty_like(b, device="meta") for b in network.buffers()}
    for parameter in network.parameters():
        memo[id(parameter)] = torch.nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    return copy.deepcopy(network, memo)


def _meter() -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Meter(TorchDispatchMode):
        """Count the bytes of storages from when they appear until they are released."""

        def __init__(self) -> None:
            super().__init__()
            self.now = self.peak = 0
            self.known: dict[int, Any] = {}

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            for value in tree_leaves(made):
                if hasattr(value, "untyped_storage"):
                    self._count(value.untyped_storage())
            return made

        def _count(self, storage: Any) -> None:
            if id(storage) not in self.known:
                released = functools.partial(self._release, id(storage), storage.nbytes())
                self.known[id(storage)] = weakref.ref(storage, released)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)

        def _release(self, key: int, size: int, reference: Any) -> None:
            del self.known[key]
            self.now -= size

    return Meter()
