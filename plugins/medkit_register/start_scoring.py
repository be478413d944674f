"""Many maps scored at little cost: mutual information of points and their nearest neighbours in the moving scan."""

from __future__ import annotations

import numpy as np
import torch

from medkit_register.problem import Problem
from medkit_register.similarity import to_bins

BINS = 16
"""Bins of each scan's intensities."""
BATCH = 64
"""Maps scored at once: on a busy machine few large operations are faster than many small ones."""
MIN_OVERLAP = 0.5
"""Maps with less than this share of the largest overlap do not count: a small overlap matches well by chance."""


class StartScores:
    """The two scans of a problem as intensity bins, against which maps are scored."""

    def __init__(self, problem: Problem) -> None:
        target = problem.target
        size = torch.tensor(target.channels.shape[2:])
        moving = to_bins(target.channels[0, 0], BINS).round_()
        if target.channels.shape[1] > 4:
            moving[target.channels[0, 4] < 0.5] = BINS
        # one more layer on each side: outside (bin BINS) at open faces, the border repeated at closed ones
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
        """Return the mutual information (K,), in nats, at local maps (K, 3, 4), from about `count` evenly drawn points.

        It is -inf where the overlap is under MIN_OVERLAP of the largest.
        """
        index = self._index_from_local
        whole = index[:3, :3] @ maps
        whole[:, :, 3] += index[:3, 3] + 1  # the added layer
        rows = torch.from_numpy(whole.astype(np.float32))
        every = max(1, self._points.shape[1] // count)
        points, fixed = self._points[:, ::every].contiguous(), self._fixed[::every]
        found, overlaps = [], []
        for batch in rows.split(BATCH):
            joint = self._counts(batch, points, fixed)[:, :, :BINS]
            found.append(information(joint))
            overlaps.append(joint.sum((1, 2)))
        value, overlap = torch.cat(found).numpy(), torch.cat(overlaps).numpy()
        value[overlap < MIN_OVERLAP * overlap.max()] = -np.inf
        return value

    def _counts(self, rows: torch.Tensor, points: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        """Return counts (K, BINS, BINS + 1) of points by their bins in both scans; the last column is outside."""
        at = (rows @ points).round_()
        offset = torch.zeros(at.shape[0], at.shape[2])
        for axis in range(3):
            offset.add_(at[:, axis].clamp_(0, float(self._size[axis]) + 1), alpha=self._strides[axis])
        table = torch.arange(len(rows), dtype=torch.int32)[:, None] * (BINS * (BINS + 1))
        index = self._moving[offset.int()].add_(fixed).add_(table)
        counts = torch.bincount(index.reshape(-1), minlength=len(rows) * BINS * (BINS + 1))
        return counts.reshape(-1, BINS, BINS + 1).double()


def information(joint: torch.Tensor) -> torch.Tensor:
    """Return the mutual information (K,), in nats, of tables of counts (K, B, B)."""
    p = joint / joint.sum((1, 2), keepdim=True).clamp_min(1e-9)
    entropy = torch.special.entr
    return entropy(p.sum(1)).sum(1) + entropy(p.sum(2)).sum(1) - entropy(p).sum((1, 2))
