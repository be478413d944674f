"""Clean images of training pairs: patches of scans, other contrasts, drawn heads."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from medkit.synthesis.clean_images import CleanImages, PrepareSourced, Remap, patch, remapped
from medkit.synthesis.draw import Synthesis
from medkit.synthesis.labels import LabelTable
from medkit.synthesis.ranges import Random, Ranges

CPU = torch.device("cpu")
TABLE = LabelTable((0, 2, 500), (0, 1, 2), (0, 2, 0), {0: "background", 2: "brain"})
FAULTLESS = Ranges(bias=0, noise=0, gamma=0, ghosting=0, salt_and_pepper=0)


def ramp(size: int = 40) -> torch.Tensor:
    return torch.linspace(0, 1, size).expand(1, size, size, size).clone()


@pytest.mark.parametrize("seed", range(12))
def test_contrasts_keep_zero_and_bound_the_slope(seed: int) -> None:
    image = ramp(200)[:, :2, :2]
    out = remapped(image, Random(seed, CPU), Remap(kept=0.0, bent=0.0))
    assert float(out[..., 0].abs().max()) == 0
    assert -1e-6 <= float(out.min()) <= float(out.max()) <= 1 + 1e-6
    steps = out[0, 0, 0].diff()[20:] * 199  # below, the foreground begins
    assert float(steps.abs().max()) < 2 / 0.3 + 0.1


@pytest.mark.parametrize("interpolated", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(24, 24, 24), (24, 60, 30)])
def test_patches(shape: tuple[int, ...], interpolated: float) -> None:
    scan = ramp()
    found = [patch(scan, shape, Random(n, CPU), interpolated) for n in range(6)]
    assert all(p.shape == (1, *shape) for p in found)
    assert all(float(p.max()) > 0.3 for p in found)
    assert not all(torch.equal(found[0], p) for p in found[1:])
    if not interpolated:
        assert set(found[0].unique().tolist()) <= {*scan.unique().tolist(), 0.0}


def test_scans_come_to_one_scale() -> None:
    done = PrepareSourced("source", TABLE)({"source": 700 * ramp() - 20, "kind": "scan"})["source"]
    assert float(done.min()) == 0
    assert float(done.max()) == pytest.approx(1, abs=0.02)


def test_a_part_that_is_all_air_is_drawn_again() -> None:
    drawn: list[int] = []

    class Heads(Synthesis):
        def __call__(self, labels: torch.Tensor, spacing: object, seed: int) -> object:  # type: ignore[override]
            drawn.append(seed)
            made = super().__call__(labels, (1.0, 1.0, 1.0), seed)
            return made if len(drawn) > 2 else dataclasses.replace(made, image=torch.zeros_like(made.image))

    source = torch.ones(1, 40, 40, 40)
    clean = CleanImages(Heads(TABLE, (24, 24, 24), 1.0, FAULTLESS), Remap())(source, True, Random(0, CPU), 7)
    assert drawn == [7, 8, 9]
    assert bool(clean.any())
