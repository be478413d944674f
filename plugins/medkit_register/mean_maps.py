"""The mean of several maps, and the maps relative to it: so a template favours none of its scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.linalg import expm, logm

from medkit.errors import MedkitError
from medkit_register.deformable import Warp
from medkit_register.inversion import invert
from medkit_register.warp import Lattice, compose, indices

ROUNDS = 30
"""Most steps towards the mean of affine maps; about five are enough."""
EXACT = 1e-9
"""Largest entry of a step that ends the search for the mean."""
TURNED = 1e-3
"""Radians within which a rotation counts as one by 180 degrees: its logarithm may go either way."""


def mean_map(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Return the (4, 4) mean of affine maps: the logarithms of maps @ inverse of the mean sum to zero.

    It does not depend on the frame in which the maps are written (the bi-invariant mean of Arsigny 2006). Raises
    MedkitError if one of them is turned by 180 degrees or mirrored relative to the mean.
    """
    mean = maps[0]
    for _ in range(ROUNDS):
        step = np.mean([logarithm(m @ np.linalg.inv(mean)) for m in maps], axis=0)
        mean = expm(step) @ mean
        if np.abs(step).max() < EXACT:
            break
    return mean


def logarithm(matrix: np.ndarray) -> np.ndarray:
    """Return the real (4, 4) matrix logarithm of an affine map. Raises MedkitError if there is none, or two."""
    turns = np.abs(np.angle(np.linalg.eigvals(matrix[:3, :3])))
    if turns.max() > np.pi - TURNED:
        raise MedkitError("no mean of the scans: one is turned by 180 degrees, or a mirror image of another")
    return np.real(logm(matrix))


def mean_field(warps: Sequence[Warp]) -> torch.Tensor:
    """Return the mean displacement (3, I, J, K), in lattice steps, of warps on one lattice."""
    total = warps[0].forward.clone()
    for warp in warps[1:]:
        total += warp.forward
    return total / len(warps)


def centred(warps: Sequence[Warp]) -> list[Warp]:
    """Return the warps from a space in which their mean is the identity.

    Each is applied after the inverse of their mean displacement. Their `backward` is not updated: see `with_inverse`.
    """
    with torch.inference_mode():
        to_mean = invert(mean_field(warps))
        shape = tuple(to_mean.shape[1:])
        points = indices(shape, to_mean.device).reshape(3, -1)
        everywhere = torch.arange(points.shape[1], device=to_mean.device)
        return [replace(w, forward=compose(w.forward, to_mean, points, everywhere)) for w in warps]


def after_affine(warp: Warp, matrix: np.ndarray) -> Warp:
    """Return the warp applied after the affine map `matrix` (4, 4) RAS+ mm: its values stay, its lattice moves."""
    lattice = Lattice(warp.lattice.shape, np.linalg.inv(matrix) @ warp.lattice.affine)
    return replace(warp, matrix=warp.matrix @ matrix, lattice=lattice)


def with_inverse(warp: Warp) -> Warp:
    """Return the warp with an up-to-date inverse."""
    with torch.inference_mode():
        return replace(warp, backward=invert(warp.forward))
