"""Chest CTs that are drawn for training: diseases, contrast, tables, arms and scanners."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from medkit.synthesis import ChestScans, Diseases, DrawChestd
from medkit.synthesis.chest_ct import AIR, drawn
from medkit.synthesis.lung_disease import PAINTERS, diseased
from medkit.synthesis.ranges import Random

BODY, LEFT, RIGHT, BONES = 1, 2, 3, 5
SPACING = 4.0
STILL = ChestScans(
    body=BODY, lungs=(LEFT, RIGHT), bones=BONES, spacing=SPACING, diseases=Diseases(healthy=1.0),
    gas=0.0, flip=0.0, contrast=0.0, table=0.0, arms=0.0, thickness=(1.0, 1.0), blur=(0.0, 0.0), sharpening=(0.0, 0.0),
    noise=(1e-3, 2e-3), cut=0.0,
)  # fmt: skip
"""Scans that are all but the same."""


def chest() -> tuple[torch.Tensor, torch.Tensor]:
    """Return a CT of a box with two lungs and a spine, and its channels, both (1, 64, 56, 40)."""
    labels = torch.zeros(1, 64, 56, 40, dtype=torch.long)
    labels[:, 8:56, 8:48] = BODY
    labels[:, 12:28, 12:44, 4:36] = LEFT
    labels[:, 36:52, 12:44, 4:36] = RIGHT
    labels[:, 29:35, 10:16] = BONES
    values = torch.tensor([AIR, 40.0, -850.0, -850.0, 0.0, 500.0])
    return values[labels], labels


@pytest.mark.parametrize("painter", PAINTERS, ids=lambda p: p.__name__)
@pytest.mark.parametrize("seed", range(3))
def test_a_disease_changes_its_lung_and_nothing_else(painter, seed) -> None:
    image, labels = chest()
    lungs = labels == LEFT
    out = painter(image, lungs, SPACING, Random(seed, image.device), Diseases(whole=0.0))
    assert torch.equal(out[~lungs], image[~lungs])
    changed = (out - image).abs()[lungs] > 50
    assert 0.0005 < changed.float().mean() < 0.99
    assert torch.isfinite(out).all()
    assert out.min() > -1100
    assert out[lungs].max() < 400


def test_an_effusion_takes_the_lowest_part_of_a_lung() -> None:
    image, labels = chest()
    lungs = labels == LEFT
    effusion = next(p for p in PAINTERS if p.__name__ == "effusion")
    backs = 0
    for seed in range(20):
        out = effusion(image, lungs, SPACING, Random(seed, image.device), Diseases(extent=(0.3, 0.4), whole=0.0))
        fluid = (out > -100) & lungs
        share = float(fluid.sum() / lungs.sum())
        assert 0.25 < share < 0.95
        backs += float(fluid[:, :, 12:20].float().mean()) > float(fluid[:, :, 36:44].float().mean())
    assert backs >= 12  # most patients lie on their back


def test_healthy_lungs_stay_and_drawings_repeat() -> None:
    image, labels = chest()
    lungs = torch.cat([labels == LEFT, labels == RIGHT])
    healthy = diseased(image, lungs, SPACING, Random(0, image.device), Diseases(healthy=1.0))
    assert torch.equal(healthy, image)
    ill = [diseased(image, lungs, SPACING, Random(3, image.device), Diseases(healthy=0.0)) for _ in "ab"]
    assert torch.equal(*ill)
    assert not torch.equal(ill[0], image)


def test_a_scan_without_variation_is_the_scan() -> None:
    image, labels = chest()
    out, kept = drawn(image, labels, Random(0, image.device), STILL)
    assert torch.equal(kept, labels)
    assert (out - image).abs().max() < 0.1


def test_a_mirror_image_keeps_the_names_of_the_sides() -> None:
    image, labels = chest()
    image[labels == LEFT] = -700
    out, kept = drawn(image, labels, Random(0, image.device), replace(STILL, flip=1.0))
    assert torch.equal(kept == LEFT, (labels == RIGHT).flip(1))
    assert float(out[kept == RIGHT].mean()) == pytest.approx(-700, abs=1)


def test_a_table_lies_in_the_air_behind_the_patient() -> None:
    image, labels = chest()
    out, kept = drawn(image, labels, Random(0, image.device), replace(STILL, table=1.0))
    plate = (out - image).abs() > 30
    assert plate.any()
    assert torch.equal(kept, labels)
    assert not plate[labels > 0].any()
    assert int(plate.nonzero()[:, 2].max()) <= 8 + (2 + 40) / SPACING  # 2 mm into the hollow of the back, and the curve


def test_arms_are_body_with_a_bone() -> None:
    image, labels = chest()
    out, kept = drawn(image, labels, Random(1, image.device), replace(STILL, arms=1.0))
    added = (kept > 0) & (labels == 0)
    assert set(kept[added].unique().tolist()) <= {BODY, BONES}
    assert torch.equal(kept[labels > 0], labels[labels > 0])
    assert float(out[kept == BODY].min()) > -200


def test_contrast_agent_brightens_soft_tissue_only() -> None:
    image, labels = chest()
    out, _ = drawn(image, labels, Random(0, image.device), replace(STILL, contrast=1.0))
    assert float((out - image)[labels == BODY].max()) > 60
    assert (out - image)[labels != BODY].abs().max() < 0.1


def test_what_is_cut_off_is_air_without_label() -> None:
    image, labels = chest()
    out, kept = drawn(image, labels, Random(0, image.device), replace(STILL, cut=1.0, cut_width=40.0))
    cut = (kept == 0) & (labels > 0)
    assert cut.any()
    assert float(out[cut].max()) == AIR


def test_thick_slices_and_noise() -> None:
    image, labels = chest()
    thick, _ = drawn(image, labels, Random(0, image.device), replace(STILL, thickness=(16.0, 16.0)))
    edge = thick[0, 20, 28, 3:5] - image[0, 20, 28, 3:5]
    assert edge.abs().max() > 100
    noisy, _ = drawn(image, labels, Random(0, image.device), replace(STILL, noise=(50.0, 50.0)))
    assert float((noisy - image)[labels == BODY].std()) == pytest.approx(50, rel=0.3)


def test_the_transform_draws_pairs_for_a_config() -> None:
    image, labels = chest()
    draw = DrawChestd("image", replace(STILL, diseases=Diseases(healthy=0.0)))
    pairs = []
    for _ in "ab":
        draw.set_random_state(7)
        pairs.append(draw({"image": image, "label": labels}))
    assert torch.equal(pairs[0]["image"], pairs[1]["image"])
    assert torch.equal(pairs[0]["label"], labels)
    assert not torch.equal(pairs[0]["image"], image)


def test_gas_is_painted_into_the_abdomen_and_stays_body() -> None:
    image, labels = chest()
    labels[:, 12:28, 12:44, 4:14] = labels[:, 36:52, 12:44, 4:14] = BODY
    image[labels == BODY] = 40.0
    lungs = (labels == LEFT) | (labels == RIGHT)
    painted = []
    for seed in range(12):
        out, out_labels = drawn(image, labels, Random(seed, image.device), replace(STILL, gas=1.0))
        assert torch.equal(out_labels, labels)
        gas = (out < -200) & (labels == BODY)
        assert torch.allclose(out[~gas], image[~gas], atol=400)  # contents of the bowel are up to -200 HU
        assert not gas[..., 22:].any()  # nothing above the lowest third of the lungs
        assert not gas[:, :13].any()  # 20 mm of wall
        assert not gas[:, 12:28, 12:44, 12:].any()  # 6 mm of diaphragm
        assert (out[lungs] < -800).all()
        painted.append(int(gas.sum()))
    assert sum(n > 50 for n in painted) > 6
