"""Warps on a device other than the CPU: a pretended one (see `elsewhere`), for there is no GPU where the tests run."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bends import AFFINE, SHAPE, bent, scan, voxel_points
from elsewhere import DEVICE, Elsewhere, Far
from medkit_register.deformable import Warp, finest_lattice, register_deformable
from medkit_register.fields import backward_field, folding, forward_field
from medkit_register.mean_maps import centred, with_inverse
from medkit_register.midpoint import middle_warp
from medkit_register.network import Start, flow
from medkit_register.pyramid import Pyramid, ScanVolume
from medkit_register.warp import Lattice

from medkit.images.phantom import make_image
from medkit.space import Grid
from medkit.testing import run_medkit

GRID = Grid(SHAPE, AFFINE)
OTHER = Grid((50, 44, 60), AFFINE @ np.array([[1.2, 0.1, 0, 1], [-0.1, 1.3, 0, 2], [0, 0, 1.0, 1], [0, 0, 0, 1]]))


@pytest.fixture
def elsewhere() -> Iterator[None]:
    with Elsewhere():
        yield


def test_the_pretended_device_tells_devices_apart(elsewhere: None) -> None:
    here, there = torch.ones(3), torch.ones(3).to(DEVICE)
    assert isinstance(there, Far)
    assert torch.equal((there + 1).cpu(), here + 1)
    with pytest.raises(RuntimeError, match="one device"):
        here + there
    with pytest.raises(RuntimeError):
        there.numpy()


@functools.cache
def straight() -> ScanVolume:
    return scan(voxel_points(SHAPE, AFFINE), SHAPE, AFFINE)


def pyramids(mask: bool = False) -> tuple[Pyramid, Pyramid]:
    moving = bent()
    if mask:
        kept = torch.ones(SHAPE)
        kept[:12] = 0
        moving = replace(moving, mask=kept)
    return Pyramid(straight()), Pyramid(moving)


def registered(metric: str, device: str, *, mask: bool = False) -> Warp:
    return register_deformable(*pyramids(mask), np.eye(4), metric=metric, quality="default", device=device)


@pytest.mark.parametrize(("metric", "mask"), [("lncc", False), ("mi", False), ("mind", True)])
def test_a_warp_is_the_same_there(metric: str, mask: bool) -> None:
    here = registered(metric, "cpu", mask=mask)
    with Elsewhere():
        there = registered(metric, DEVICE, mask=mask)
        assert isinstance(there.forward, Far)
        fields = [forward_field(there, grid, OTHER).field for grid in (GRID, OTHER)]
        back = backward_field(there, forward_field(there, GRID, OTHER), OTHER).field
        said = folding(there)
    assert float(here.forward.abs().max()) > 1
    for grid, field in zip((GRID, OTHER), fields, strict=True):
        np.testing.assert_allclose(field, forward_field(here, grid, OTHER).field, atol=0.02)
    np.testing.assert_allclose(back, backward_field(here, forward_field(here, GRID, OTHER), OTHER).field, atol=0.02)
    assert said == pytest.approx(folding(here), abs=1e-3)


def test_means_are_made_there() -> None:
    """A middle of two scans and of a group."""
    fixed, moving = pyramids()
    matrix = np.eye(4)
    with Elsewhere():
        there = register_deformable(fixed, moving, matrix, metric="mse", quality="fast", device=DEVICE)
        back = register_deformable(moving, fixed, matrix, metric="mse", quality="fast", device=DEVICE)
        middle = middle_warp(there, back, matrix)
        group = [with_inverse(warp) for warp in centred([there, there])]
        assert isinstance(middle.forward, Far)
        assert float(middle.forward.abs().mean()) > 0.01
        assert all(float(warp.forward.abs().mean()) < 0.01 for warp in group), "two equal ones are their mean"


def test_a_network_start_there(elsewhere: None) -> None:
    fixed, moving = pyramids()
    affine = np.diag([30.0, 30.0, 30.0, 1.0])
    affine[:3, 3] = -120
    starts = []

    def network(*_: object) -> Start:
        with torch.inference_mode():
            starts.append(Start(Lattice((8, 8, 8), affine), flow(torch.full((3, 8, 8, 8), 0.5).to(DEVICE))))
        return starts[-1]

    warp = register_deformable(
        fixed, moving, np.eye(4), metric="mse", quality="fast", device=DEVICE, network=network  # type: ignore[arg-type]
    )  # fmt: skip
    assert warp.start is not None
    assert isinstance(starts[0].on(finest_lattice(fixed)), Far)


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    fixed = make_image(tmp_path / "fixed.nii.gz", (12, 12, 12), (1.0, 1.0, 1.0))
    done = run_medkit(["run", "register", "--fixed", str(fixed), str(fixed), "--device", "cuda:7", "-o", str(tmp_path)])
    assert done.returncode == 2
    assert "--device cuda:7: there are" in done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_warp_is_the_same_on_a_gpu() -> None:
    here, there = registered("lncc", "cpu"), registered("lncc", "cuda")
    np.testing.assert_allclose(there.forward.cpu(), here.forward, atol=0.05)
