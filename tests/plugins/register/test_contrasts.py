"""Whether two scans have like contrasts, and what is doubtful where they have not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from medkit_register.affine import AffineSettings, register_affine
from medkit_register.pyramid import Pyramid, ScanVolume
from medkit_register.verdict import register_better

SHAPE = (56, 60, 52)
GRID = np.diag([4.0, 4.0, 4.0, 1.0])
BRAIN, SKULL, HEAD = 0.85, 0.95, 1.0


def radii() -> np.ndarray:
    """The distance of each voxel from the middle of a head, 1 at its surface."""
    at = np.stack(np.meshgrid(*[4.0 * np.arange(n) for n in SHAPE], indexing="ij"), -1)
    out: np.ndarray = np.sqrt((((at - [110, 118, 102]) / [88, 96, 84]) ** 2).sum(-1))
    return out


def texture() -> np.ndarray:
    """Smooth structures, from 0 to 1."""
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"), -1)
    waves = np.sin(7 * x[..., 0] + 1) * np.sin(8 * x[..., 1]) * np.sin(6 * x[..., 2])
    out: np.ndarray = 0.5 + 0.5 * waves
    return out


def scan(brain: np.ndarray, *, scalp: float = 800.0, whole: bool = True, noise: float = 8.0) -> Pyramid:
    """A head with a scalp, a dark skull and a brain of the given values 0 to 1; not `whole`: the brain alone."""
    r = radii()
    values = np.where(r < BRAIN, 150 + 600 * brain, np.where(r < SKULL, 60, np.where(r < HEAD, scalp, 0)))
    values = values + np.random.default_rng(0).normal(0, noise, SHAPE)
    kept = values.clip(1) if whole else np.where(r < BRAIN, values, 0)
    return Pyramid(ScanVolume(torch.from_numpy(kept.astype(np.float32)), GRID))


@pytest.mark.parametrize("like", [True, False])
def test_a_bright_scalp_does_not_make_contrasts_alike(like: bool) -> None:
    """The scalps of T1 and FLAIR are bright, so their intensities correlate; the order of brain tissues differs."""
    other = texture() if like else 1 - texture()
    fixed, moving = scan(texture(), scalp=1650.0), scan(other, scalp=1650.0)
    both = (fixed._data > 150) & (moving._data > 150)
    plain = np.corrcoef(fixed._data[both], moving._data[both])[0, 1]
    assert plain > 0.58, "the intensities alone do not tell them apart"
    found = register_affine(fixed, moving, AffineSettings("rigid", init="header"))
    assert (found.metric == "lncc") == like, found.reason


def test_a_brain_and_a_head_of_another_contrast_need_a_look() -> None:
    brain, head = scan(texture(), whole=False), scan(1 - texture())
    for fixed, moving in ((brain, head), (head, brain)):
        found = register_better(fixed, moving, AffineSettings("rigid", init="header"))
        assert found.metric == "mi"
        assert any("was cut out" in text for text in found.warnings), found.warnings


def test_two_brains_two_heads_and_masked_scans_raise_no_such_doubt() -> None:
    brain, head = scan(texture(), whole=False), scan(texture())
    other, whole = scan(1 - texture(), whole=False), scan(1 - texture())
    mask = torch.from_numpy((radii() < BRAIN).astype(np.float32))
    masked = Pyramid(ScanVolume(whole._data, GRID, mask))
    for fixed, moving in ((brain, other), (head, whole), (brain, masked)):
        found = register_better(fixed, moving, AffineSettings("rigid", init="header"))
        assert found.metric == "mi"
        assert not any("was cut out" in text for text in found.warnings), found.warnings


def test_a_brain_and_a_head_of_the_same_contrast_raise_no_doubt() -> None:
    found = register_better(scan(texture(), whole=False), scan(texture()), AffineSettings("rigid", init="header"))
    assert found.metric == "lncc"
    assert found.warnings == ()


def test_what_was_cut_out() -> None:
    assert scan(texture(), whole=False).cut_out
    assert not scan(texture()).cut_out
    air = scan(texture(), noise=0.0)
    soft = torch.nn.functional.avg_pool3d(air._data[None], 3, 1, 1)[0].where(
        torch.from_numpy(radii() < 1.1), 0 * air._data
    )
    assert not Pyramid(ScanVolume(soft, GRID)).cut_out, "a head whose air was set to 0"
    circle = scan(texture(), whole=False)._data + 0
    circle[circle == 0] = -3024
    circle[:8] = -1024
    assert not Pyramid(ScanVolume(circle - 1024, GRID)).cut_out, "a CT, with another value beyond the circle"


def test_few_values_have_shared_ranks() -> None:
    """Noise in flat regions does not decide about the order of tissues."""
    steps = np.digitize(texture(), [0.35, 0.5, 0.65]) / 3
    fixed, moving = scan(steps, scalp=500.0, noise=2.0), scan(steps, scalp=500.0, noise=4.0)
    assert register_affine(fixed, moving, AffineSettings("rigid", init="header")).metric == "lncc"
