"""A scan under a known smooth warp."""

from __future__ import annotations

import functools

import numpy as np
import torch
from medkit_register.deformable import Warp
from medkit_register.fields import forward_field
from medkit_register.pyramid import ScanVolume

from medkit.space import Grid

SHAPE = (56, 64, 52)

RADII = np.array([42.0, 50.0, 38.0])
AFFINE = np.array([[-2.0, 0, 0, 60], [0, 2.0, 0, -70], [0, 0, 2.0, -40], [0, 0, 0, 1]])
CENTRE = (AFFINE @ [*((np.array(SHAPE) - 1) / 2), 1])[:3]


def bend(points: np.ndarray, size: float = 1.0) -> np.ndarray:
    """Return where the true warp maps fixed points (N, 3), RAS+ mm: up to about 5 mm away, smooth, one to one."""
    x, y, z = ((points - CENTRE) / RADII).T
    fade = np.exp(-1.5 * (x**2 + y**2 + z**2))[:, None]
    waves = np.stack([np.sin(2.5 * y) + 0.6 * z, np.cos(2.2 * z) - np.sin(2 * x), np.sin(2.4 * x + 1) * np.cos(y)], 1)
    return points + size * 4.0 * fade * waves


def organ(points: np.ndarray, *, inverted: bool = False) -> np.ndarray:
    """Return the intensity (N,) of a simulated organ at points (N, 3)."""
    draw = np.random.default_rng(4)
    points = points.astype(np.float32)
    value = np.full(len(points), 70, np.float32)
    for _ in range(250):
        where, size, height = draw.uniform(-0.9, 0.9, 3) * RADII, draw.uniform(3, 6), draw.uniform(-60, 70)
        offset = points - np.float32(CENTRE + where)
        value += np.float32(height) * np.exp((offset**2).sum(1) * np.float32(-0.5 / size**2))
    if inverted:
        value = 230 - value
    rim = 1 / (1 + np.exp(30 * (np.linalg.norm((points - CENTRE) / RADII, axis=1) - 1)))
    return np.clip(value, 5, None) * rim


def inverse_of_bend(points: np.ndarray) -> np.ndarray:
    found = points.copy()
    for _ in range(30):
        found = found - (bend(found) - points)
    return found


def voxel_points(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1).reshape(-1, 3)
    return grid @ affine[:3, :3].T + affine[:3, 3]


def scan(points: np.ndarray, shape: tuple[int, int, int], affine: np.ndarray, **looks: bool) -> ScanVolume:
    return ScanVolume(torch.from_numpy(organ(points, **looks).reshape(shape).astype(np.float32)), affine)


@functools.cache
def bent(**looks: bool) -> ScanVolume:
    """Return the moving scan: the organ where `bend` moves it."""
    return scan(inverse_of_bend(voxel_points(SHAPE, AFFINE)), SHAPE, AFFINE, **looks)


def inner_points(count: int = 2000) -> np.ndarray:
    """Return points (N, 3) well inside the fixed organ."""
    draw = np.random.default_rng(0).normal(size=(count, 3))
    draw *= (
        0.75
        * np.random.default_rng(1).uniform(size=(count, 1)) ** (1 / 3)
        / np.linalg.norm(draw, axis=1, keepdims=True)
    )
    return CENTRE + draw * RADII


def errors(warp: Warp) -> np.ndarray:
    """Return the distances (N,) in mm between inner points as mapped by a warp and by the true one."""
    points = inner_points()
    field = forward_field(warp, Grid(SHAPE, AFFINE), Grid(SHAPE, AFFINE))
    return np.linalg.norm(field.map_points(points) - bend(points), axis=1)
