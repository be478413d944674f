"""The mean of several maps, and maps seen from it: what makes a template favour none of its scans."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from medkit.errors import MedkitError
from medkit_register.warp import Lattice, compose, indices, invert

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from medkit_register.deformable import Warp

ROUNDS = 30
"""Steps towards the mean of affine maps at most; it takes about five."""
EXACT = 1e-9
"""Largest entry of the last step."""
TURNED = 1e-3
"""Radians within which a turn is one by 180 degrees: its logarithm may go either way."""


def mean_map(maps: Sequence[np.ndarray]) -> np.ndarray:
    """The (4, 4) mean of affine maps: the logarithms of what is left of each, maps @ inverse of the mean, sum to zero.

    The same whatever frame the maps are written in (the bi-invariant mean of Arsigny 2006). Raises MedkitError where
    two of them are turned by 180 degrees or mirrored.
    """
    from scipy.linalg import expm

    mean = maps[0]
    for _ in range(ROUNDS):
        step = np.mean([logarithm(m @ np.linalg.inv(mean)) for m in maps], axis=0)
        mean = expm(step) @ mean
        if np.abs(step).max() < EXACT:
            break
    return mean


def logarithm(matrix: np.ndarray) -> np.ndarray:
    """(4, 4) real matrix logarithm of an affine map. Raises MedkitError where there is none or two."""
    from scipy.linalg import logm

    turns = np.abs(np.angle(np.linalg.eigvals(matrix[:3, :3])))
    if turns.max() > np.pi - TURNED:
        raise MedkitError("no mean of the scans: one is turned by 180 degrees, or a mirror image of another")
    return np.real(logm(matrix))


def mean_field(warps: Sequence[Warp]) -> torch.Tensor:
    """(3, I, J, K) mean displacement in lattice steps; the warps have one lattice."""
    total = warps[0].forward.clone()
    for warp in warps[1:]:
        total += warp.forward
    return total / len(warps)


def centred(warps: Sequence[Warp]) -> list[Warp]:
    """The warps from a space in which their mean is the identity: each after the inverse of their mean displacement.

    Their `backward` is not brought along: see `with_inverse`.
    """
    import torch

    with torch.inference_mode():
        to_mean = invert(mean_field(warps))
        shape = tuple(to_mean.shape[1:])
        points = indices(shape, to_mean.device).reshape(3, -1)
        everywhere = torch.arange(points.shape[1], device=to_mean.device)
        return [replace(w, forward=compose(w.forward, to_mean, points, everywhere)) for w in warps]


def seen_from(warp: Warp, matrix: np.ndarray) -> Warp:
    """The warp after the affine map `matrix` (4, 4): its values stay, its lattice comes along."""
    lattice = Lattice(warp.lattice.shape, np.linalg.inv(matrix) @ warp.lattice.affine)
    return replace(warp, matrix=warp.matrix @ matrix, lattice=lattice)


def with_inverse(warp: Warp) -> Warp:
    """The warp with the inverse of its displacements."""
    import torch

    with torch.inference_mode():
        return replace(warp, backward=invert(warp.forward))
