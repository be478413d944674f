"""How much memory a case takes, and what there is: foreseen before the network runs."""

from __future__ import annotations

import copy
import functools
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SCRATCH = 2.0
"""Memory of a network's run to that of its tensors: libraries copy a layer's input and output into their own order."""
WORKSPACE = 256 * 2**20
"""Bytes that the libraries below hold whatever the size (measured: 200 MiB for windows of 96^3 voxels)."""
HALF = 0.6
"""The same in half precision to float32: sums and normalisations stay float32."""
FALLBACK_CHANNELS = 256
"""Float32 channels of full resolution that a network is taken to need whose run cannot be followed."""
PROGRAM = 700 * 2**20
"""Bytes of Python, torch and MONAI."""


def foreseen(channels: int, weights: int, voxels: int) -> int:
    """A guess, before anything is loaded, of what a process takes that computes `channels` of a grid of `voxels`."""
    return PROGRAM + WORKSPACE + 2 * weights + 4 * voxels * (4 * channels + 4)


@dataclass(frozen=True)
class Footprint:
    """What a network's run on one window takes."""

    peak: int
    """Bytes of all tensors that live at once, in float32, weights and input apart."""
    channels: int
    """Of its answer."""


def footprint(network: torch.nn.Module, shape: tuple[int, ...], channels: int) -> Footprint:
    """Follows the network's tensors for an input of `shape`, (1, C, I, J, K), without computing anything.

    `channels`: of the answer, where it cannot be followed.
    """
    import torch

    try:
        hollow = _hollow(network)
        with torch.no_grad(), _meter() as meter:
            answer = hollow(torch.empty(shape, device="meta"))
        answer = answer[0] if isinstance(answer, list | tuple) else answer
        return Footprint(meter.peak, int(answer.shape[1]))
    except Exception:  # a network may look at values, which are not there
        return Footprint(4 * FALLBACK_CHANNELS * int(torch.Size(shape[2:]).numel()), channels)


def _hollow(network: torch.nn.Module) -> torch.nn.Module:
    """A copy whose parameters have shapes but no values."""
    import torch

    memo: dict[int, Any] = {id(b): torch.empty_like(b, device="meta") for b in network.buffers()}
    for parameter in network.parameters():
        memo[id(parameter)] = torch.nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    return copy.deepcopy(network, memo)


def _meter() -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Meter(TorchDispatchMode):
        """Counts the bytes of storages from when they appear until they are let go."""

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
                gone = functools.partial(self._gone, id(storage), storage.nbytes())
                self.known[id(storage)] = weakref.ref(storage, gone)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)

        def _gone(self, key: int, size: int, reference: Any) -> None:
            del self.known[key]
            self.now -= size

    return Meter()
