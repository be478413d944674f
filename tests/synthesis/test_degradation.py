"""Training pairs for enhancement."""

from __future__ import annotations

import math

import pytest
import torch
from monai.data import MetaTensor

from medkit.synthesis.clean_images import PrepareSourced
from medkit.synthesis.degradation import (
    DegradeImaged,
    Faults,
    LowField,
    degraded,
    lowered,
    with_noise,
)
from medkit.synthesis.draw import Synthesis
from medkit.synthesis.labels import LabelTable
from medkit.synthesis.ranges import Random, Ranges

CPU = torch.device("cpu")
TABLE = LabelTable((0, 2, 500), (0, 1, 2), (0, 2, 0), {0: "background", 2: "brain"})
FAULTLESS = Ranges(bias=0, noise=0, gamma=0, ghosting=0, salt_and_pepper=0)


def ramp(size: int = 40) -> torch.Tensor:
    return torch.linspace(0, 1, size).expand(1, size, size, size).clone()


def always(**settings: object) -> Faults:
    plain = {"none": 0.0, "rician": 0.0, "varying": 0.0, "correlated": 0.0, "emptied": 0.0, "bias": 0.0}
    return Faults(**(plain | settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("sigma", [0.02, 0.1])
@pytest.mark.parametrize("correlated", [0.0, 1.0])
def test_noise_has_the_strength_that_was_drawn(sigma: float, correlated: float) -> None:
    image = torch.full((1, 48, 48, 48), 0.7)
    noise = with_noise(image, 1.0, Random(2, CPU), always(noise=(sigma, sigma), correlated=correlated)) - image
    assert float(noise.std()) == pytest.approx(sigma, rel=0.03)
    neighbours = max(float((noise[0] * noise[0].roll(1, axis)).mean()) / sigma**2 for axis in range(3))
    assert neighbours == pytest.approx(0.45 if correlated else 0, abs=0.03)


def test_rician_noise_lifts_the_background() -> None:
    noisy = with_noise(torch.zeros(1, 40, 40, 40), 1.0, Random(0, CPU), always(noise=(0.1, 0.1), rician=1.0))
    assert float(noisy.mean()) == pytest.approx(0.1 * math.sqrt(math.pi / 2), rel=0.02)
    emptied = with_noise(torch.zeros(1, 40, 40, 40), 1.0, Random(0, CPU), always(rician=1.0, emptied=1.0))
    assert not emptied.any()


def test_noise_that_varies() -> None:
    image = torch.full((1, 60, 60, 60), 0.5)
    faults = always(noise=(0.05, 0.05), varying=1.0, variation=0.6)
    noise = with_noise(image, 2.0, Random(3, CPU), faults) - image
    local = noise.reshape(6, 10, 6, 10, 6, 10).std((1, 3, 5))
    assert float(local.max() / local.min()) > 1.5


def test_no_noise_leaves_the_image_alone() -> None:
    image, target, log_field = degraded(ramp(), 1.0, Random(0, CPU), always(none=1.0, emptied=1.0))
    torch.testing.assert_close(image, target)
    assert not log_field.any()
    assert float(image.reshape(-1)[::7].max()) == pytest.approx(1, abs=0.05)


def test_the_target_keeps_the_field_and_the_field_is_told() -> None:
    clean = ramp()
    image, target, log_field = degraded(clean, 4.0, Random(1, CPU), always(none=1.0, bias=0.5))
    assert float(log_field.std()) > 0.02
    share = target / (clean * log_field.exp()).clamp(min=1e-6)
    bright = clean > 0.1
    assert float(share[bright].std()) < 1e-4
    torch.testing.assert_close(image, target)


def stripes(axis: int, millimetres: float, spacing: float) -> torch.Tensor:
    """(1, 60, 60, 60) between 0.4 and 0.8, of one period in so many mm along an axis."""
    wave = 0.6 + 0.2 * torch.sin(2 * math.pi * torch.arange(60) * spacing / millimetres)
    return wave.reshape([-1 if a == axis else 1 for a in range(3)]).expand(1, 60, 60, 60).clone()


@pytest.mark.parametrize(("axis", "kept"), [(0, True), (1, True), (2, False)])
@pytest.mark.parametrize("spacing", [1.0, 0.5])
def test_low_field_sees_as_much_as_its_voxels_let_it(axis: int, kept: bool, spacing: float) -> None:
    scanner = LowField((1.0, 1.0, 6.0), contrast=1.0, faults=always(noise=(1e-6, 1e-6)))
    image = stripes(axis, 6.0, spacing)
    seen = lowered(image, spacing, Random(0, CPU), scanner)
    assert seen.shape == image.shape
    assert float(seen.std() / image.std()) == pytest.approx(1 if kept else 0, abs=0.15)


def test_low_field_has_less_contrast_and_its_noise_spans_its_voxels() -> None:
    image = torch.full((1, 60, 60, 60), 0.5)
    image[:, :30] = 1
    dull = lowered(image, 1.0, Random(0, CPU), LowField((1.5, 1.5, 5.0), faults=always(noise=(1e-6, 1e-6))))
    assert float(dull[:, 40:].mean()) == pytest.approx(0.5**0.6, abs=0.01)
    noise = lowered(image, 1.0, Random(0, CPU), LowField((1.5, 1.5, 5.0), faults=always(noise=(0.05, 0.05)))) - dull
    assert 0.02 < float(noise.std()) < 0.05
    apart = [float((noise[0] * noise[0].roll(2, axis)).mean() / noise.var()) for axis in range(3)]
    assert apart[2] > 0.6 > 0.4 > max(apart[:2]), "a voxel is thick along the third axis"


def synthesis() -> Synthesis:
    return Synthesis(TABLE, (24, 24, 24), 4.0, FAULTLESS)


@pytest.mark.parametrize("kind", ["labels", "scan"])
def test_pairs_depend_on_the_seed_alone(kind: str) -> None:
    source = torch.zeros(1, 32, 32, 32)
    source[:, 8:24, 8:24, 8:24] = max(TABLE.indices)
    item = PrepareSourced("source", TABLE)({"source": MetaTensor(source), "kind": kind})
    transform = DegradeImaged("source", synthesis(), [Faults(), always(noise=(0.3, 0.3))])
    pairs = []
    for seed in (1, 1, 2):
        transform.set_random_state(seed)
        pairs.append(transform(item))
    assert pairs[0]["image"].shape == (1, 24, 24, 24)
    assert pairs[0]["label"].shape == (2, 24, 24, 24)
    assert torch.equal(pairs[0]["image"], pairs[1]["image"])
    assert torch.equal(pairs[0]["label"], pairs[1]["label"])
    assert not torch.equal(pairs[0]["image"], pairs[2]["image"])
    noisy = transform({**item, "variant": 1})
    assert float((noisy["image"] - noisy["label"][:1]).std()) > 0.1
