"""Where to begin: many rotations and positions tried on a coarse level."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from medkit_register.optimise import rotation

if TYPE_CHECKING:
    import torch

    from medkit_register.frames import Frames
    from medkit_register.problem import Problem

ANGLES = np.deg2rad([-60.0, -30.0, 0.0, 30.0, 60.0])
"""Rotations tried about each axis (planar: all the way round); the optimiser makes up the rest."""
BATCH = 64
"""Maps scored in one go: few large operations stand a busy machine better than many small ones."""
POINTS = 2000
"""Sample points for a trial: enough to rank rotations."""
SHIFT = 0.4
"""Centres of mass are tried as they are and this share of the radius apart: one scan may show more of the neck."""
SCALES = (0.85, 1.0)
"""Sizes tried beside the ratio of the radii: the skull makes a head wider than the same brain without it."""
KEPT = 12
"""Starts that the optimiser follows."""


def search(problem: Problem, frames: Frames, init: str | np.ndarray, *, scaled: bool, planar: bool) -> list[np.ndarray]:
    """Local maps (3, 4) to start from, the most promising first; a single one unless `init` is "auto"."""
    header = frames.to_local(np.eye(4))
    centre = frames.to_local(translation(frames.middles[1] - frames.middles[0]))
    if not isinstance(init, str):
        return [in_plane(frames.to_local(init), planar)]
    if init != "auto":
        return [in_plane({"moments": np.eye(3, 4), "header": header, "centre": centre}[init], planar)]
    ratio = frames.radii[1] / frames.radii[0]
    scales = sorted({*SCALES, ratio}) if scaled else [1.0]
    maps = np.stack(
        [in_plane(m, planar) for m in (header, centre)] + turned(scales, SHIFT * frames.radii[0], planar=planar)
    )
    value = scores(thinned(problem, POINTS), maps)
    order = np.argsort(-value, kind="stable")
    # the header is right more often than any other single start: it is always followed
    return apart(maps, np.concatenate([[0], order]), KEPT, frames.radii[0])


def translation(shift: np.ndarray) -> np.ndarray:
    """(4, 4) that moves by `shift` mm."""
    out = np.eye(4)
    out[:3, 3] = shift
    return out


def in_plane(mapping: np.ndarray, planar: bool) -> np.ndarray:
    """The map without any part across the plane of a planar scan."""
    if not planar:
        return mapping
    out = np.eye(3, 4)
    out[:2, :2], out[:2, 3] = mapping[:2, :2], mapping[:2, 3]
    return out


def turned(scales: list[float], shift: float, *, planar: bool) -> list[np.ndarray]:
    """Maps (3, 4) about the centres of mass: every rotation and scale, in place and `shift` mm along each axis."""
    axes = np.eye(3)[: 2 if planar else 3]
    if planar:
        turns = [rotation(np.array([0, 0, angle])) for angle in np.deg2rad(np.arange(-180, 180, 15))]
    else:
        turns = [
            rotation(c * axes[2]) @ rotation(b * axes[1]) @ rotation(a * axes[0])
            for a, b, c in itertools.product(ANGLES, repeat=3)
        ]
    linear = [np.diag([s, s, 1.0 if planar else s]) @ turn for turn in turns for s in scales]
    shifts = [np.zeros(3), *(shift * axes), *(-shift * axes)]
    return [np.hstack([m, (m @ t)[:, None]]) for m in linear for t in shifts]


def thinned(problem: Problem, count: int) -> Problem:
    """The problem with about `count` of its points, evenly drawn."""
    from medkit_register.problem import CHUNKS

    samples = problem.samples
    size = samples.points.shape[1] // CHUNKS * CHUNKS
    keep = slice(0, size, max(1, size // count)) if size > count else slice(0, size)
    points, values, weights = samples.points[:, keep], samples.values[keep], samples.weights[keep]
    even = points.shape[1] // CHUNKS * CHUNKS
    return replace(
        problem, samples=replace(samples, points=points[:, :even], values=values[:even], weights=weights[:even])
    )


def scores(problem: Problem, maps: np.ndarray, bins: int = 16) -> np.ndarray:
    """(K,) mutual information at each map, (K, 3, 4), with hard bins; -inf where under half of the best overlap."""
    import torch

    from medkit_register.similarity import to_bins

    f = to_bins(problem.samples.values, bins).round_().long() * bins
    out, overlaps = [], []
    for batch in np.array_split(maps, max(1, len(maps) // BATCH)):
        m, weights = problem.look_up(batch)
        table = torch.arange(len(batch))[:, None] * bins**2
        index = table + f + to_bins(m, bins).round_().long()
        joint = torch.bincount(index.reshape(-1), weights.reshape(-1), len(batch) * bins**2)
        out.append(information(joint.reshape(-1, bins, bins).double()))
        overlaps.append(weights.sum(1))
    result, overlap = torch.cat(out).numpy(), torch.cat(overlaps).numpy()
    result[overlap < 0.5 * overlap.max()] = -np.inf
    return result


def information(joint: torch.Tensor) -> torch.Tensor:
    """(K,) mutual information (nats) of tables of counts (K, B, B)."""
    import torch

    p = joint / joint.sum((1, 2), keepdim=True).clamp_min(1e-9)
    entropy = torch.special.entr
    return entropy(p.sum(1)).sum(1) + entropy(p.sum(2)).sum(1) - entropy(p).sum((1, 2))


def apart(maps: np.ndarray, order: np.ndarray, count: int, radius: float) -> list[np.ndarray]:
    """The first `count` maps in `order` that differ from one another by 15 degrees or a quarter of the radius (mm)."""
    chosen: list[np.ndarray] = []
    for index in order:
        changes = [np.abs(maps[index] - other) for other in chosen]
        if all(np.linalg.norm(c[:, :3]) > 0.35 or np.linalg.norm(c[:, 3]) > radius / 4 for c in changes):
            chosen.append(maps[index])
        if len(chosen) == count:
            break
    return chosen
