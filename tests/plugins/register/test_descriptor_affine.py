"""Affine maps between unlike contrasts, refined by self-similarity descriptors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from maps import off_mm, turned
from medkit_register.affine import AffineResult, AffineSettings
from medkit_register.descriptor_affine import follow_descriptors, rotation_about
from medkit_register.pyramid import Pyramid, ScanVolume
from medkit_register.verdict import register_better

SHAPE = (40, 44, 36)
GRID = np.diag([4.0, 4.0, 4.0, 1.0])
MIDDLE = np.array([78.0, 86.0, 70.0])


def head(truth: np.ndarray, *, unlike: bool = False) -> Pyramid:
    """Return a made-up head with texture, whose points `truth` (4, 4) moves; `unlike`: its dark parts are bright."""
    at = np.stack([*np.meshgrid(*[4.0 * np.arange(n) for n in SHAPE], indexing="ij"), np.ones(SHAPE)], -1)
    x = ((at @ np.linalg.inv(truth).T)[..., :3] - MIDDLE) / np.array([62, 78, 66])
    texture = 500 + 250 * np.sin(5 * x[..., 0] + 1) * np.sin(6 * x[..., 1]) * np.sin(4 * x[..., 2])
    if unlike:
        texture = 300 + 0.8 * np.abs(texture - 550)
    data = np.where((x**2).sum(-1) < 1, texture, 0).astype(np.float32)
    return Pyramid(ScanVolume(torch.from_numpy(data), GRID))


def mapped(scale: float, degrees: float, shift: tuple[float, float, float]) -> np.ndarray:
    """Return the map (4, 4) that scales about MIDDLE, turns about the axis to superior there, and shifts by mm."""
    out = turned(degrees, shift)
    out[:3, :3] *= scale
    out[:3, 3] = MIDDLE + shift - out[:3, :3] @ MIDDLE
    return out


TRUTH = mapped(1.0, 6, (9, -7, 6))


@pytest.mark.parametrize("rigid", [False, True])
@pytest.mark.parametrize(
    "wrong", [(0.8, 6, (9, -7, 6)), (1.2, 6, (9, -7, 6)), (1.0, 0, (14, -7, 2)), (1.0, 6, (9, -7, 6))]
)
def test_from_a_map_nearby_it_comes_to_the_right_one(
    wrong: tuple[float, float, tuple[float, float, float]], rigid: bool
) -> None:
    start = mapped(*wrong)
    start = rotation_about(start, MIDDLE) if rigid else start
    found = follow_descriptors(
        head(np.eye(4)), head(TRUTH, unlike=True), AffineResult(start, "mi", "", ()), rigid=rigid
    )
    assert off_mm(found.matrix, TRUTH) < 2  # half a voxel
    assert found.levels[-1].metric == "mind"
    if rigid:
        assert np.allclose(found.matrix[:3, :3] @ found.matrix[:3, :3].T, np.eye(3))


def test_other_sizes_are_found() -> None:
    truth = mapped(0.85, 4, (3, 2, -4))
    start = AffineResult(mapped(0.9, 0, (0, 0, 0)), "mi", "", ())
    found = follow_descriptors(head(np.eye(4)), head(truth, unlike=True), start, rigid=False)
    assert off_mm(found.matrix, truth) < 3


@pytest.mark.parametrize(
    ("descriptors", "unlike", "used"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_it_follows_mutual_information_where_asked_for(descriptors: bool, unlike: bool, used: bool) -> None:
    settings = AffineSettings("rigid", descriptors=descriptors)
    found = register_better(head(np.eye(4)), head(TRUTH, unlike=unlike), settings)
    assert (found.levels[-1].metric == "mind") == used
    assert off_mm(found.matrix, TRUTH) < 2
