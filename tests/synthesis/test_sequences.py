"""Training pairs of planes and their neighbours."""

from __future__ import annotations

import pytest
import torch

from medkit.synthesis.clean_images import PrepareSourced, Remap
from medkit.synthesis.labels import LabelTable
from medkit.synthesis.ranges import Random
from medkit.synthesis.sampling import Scanner
from medkit.synthesis.sequences import PLANES, SLICES, Neighbours, ScanFramesd, frames_of, scanned_frames

CPU = torch.device("cpu")
TABLE = LabelTable((0, 2), (0, 1), (0, 2), {0: "background", 2: "brain"})


def stack() -> torch.Tensor:
    """(1, 40, 44, 12) waves, whose number is their third index over 100 above them."""
    x, y = torch.meshgrid(torch.arange(40) / 4, torch.arange(44) / 5, indexing="ij")
    waves = 0.4 + 0.2 * torch.sin(x) * torch.sin(y)
    return (waves[..., None] + torch.arange(12) / 100)[None]


@pytest.mark.parametrize("seed", range(6))
def test_a_plane_alone_stands_in_for_its_neighbours(seed: int) -> None:
    found = frames_of(stack(), PLANES, (24, 24), Random(seed, CPU), Neighbours(alone=1.0))
    assert found.shape == (1, 24, 24, 3)
    assert torch.equal(found[..., 0], found[..., 1])
    assert torch.equal(found[..., 0], found[..., 2])


@pytest.mark.parametrize("seed", range(6))
def test_slices_have_the_slices_beside_them(seed: int) -> None:
    found = frames_of(stack(), SLICES, (24, 24), Random(seed, CPU), Neighbours(alone=0.0, slices=1.0))
    before, after = ((found[..., n] - found[..., 0]).mean().item() for n in (1, 2))
    assert before in (pytest.approx(-0.01, abs=1e-4), pytest.approx(0, abs=1e-4))
    assert after in (pytest.approx(0.01, abs=1e-4), pytest.approx(0, abs=1e-4))
    assert after - before > 0.009


@pytest.mark.parametrize("kind", [PLANES, SLICES, "volume"])
def test_others_show_the_same_from_another_place(kind: str) -> None:
    near = Neighbours(alone=0.0, slices=0.0, shift=0.5, turn=0.5)
    found = frames_of(stack(), kind, (24, 24), Random(3, CPU), near)
    for n in (1, 2):
        apart = (found[..., n] - found[..., 0])[:, 4:-4, 4:-4].abs().mean()
        assert 0 < float(apart) < 0.05


def test_planes_that_are_too_small_are_mirrored_at_their_ends() -> None:
    found = frames_of(stack()[:, :20, :22], PLANES, (30, 30), Random(0, CPU), Neighbours())
    assert found.shape == (1, 30, 30, 3)
    assert float(found.min()) > 0.1


def test_what_was_scanned_and_what_it_lacks_are_the_plane() -> None:
    fine = frames_of(stack(), SLICES, (32, 32), Random(0, CPU), Neighbours(alone=1.0))
    quiet = Scanner(none=1.0, whole=1.0, width=(1.0, 1.0))
    frames, lacking, steps = scanned_frames(fine, (2.0, 2.0), Random(0, CPU), quiet)
    assert steps.tolist() == [2.0, 2.0]
    unit = float((fine[0, ..., 0] / (frames[0] + lacking[0])).median())
    torch.testing.assert_close(unit * (frames[:1] + lacking), fine[..., 0], atol=1e-5, rtol=1e-4)


def test_pairs_depend_on_the_seed_alone() -> None:
    transform = ScanFramesd("source", (24, 24), [[1.5, 4.5], [4.0, 4.0]], Scanner(), remap=Remap(kept=0.5))
    pairs = []
    for seed in (1, 1, 2):
        transform.set_random_state(seed)
        pairs.append(transform({"source": stack(), "kind": SLICES}))
    assert pairs[0]["image"].shape == (5, 24, 24)
    assert pairs[0]["label"].shape == (1, 24, 24)
    assert torch.equal(pairs[0]["image"], pairs[1]["image"])
    assert not torch.equal(pairs[0]["image"], pairs[2]["image"])
    four = transform({"source": stack(), "kind": SLICES, "variant": 1})["image"]
    assert four[3:].unique().tolist() == [2.0]


def test_hounsfield_units_begin_at_air() -> None:
    ct = torch.linspace(-1024, 1000, 1000).reshape(1, 10, 10, 10)
    done = PrepareSourced("source", TABLE)({"source": ct, "unit": "HU", "kind": SLICES})["source"]
    assert float(done.min()) == 0
    assert float(done.median()) == pytest.approx(0.5, abs=0.02)
