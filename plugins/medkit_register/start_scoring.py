"""Many maps scored at little cost: mutual information of single points and their nearest counterparts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medkit_register.similarity import to_bins

if TYPE_CHECKING:
    import torch

    from medkit_register.problem import Problem

BINS = 16
BATCH = 64
"""Maps scored in one go: few large operations stand a busy machine better than many small ones."""
LEAST = 0.5
"""Maps under this share of the best one's overlap do not count: little that is common is easily alike."""


class StartScores:
    """A problem's two scans as numbers of intensity bins."""

    def __init__(self, problem: Problem) -> None:
        import torch

        target = problem.target
        size = torch.tensor(target.channels.shape[2:])
        moving = to_bins(target.channels[0, 0], BINS).round_()
        if target.channels.shape[1] > 4:
            moving[target.channels[0, 4] < 0.5] = BINS
        # beyond open faces lies one layer of nothing, beyond closed ones one more of the border
        moving = torch.nn.functional.pad(moving[None, None], (1,) * 6, mode="replicate")[0, 0]
        for axis in range(3):
            for end, limit in ((0, target.low[axis]), (-1, target.high[axis])):
                if np.isfinite(limit):
                    moving.select(axis, end).fill_(BINS)
        self._moving = moving.int().reshape(-1)
        self._size = size.float()
        self._strides = [float(s) for s in moving.stride()]
        self._index_from_local = target.index_from_local
        kept = problem.samples.weights > 0.5
        self._points = problem.samples.points[:, kept]
        self._fixed = to_bins(problem.samples.values[kept], BINS).round_().int() * (BINS + 1)

    def scores(self, maps: np.ndarray, count: int) -> np.ndarray:
        """(K,) mutual information (nats) at local maps (K, 3, 4), of about `count` points, evenly drawn.

        -inf where the overlap is under LEAST of the best.
        """
        import torch

        index = self._index_from_local
        whole = index[:3, :3] @ maps
        whole[:, :, 3] += index[:3, 3] + 1  # the layer around
        rows = torch.from_numpy(whole.astype(np.float32))
        every = max(1, self._points.shape[1] // count)
        points, fixed = self._points[:, ::every].contiguous(), self._fixed[::every]
        found, overlaps = [], []
        for batch in rows.split(BATCH):
            joint = self._counts(batch, points, fixed)[:, :, :BINS]
            found.append(information(joint))
            overlaps.append(joint.sum((1, 2)))
        value, overlap = torch.cat(found).numpy(), torch.cat(overlaps).numpy()
        value[overlap < LEAST * overlap.max()] = -np.inf
        return value

    def _counts(self, rows: torch.Tensor, points: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """(K, BINS, BINS + 1) points by their bins in both scans, the last column outside; `rows` (K, 3, 4)."""
        import torch

        at = (rows @ points).round_()
        offset = torch.zeros(at.shape[0], at.shape[2])
        for axis in range(3):
            offset.add_(at[:, axis].clamp_(0, float(self._size[axis]) + 1), alpha=self._strides[axis])
        table = torch.arange(len(rows), dtype=torch.int32)[:, None] * (BINS * (BINS + 1))
        index = self._moving[offset.int()].add_(fixed).add_(table)
        counts = torch.bincount(index.reshape(-1), minlength=len(rows) * BINS * (BINS + 1))
        return counts.reshape(-1, BINS, BINS + 1).double()


def information(joint: torch.Tensor) -> torch.Tensor:
    """(K,) mutual information (nats) of tables of counts (K, B, B)."""
    import torch

    p = joint / joint.sum((1, 2), keepdim=True).clamp_min(1e-9)
    entropy = torch.special.entr
    return entropy(p.sum(1)).sum(1) + entropy(p.sum(2)).sum(1) - entropy(p).sum((1, 2))
