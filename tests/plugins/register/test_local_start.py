"""A warp between scans in which one part of the body has moved and the rest has not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from medkit_register.affine import AffineSettings
from medkit_register.deformable import Warp, register_deformable
from medkit_register.fields import forward_field
from medkit_register.pyramid import Pyramid, ScanVolume
from medkit_register.verdict import doubts_about_spacing, register_better

from medkit.space import Grid, apply_affine

SHAPE, AFFINE = (44, 56, 40), np.diag([3.0, 3, 3, 1])
WAY = 21.0
"""mm along the third axis by which the organ moves."""


def body(shift: float, step: float = 3.0) -> np.ndarray:
    """Return a scan (I, J, K): a textured organ in front that is `shift` mm higher, and a textured back that stays.

    Slices are `step` mm apart.
    """
    along = (3.0 * np.arange(SHAPE[0]), 3.0 * np.arange(SHAPE[1]), step * np.arange(SHAPE[2]))
    x, y, z = np.meshgrid(*along, indexing="ij")
    outline = ((x - 66) / 60) ** 2 + ((y - 84) / 78) ** 2 < 1
    up = z - shift
    organ = ((x - 66) / 40) ** 2 + ((y - 106) / 40) ** 2 + ((up - 56) / 34) ** 2 < 1
    back = 40 + 25 * np.sin(x / 7) * np.cos(z / 8 + 0.4) + 20 * np.sin(y / 6 + z / 11)
    inner = 130 + 40 * np.sin(x / 8 + 1) * np.cos(y / 9) + 35 * np.sin(up / 7) * np.cos(x / 10)
    values = np.where(organ, inner, np.where(outline, back, 0))
    return values + np.random.default_rng(int(shift)).normal(0, 3, SHAPE)


def pyramid(shift: float) -> Pyramid:
    return Pyramid(ScanVolume(torch.from_numpy(body(shift).astype(np.float32)), AFFINE))


ORGAN = np.array([[66.0, 106, 56], [48, 106, 50], [84, 100, 60], [66, 120, 66], [60, 90, 50]])
BACK = np.array([[66.0, 30, 40], [40, 36, 70], [90, 40, 80], [66, 20, 60], [30, 50, 30]])


def errors(warp: Warp) -> tuple[float, float]:
    """Return the mean distance in mm from where points of the organ and of the back belong."""
    grid = Grid(SHAPE, AFFINE)
    field = forward_field(warp, grid, grid)
    moved = (field.map_points(points) - points - way for points, way in ((ORGAN, (0, 0, WAY)), (BACK, (0, 0, 0))))
    organ, back = (float(np.linalg.norm(m, axis=1).mean()) for m in moved)
    return organ, back


@pytest.fixture(scope="module")
def scans() -> tuple[Pyramid, Pyramid]:
    return pyramid(0.0), pyramid(WAY)


def test_each_part_follows_its_own_map(scans: tuple[Pyramid, Pyramid]) -> None:
    fixed, moving = scans
    lifted = np.eye(4)
    lifted[2, 3] = WAY  # the affine map that fits the organ alone
    plain = register_deformable(fixed, moving, lifted, metric="lncc", quality="fast")
    found = register_deformable(fixed, moving, lifted, metric="lncc", quality="fast", unmoved=np.eye(4))
    assert plain.local is None
    assert found.local is not None
    assert found.local.cost < 0.85 * found.local.affine_cost
    assert 0.1 < found.local.share < 0.9
    np.testing.assert_array_equal(found.matrix, np.eye(4))
    organ, back = errors(found)
    assert organ < 1.5
    assert back < 0.5
    assert errors(plain)[1] > 3 * back


def test_a_body_that_has_moved_as_one_has_no_such_start() -> None:
    fixed, moved = pyramid(0.0), np.eye(4)
    moved[:3, 3] = (18, -12, 15)
    volume = ScanVolume(torch.from_numpy(body(0.0).astype(np.float32)), moved @ AFFINE)
    asked = {"metric": "lncc", "quality": "fast"}
    plain = register_deformable(fixed, Pyramid(volume), moved, **asked)
    found = register_deformable(fixed, Pyramid(volume), moved, **asked, unmoved=np.eye(4))
    assert found.local is None
    assert torch.equal(found.forward, plain.forward)


def test_whether_the_headers_fit(scans: tuple[Pyramid, Pyramid]) -> None:
    fixed, moving = scans
    assert register_better(fixed, moving, AffineSettings(init="header")).headers_fit
    far = np.eye(4)
    far[:3, 3] = (400, 0, 0)
    elsewhere = Pyramid(ScanVolume(torch.from_numpy(body(WAY).astype(np.float32)), far @ AFFINE))
    assert not register_better(fixed, elsewhere, AffineSettings(init="moments")).headers_fit
    assert apply_affine(far, np.zeros((1, 3)))[0, 0] == 400


@pytest.mark.parametrize(("real", "stated"), [(3.0, 3.75), (3.75, 3.75), (3.0, 3.0)])
def test_a_wrong_slice_spacing_is_said(scans: tuple[Pyramid, Pyramid], real: float, stated: float) -> None:
    values = torch.from_numpy(body(WAY, real).astype(np.float32))
    other = Pyramid(ScanVolume(values, np.diag([3.0, 3, stated, 1])))
    for fixed, moving, order in ((scans[0], other, "3 and 3.75 mm"), (other, scans[0], "3.75 and 3 mm")):
        found = list(doubts_about_spacing(fixed, moving))
        assert len(found) == (1 if real != stated else 0)
        assert all(f"44 x 56 x 40 voxels, of the same size but for {order}" in text for text in found)
